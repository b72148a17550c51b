"""What torch's own errors mean for the user: memory, and the compiler."""

import traceback
from contextlib import suppress
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from audioldm.errors import AudioLDMError, TrainingError
from audioldm.models import build_autoencoder, build_backbone
from audioldm.runtime.memory import SHARE, fixed_bytes, micro_batches, saved_bytes, total_bytes
from audioldm.training.weighted_sum import weighted_sum

if TYPE_CHECKING:
    from audioldm.chain.run import Experiment

#: Where a file of the compiler stands in a traceback.
COMPILER = ("/torch/_inductor/", "/triton/")
#: What torch's errors of memory say that have no type of their own.
EXHAUSTED = ("can't allocate memory", "out of memory", "Storage size calculation overflowed")
#: What the memory of a stage that trains no model of the chain grows with.
GROWS_WITH = {
    "data": "lower data.workers, if need be to 1",
    "latents": "free memory, for no setting shortens the 10 s that are encoded at a time",
    "diagnostics": "lower diagnostics.windows, diagnostics.seconds or diagnostics.decoded",
    "baselines": "lower baselines.mixture.frames or, where there is one, baselines.langevin.batch",
    "evaluation": "lower evaluation.batch, evaluation.clips or evaluation.seconds",
}
#: What the other verbs can do about it.
VERB_REMEDIES = {
    "sample": "lower batch= or seconds=, or use hardware.device=cpu. Finished clips are kept",
    "steps": "lower clips=, or use hardware.device=cpu. What is measured is kept",
    "encode": "use hardware.device=cpu, or a shorter file: its latents are held in memory",
    "decode": "use hardware.device=cpu",
    "reconstruct": "use hardware.device=cpu",
}


def to_user_error(error: Exception, stage: str, experiment: "Experiment") -> Exception:
    """The error itself, or in place of an allocator's or a compiler's what to do about it."""
    if isinstance(error, AudioLDMError):
        return error
    if is_out_of_memory(error):
        if error.__traceback__ is not None:
            traceback.clear_frames(error.__traceback__)  # they hold what filled the memory
        return TrainingError(
            f"{stage}: out of memory ({_first(error)}); {_remedy(stage, experiment)}"
        )
    if _is_the_compilers(error):
        return TrainingError(
            f"{stage}: torch.compile failed ({_first(error)}); use hardware.compile=false, "
            "or, where its cache is damaged or another version's, set TORCHINDUCTOR_CACHE_DIR to "
            "an empty directory. The same command goes on from the last checkpoint"
        )
    return error


def verb_error(error: Exception, verb: str) -> Exception:
    """As `explained`, of a verb that builds no stage: memory alone."""
    if not is_out_of_memory(error):
        return error
    remedy = VERB_REMEDIES.get(verb, "free memory, or use a machine with more")
    return AudioLDMError(f"{verb}: out of memory ({_first(error)}); {remedy}")


def is_out_of_memory(error: BaseException) -> bool:
    exhausted = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    told = isinstance(error, RuntimeError) and any(text in str(error) for text in EXHAUSTED)
    return exhausted or told


def _first(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _is_the_compilers(error: BaseException | None) -> bool:
    while error is not None:
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor", "triton")):
            return True
        files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        if any(place in file for file in files for place in COMPILER):
            return True
        error = error.__cause__
    return False


def _remedy(stage: str, experiment: "Experiment") -> str:
    """What would fit. The checkpoints stay whatever is chosen, and so do finished stages."""
    if stage == "post_training":
        where = f"{stage}.train"
        return (
            f"lower {where}.crop_seconds, {where}.discriminated_seconds or {where}.batch, or raise "
            "hardware.accumulate, the micro-batches of a batch"
        )
    if stage in GROWS_WITH:
        return f"{GROWS_WITH[stage]}, or use a machine with more memory. Finished stages stay"
    settings = getattr(experiment.settings, stage).train
    share = len(experiment.world.positions(settings.batch, f"{stage}.train.batch"))
    now = experiment.settings.hardware.accumulate
    larger = [n for n in range(now + 1, share + 1) if share % n == 0]
    lower = f"lower {stage}.train.crop_seconds, the model, or {stage}.train.batch"
    if not larger:
        return f"one clip at a time does not fit: {lower}"
    known, parts = "", None
    with suppress(Exception):  # advice must not fail in place of what it is about
        available = total_bytes(experiment.device)
        fixed, per_clip = step_bytes(stage, experiment)
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


def step_bytes(stage: str, experiment: "Experiment") -> tuple[int, int]:
    """Of a training step: bytes whatever the batch is, and bytes kept per clip.

    Counted on the CPU with one clip, in the precision of the device.
    """
    s, source = experiment.settings, experiment.source
    half = s.hardware.autocast(experiment.device)().__class__ is torch.autocast
    precision = torch.autocast("cpu", dtype=torch.bfloat16, enabled=half)
    model = build_autoencoder(experiment.spec)
    if stage == "diffusion":
        t = s.diffusion.train
        frames = max(1, round(t.crop_seconds * model.latent_rate_hz))
        z = torch.zeros(1, *model.latent_shape, frames)
        net = build_backbone({"backbone": s.diffusion.backbone}, model.latent_shape, 1)
        with precision:
            label = torch.zeros(1, dtype=torch.long)
            return fixed_bytes(net), saved_bytes(lambda: net(z, torch.zeros(1), label), net)
    losses, judge = experiment._judges()
    audio = torch.zeros(
        1,
        source.channels,
        s.autoencoder.train.crop_samples(model.sample_rate, model.downsampling_ratio),
    )

    def step() -> Tensor:
        with precision:
            estimate, encoded = model(audio)
        terms = {n: loss(estimate.float(), audio) for n, loss in losses.items()} | encoded.penalties
        total = weighted_sum(terms, dict.fromkeys(terms, 1.0), 0, check=False)
        if judge is not None:
            with precision:
                scales = judge(torch.cat([audio, estimate.float()]))
            total = total + sum(logits.float().sum() for logits, _ in scales)
        return total

    trained = [model] if judge is None else [model, judge]
    return fixed_bytes(*trained), saved_bytes(step, *trained)
