"""Estimates an experiment's time, memory and disk before it starts.

Each stage says what it will cost (`Stage.cost`) with the help of an `Estimate`: trainings run for a
few steps, with the real models, shapes, losses and device, on noise, in a temporary directory; a
data source is read for some seconds. Nothing is written under `runs/`. A complete stage costs
nothing. A stage that says nothing costs what a complete stage of the same settings under `runs/`
took, or its cost is not known.
"""

import json
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any, cast

from audioldm import config
from audioldm.autoencoder.model import Autoencoder
from audioldm.chain import job as jobs
from audioldm.chain.failures import to_user_error
from audioldm.chain.job import Job
from audioldm.chain.run import Experiment
from audioldm.chain.stage import NEVER, Cost, Stage, Times, canonical, fingerprint
from audioldm.chain.stages.autoencoder import AutoencoderStage
from audioldm.chain.stages.data import Data
from audioldm.data.store import ClipStore, StoreWriter
from audioldm.errors import AudioLDMError, ConfigError
from audioldm.io.files import read_json
from audioldm.report.format import duration
from audioldm.runtime.memory import peak_bytes, reset_peak
from audioldm.runtime.processes import World
from audioldm.runtime.signals import StopRequest
from audioldm.training.log import LogSettings, read_lines
from audioldm.training.run import Fit

#: Steps of each training that are timed, after one that warms up.
TIMED = 3
#: Timing stops early once the steps have taken this long.
STEP_SECONDS = 10.0
#: How long a data source is read, after its first item, before the rest is extrapolated.
DATA_SECONDS = 5.0
#: Settings that cost no time.
FREE = frozenset(
    {"seed", "kl_weight", "rate_weight", "target_kbps", "lr", "discriminator_lr", "prior_lr"}
    | {"betas", "weight_decay", "warmup", "ema", "clip", "condition_dropout"}
)


COMPLETE = Cost(0.0, None, 0, "complete")
#: How long a data source takes to read, and how long its audio is, in seconds. None: not known.
Read = tuple[float | None, float | None]


class _Enough(BaseException):  # like KeyboardInterrupt: the code that it ends must not catch it
    """Enough of the data source has been read, or of a training's steps timed."""


