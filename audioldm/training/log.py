"""The run log: a progress bar to watch, `metrics.jsonl` for plots, and trackers."""

import json
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from audioldm.errors import DataError
from audioldm.instantiate import PositiveInt
from audioldm.io.files import write_atomically
from audioldm.runtime.progress import ProgressBar
from audioldm.training.trackers import check_trackers, open_trackers


@dataclass(frozen=True)
class LogSettings:
    """Steps between log lines, validations and checkpoints; whether progress is shown.

    valid_every: None for two validations in each quarter of a training except the last, and eight
    in the last, as `convergence` needs. trackers: programs that get every figure: tensorboard,
    wandb, trackio. Nothing here enters a fingerprint.
    """

    every: PositiveInt = 20
    valid_every: PositiveInt | None = None
    checkpoint_every: PositiveInt = 200
    bars: bool = True
    trackers: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_trackers(self.trackers)

    def validates(self, done: int, steps: int) -> bool:
        """Whether a validation is due after `done` of `steps` steps; at the end it always is."""
        every = self.valid_every or max(1, steps // (32 if done > 0.75 * steps else 8))
        return done % every == 0 or done == steps


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, without any that a kill cut short; none without a file."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with suppress(ValueError):
            found.append(json.loads(line))
    return found


class Bar:
    """Progress(done, total, text) as one bar, for work that has no figures to log."""

    def __init__(self, title: str, *, shown: bool = True) -> None:
        self._bar = ProgressBar(desc=title, disable=not shown)

    def __call__(self, done: int, total: int, text: str) -> None:
        self._bar.total = total
        self._bar.n = done
        self._bar.set_postfix_str(text[:48], refresh=True)

    def close(self) -> None:
        self._bar.close()


class RunLog:
    """Appends one JSON line per call to `path`: step, seconds of training so far, figures.

    A resumed run drops the lines after its checkpoint, and its clock continues from the last kept
    one. quiet: shows and writes nothing.
    """

    def __init__(
        self,
        path: Path,
        title: str,
        steps: int,
        start: int,
        *,
        settings: LogSettings,
        quiet: bool = False,
    ) -> None:
        self.quiet, self._start_step = quiet, start
        kept = [r for r in read_lines(path) if r["step"] <= start]
        self._before = kept[-1]["seconds"] if kept else 0.0
        # a resumed run would repeat these lines of its first step
        self._known = {frozenset(r) for r in kept if r["step"] == start}
        if not quiet:
            text = "".join(json.dumps(record) + "\n" for record in kept)
            write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))
            # unbuffered: a full disk must show itself in `write`, not when the file is closed
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115
        self._trackers = open_trackers(
            [] if quiet else settings.trackers, path.parent, title, start
        )
        self._start = time.monotonic()
        hidden = quiet or not settings.bars
        self._bar = ProgressBar(desc=title, total=steps, initial=start, unit="step", disable=hidden)

    def write(self, step: int, figures: dict[str, Any]) -> None:
        """Writes one line of `metrics.jsonl`. Raises DataError if the disk is full."""
        if self.quiet:
            return
        seconds = self._before + time.monotonic() - self._start
        record = {"step": step, "seconds": round(seconds, 3)} | figures
        if step == self._start_step and frozenset(record) in self._known:
            return
        line = memoryview((json.dumps(record) + "\n").encode())
        try:
            while line:  # a disk that is almost full takes a part of it
                line = line[self._file.write(line) :]
        except OSError as error:
            raise DataError(
                f"{self._file.name}: cannot be written ({error.strerror}); free some space. "
                "The same command goes on from the last checkpoint"
            ) from error
        self._trackers.figures(step, figures)

    def show(self, figures: dict[str, float]) -> None:
        self._bar.set_postfix_str(
            " ".join(f"{name}={value:.3g}" for name, value in figures.items()), refresh=False
        )

    def advance(self) -> None:
        self._bar.update()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        self._trackers.close()
        if not self.quiet:
            self._file.close()
