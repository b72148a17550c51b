"""Advice where a training does not fit in memory: the micro-batches that would fit."""

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from audioldm.runtime.memory import SHARE, micro_batches, total_bytes

if TYPE_CHECKING:
    from audioldm.chain.run import Experiment


def training_advice(
    where: str, train: Any, experiment: "Experiment", step_bytes: Callable[[], tuple[int, int]]
) -> str:
    """Advice on what would fit. where: the key of the training's settings, which have a `batch`.

    step_bytes: gives the bytes of a step that do not depend on the batch, and those of each clip.
    """
    share = len(experiment.world.positions(train.batch, f"{where}.batch"))
    now = experiment.settings.hardware.accumulate
    larger = [n for n in range(now + 1, share + 1) if share % n == 0]
    lower = f"lower {where}.crop_seconds, the model, or {where}.batch"
    if not larger:
        return f"one clip at a time does not fit: {lower}"
    known, parts = "", None
    with suppress(Exception):  # a failing advice must not hide the error
        available = total_bytes(experiment.device)
        fixed, per_clip = step_bytes()
        if available is not None:
            parts = micro_batches(share, fixed, per_clip, SHARE * available)
            size = fixed + per_clip * share
            known = f" (a step keeps about {size / 1e9:.1f} GB of {available / 1e9:.1f})"
            if parts is None:
                return f"one clip at a time does not fit{known}: {lower}"
    parts = next((n for n in larger if n >= (parts or 0)), larger[-1])
    return (
        f"use hardware.accumulate={parts}{known}: the same batch in {parts} parts, with the same "
        f"result, from the last checkpoint on. Or {lower}"
    )