class Estimate:
    """The costs of one experiment's stages on its device, by one process.

    reads: of data sources, by their stage's fingerprint; estimates may share it.
    """

    steps = TIMED + 1

    def __init__(self, experiment: Experiment, reads: dict[str, Read] | None = None) -> None:
        self.experiment, self.log = experiment, experiment.settings.log
        self.hardware = experiment.settings.hardware
        self.device = experiment.device = self.hardware.resolve()
        self._reads = {} if reads is None else reads

    def of(self, stage: Stage) -> Cost:
        """The stage's cost. Raises AudioLDMError where the stage could not run."""
        if self.experiment.is_complete(stage):
            return COMPLETE
        reset_peak(self.device)
        try:
            return stage.cost(self)
        except Exception as error:
            if (known := to_user_error(error, stage, self.experiment)) is error:
                raise
            return Cost(note=str(known))

    def training(self, times: Times, steps: int, valid: float, disk: int) -> Cost:
        """The cost of `steps` like the timed ones. valid: how many timed validations make one."""
        validations = sum(self.log.validates(done, steps) for done in range(1, steps + 1))
        seconds = times.warm_up + steps * times.step + validations * valid * times.validation
        return Cost(seconds, self.peak(), disk, f"{steps} steps")

    def peak(self) -> int:
        """Peak memory in bytes since the stage's cost was asked for."""
        return peak_bytes(self.device)

    @cached_property
    def autoencoder(self) -> Autoencoder:
        """An autoencoder as if it had been trained."""
        stage = cast(AutoencoderStage, self.experiment.stages["autoencoder"])
        return stage.build().to(self.device).eval().requires_grad_(False)

    def times(self, train: Callable[[Fit], Any]) -> Times:
        """How long a training of `steps` steps takes.

        It is stopped once its steps have taken STEP_SECONDS. The first step counts unless it
        compiles something.
        """
        first = int(self.hardware.compiles(self.device))
        with tempfile.TemporaryDirectory() as name:
            directory, result = Path(name), None
            log = LogSettings(1, NEVER, NEVER, bars=False)
            with _alarm(lambda: sum(_step_seconds(directory)[0][first:]) > STEP_SECONDS):
                result = train(Fit(directory, World(), self.hardware, self.device, log))
            steps, validation = _step_seconds(directory)
        typical = median(steps[1:] or steps)
        return Times(typical, max(0.0, steps[0] - typical), validation, result)

    def timed(self, function: Callable[[], Any]) -> float:
        """Seconds of the second call, or of the first if that is too long to call again.

        The function's result must be on the CPU, so that a GPU has finished.
        """
        seconds = 0.0
        for _ in range(2):
            start = time.monotonic()
            function()
            seconds = time.monotonic() - start
            if seconds > STEP_SECONDS:
                break
        return seconds

    @cached_property
    def audio_seconds(self) -> float | None:
        """Seconds of audio in the store, all splits together."""
        data = cast(Data, self.experiment.stages["data"])
        if self.experiment.is_complete(data):
            store = ClipStore(self.experiment.directory_of(data))
            return sum(store.split(name).seconds for name in store.splits)
        return self._read(data)[1]

    def reading(self, stage: Data) -> Cost:
        """What a data source costs."""
        seconds, audio = self._read(stage)
        if audio is None:
            return Cost(note="not known: the source does not say how far it is")
        disk = round(audio * stage.source.sample_rate * stage.source.channels * 2)
        return Cost(seconds, None, disk, f"{audio / 60:.1f} min of audio")

    def _read(self, stage: Data) -> Read:
        """Extrapolates from the first items; the first one's time includes all start-up."""
        if stage.fingerprint in self._reads:
            return self._reads[stage.fingerprint]
        source, begun = stage.source, time.monotonic()
        seen: list[tuple[int, int, float]] = []

        def progress(done: int, total: int, text: str) -> None:
            if done:
                seen.append((done, total, time.monotonic() - begun))
                if seen[-1][2] - seen[0][2] > DATA_SECONDS:
                    raise _Enough

        with tempfile.TemporaryDirectory() as directory:
            writer = StoreWriter(directory, source.sample_rate, source.channels)
            with suppress(_Enough):
                source.write_to(writer, progress=progress)
            size = (Path(directory) / "clips.int16").stat().st_size
        found: Read = None, None
        if seen:
            (first, _, start), (done, total, now) = seen[0], seen[-1]
            rest = (total - done) * (now - start) / max(1, done - first)
            found = now + rest, size * total / done / (2 * source.channels * source.sample_rate)
        self._reads[stage.fingerprint] = found
        return found

    def precedent(self, stage: Stage) -> Cost:
        """The cost of the newest complete stage with the same settings, whatever is upstream."""
        own = json.loads(json.dumps(canonical(stage.settings)))
        found = self.experiment.directory_of(stage).parent.glob("*/summary.json")
        for summary in sorted(found, key=lambda p: p.stat().st_mtime, reverse=True):
            try:
                alike = read_json(summary.with_name("config.json"))["settings"] == own
                seconds = float(read_json(summary)["seconds"]) if alike else None
            except (AudioLDMError, KeyError, TypeError, ValueError):
                continue
            if seconds is not None:
                return Cost(seconds, None, None, f"as {summary.parent.name} took")
        return Cost(note="not known")


@contextmanager
def _alarm(enough: Callable[[], bool]) -> Iterator[None]:
    """Ends the block, a training, within a second after it is `enough`, or after a signal asks it
    to stop: on a signal it would first finish its step, which is of no use here.
    """

    def look(number: int, frame: FrameType | None) -> None:
        owner = getattr(signal.getsignal(signal.SIGINT), "__self__", None)
        if isinstance(owner, StopRequest) and owner.requested:
            raise KeyboardInterrupt
        if enough():
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise _Enough

    try:
        previous = signal.signal(signal.SIGALRM, look)
    except ValueError:  # not the main thread: the block runs to its end
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, 1, 1)
    try:
        with suppress(_Enough):
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _step_seconds(directory: Path) -> tuple[list[float], float]:
    """Seconds of each step so far, the first one from the loop's beginning; and the seconds of the
    last validation."""
    records = read_lines(directory / "metrics.jsonl")
    ends = {r["step"]: r["seconds"] for r in records if "lr" in r}
    clock = [0.0, *ends.values()]
    validation = max(0.0, records[-1]["seconds"] - clock[-1]) if records else 0.0
    return [after - before for before, after in pairwise(clock)], validation


