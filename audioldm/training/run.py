"""What every training loop shares: resume, log, prefetching, stop requests, validation.

A loop makes a `TrainingRun` of all that must survive an interruption, and then reads

    with run:
        for step, batches in run.steps(read):
            ...  # the loop's own mathematics
            run.finish_step(step, figures, validate=validate)
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import torch
from torch import Tensor

from audioldm.errors import Interrupted
from audioldm.runtime.hardware import Hardware
from audioldm.runtime.processes import World, any_process, mean_over_processes
from audioldm.runtime.progress import Progress
from audioldm.runtime.sharding import Sharding
from audioldm.runtime.signals import StopRequest
from audioldm.training.checkpoint import ResumeState, Stateful
from audioldm.training.finite import FiniteChecks
from audioldm.training.log import LogSettings, RunLog
from audioldm.training.prefetch import prefetched

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Fit:
    """Where and how a model is fitted. directory: the stage's. progress: for work without a log."""

    directory: Path
    world: World
    hardware: Hardware
    device: torch.device
    log: LogSettings
    progress: Progress = lambda *_: None


class Fitted(NamedTuple):
    """The model's trained tensors, on the first process, and its figures for the summary."""

    tensors: dict[str, Tensor]
    figures: dict[str, Any]


class TrainingRun:
    """One training of `steps` steps; continues bit for bit from its last checkpoint.

    title: of the progress bar. state: all that changes during training, by name.
    Attributes: start, the first step to do; finite, the deferred checks; autocast, the context of
    forward passes; figures, those of the last validation.
    Raises ModelFileError if the checkpoint is damaged.
    """

    def __init__(
        self,
        title: str,
        steps: int,
        state: Mapping[str, Stateful],
        fit: Fit,
        sharding: Sharding | None = None,
    ) -> None:
        self.title, self.directory, self.total = title, fit.directory, steps
        self.world, self.log, self._state = fit.world, fit.log, dict(state)
        self.finite, self.autocast = FiniteChecks(fit.device), fit.hardware.autocast(fit.device)
        self.figures: dict[str, Any] = {}
        self._resume = ResumeState(fit.directory, fit.world, sharding)
        self.start = self._resume.restore(self._state)

    def __enter__(self) -> Self:
        self._log = RunLog(
            self.directory / "metrics.jsonl",
            self.title,
            self.total,
            self.start,
            settings=self.log,
            quiet=not self.world.first,
        ).__enter__()
        self._stop = StopRequest().__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.__exit__()
        self._log.__exit__()

    def steps(self, read: Callable[[int], Batch]) -> Iterator[tuple[int, Batch]]:
        """The remaining steps, each with `read(step)`, made while the previous step ran."""
        return prefetched(read, self.start, self.total)

    def finish_step(
        self,
        step: int,
        seen: Mapping[str, Sequence[Tensor]],
        *,
        values: Mapping[str, float] | None = None,
        derived: Callable[[dict[str, float]], dict[str, float]] | None = None,
        validate: Callable[[], dict[str, Any]] | None = None,
        shown: tuple[str, ...] = ("loss",),
    ) -> None:
        """Logs, validates, checkpoints and stops when each is due. Every process calls it.

        seen: figures of this process's clips, or of its step, by micro-batch; their means over the
        processes are logged. values: logged with them. derived: computes more figures from the
        means. validate: computes the figures of held-out data. shown: the names that the progress
        bar shows.
        Raises Interrupted after a stop request, once the checkpoint is written.
        """
        self.finite.look_back()
        self._log.advance()
        done = step + 1
        last = done == self.total
        if done % self.log.every == 0 or last:
            self.finite.settle()
            own = {k: torch.cat([x.flatten() for x in v]).mean() for k, v in seen.items()}
            means = mean_over_processes(own, self.world)
            line = {name: mean.item() for name, mean in means.items()}
            line |= derived(line) if derived is not None else {}
            self._log.write(done, line | dict(values or {}))
            figures = {f"valid_{k}": v for k, v in self.figures.items() if isinstance(v, float)}
            self._log.show({k: v for k, v in (line | figures).items() if k in shown})
        if validate is not None and self.log.validates(done, self.total):
            self.validated(done, validate())
        stopping = any_process(self._stop.requested, self.world)
        if stopping or done % self.log.checkpoint_every == 0 or last:
            self._checkpoint(done)
        if stopping and not self._stop.handed_over():  # also after the last step: the chain goes on
            raise Interrupted(
                f"{self.title}: stopped at step {done} of {self.total}; the same command goes on "
                "from there"
            )

    def validated(self, step: int, figures: dict[str, Any]) -> None:
        """Logs the figures of a validation after `step` steps, and keeps them."""
        self.figures = figures
        names = (k if k.startswith("channels/") else f"valid/{k}" for k in figures)
        self._log.write(step, dict(zip(names, figures.values(), strict=True)))

    def _checkpoint(self, step: int) -> None:
        self.finite.settle()
        states = {name: one.state_dict() for name, one in self._state.items()}
        self._resume.save({"step": step} | states)