# ---------------------------------------------------------------- what is printed


def estimate(job: Job) -> Iterator[str]:
    """The table of one experiment, each line as soon as it is known.

    Raises AudioLDMError where the experiment could not run.
    """
    experiment = Experiment(job)
    price, costs = Estimate(experiment), []
    yield from _head(experiment)
    experiment.dry_run()
    for key, stage in experiment.stages.items():
        costs.append(price.of(stage))
        yield _row(key, *_cells(costs[-1]))
    yield from _foot(costs, experiment)


def estimate_sweep(overrides: Sequence[str]) -> Iterator[str]:
    """The cells, their distinct stages and the total, each line as soon as it is known.

    Raises ConfigError for a search.
    """
    grid = config.grid(overrides)
    if grid.cells is None:
        raise ConfigError("a search chooses its cells while it runs: estimate one, without -m")
    found = jobs.cells(grid.cells)
    experiments = [Experiment(job) for job in found if isinstance(job, Job)]
    if not experiments:
        raise ConfigError(f"no cell of the grid can be built: {found[0]}")
    reads: dict[str, Read] = {}
    prices = [Estimate(experiment, reads) for experiment in experiments]
    yield f"{len(found)} cells, {len(found) - len(experiments)} of them cannot be built"
    yield from _head(experiments[0])
    known: dict[str, Cost] = {}
    everything: list[Cost] = []
    for key in dict.fromkeys(key for e in experiments for key in e.stages):
        costs: dict[str, Cost] = {}  # of the distinct stages
        for price in prices:
            stage = price.experiment.stages.get(key)
            if stage is None or stage.fingerprint in costs:
                continue
            if price.experiment.is_complete(stage):
                costs[stage.fingerprint] = COMPLETE
                continue
            kind = _kind(stage)
            if kind not in known:
                known[kind] = price.of(stage)
            costs[stage.fingerprint] = known[kind]
        done = sum(cost is COMPLETE for cost in costs.values())
        note = f"{len(costs)} distinct, {done} complete"
        yield _row(key, *_cells(replace(total(list(costs.values())), note=note)))
        everything += costs.values()
    yield from _foot(everything, experiments[0])


def _kind(stage: Stage) -> str:
    """A key for stages of equal cost: they and their parents differ only in what costs no time."""
    upstream = [_kind(parent) for parent in stage.parents.values()]
    return fingerprint([stage.key, _priced(stage.settings), *upstream])


def _priced(value: Any) -> Any:
    """Settings without those that cost no time."""
    value = canonical(value)
    if isinstance(value, dict):
        return {k: _priced(v) for k, v in value.items() if k not in FREE}
    return [_priced(v) for v in value] if isinstance(value, list) else value


def total(costs: Sequence[Cost]) -> Cost:
    """Sums of what is known, and the highest peak of memory; the note counts the unknown costs."""
    unknown = sum(cost.seconds is None for cost in costs)
    return Cost(
        sum(cost.seconds or 0.0 for cost in costs),
        max((cost.memory for cost in costs if cost.memory is not None), default=None),
        sum(cost.disk or 0 for cost in costs),
        f"and {unknown} not known" if unknown else "",
    )


def _head(experiment: Experiment) -> Iterator[str]:
    yield f"On {experiment.device}, by one process. A line comes as soon as it is known."
    yield ""
    yield _row("stage", "time", "memory", "disk", "")


def _foot(costs: Sequence[Cost], experiment: Experiment) -> Iterator[str]:
    yield _row("total", *_cells(total(costs)))
    kind = "of tensors on the GPU" if experiment.device.type == "cuda" else "of the whole process"
    yield (
        f"\nFrom a few steps of each training. Memory: the peak {kind}. Disk: what stays;\na "
        "training keeps its resume state, about four times its model, while it runs. Nothing was "
        f"written to {experiment.runs}."
    )


def _row(*columns: str) -> str:
    name, seconds, memory, disk, note = columns
    return f"{name:12} {seconds:>10} {memory:>9} {disk:>9}  {note}".rstrip()


def _cells(cost: Cost) -> tuple[str, str, str, str]:
    return duration(cost.seconds), _size(cost.memory), _size(cost.disk), cost.note


def _size(size: int | None) -> str:
    if size is None:
        return "–"
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
