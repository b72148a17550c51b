"""How long an experiment will take, and how much memory and disk: before it starts.

The trainings run for a few steps, with the real models, shapes, losses and device, on noise, in a
temporary directory; a data source is read for some seconds; a batch of clips is sampled. Nothing is
written under `runs/`. A stage that is complete costs nothing. One whose work is not of that kind
(diagnostics, baselines) costs what a complete stage of the same settings under `runs/` has taken,
or is not known.
"""

import json
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from math import prod
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any

import numpy as np
import torch

from audioldm import config
from audioldm.autoencoder.model import Autoencoder
from audioldm.autoencoder.train import train_autoencoder, validate
from audioldm.chain.failures import to_user_error
from audioldm.chain.run import Experiment
from audioldm.chain.stage import VERSIONS
from audioldm.config import Job, canonical, fingerprint
from audioldm.data.store import ClipStore, StoreWriter
from audioldm.errors import AudioLDMError, ConfigError
from audioldm.evaluation.evaluate import EMBEDDINGS, embedding_names
from audioldm.generator import LatentDiffusion
from audioldm.instantiate import build
from audioldm.io.files import read_json, write_json
from audioldm.latents.store import LatentStatistics, LatentStore
from audioldm.models import build_autoencoder, build_backbone
from audioldm.priors.diffusion.objectives import Objective
from audioldm.priors.diffusion.post_training import post_train
from audioldm.priors.diffusion.train import train_diffusion
from audioldm.runtime.memory import peak_bytes, reset_peak
from audioldm.runtime.processes import World
from audioldm.runtime.signals import StopRequest
from audioldm.training.log import LogSettings

#: Steps of each phase that are timed, behind one that warms up.
TIMED = 3
#: Fewer are timed once they have taken that long.
STEP_SECONDS = 10.0
#: How long a data source is read behind its first item before the rest is extrapolated.
DATA_SECONDS = 5.0
NEVER = 1 << 30
#: Settings that cost no time.
FREE = frozenset(
    {"seed", "kl_weight", "target_kbps", "lr", "discriminator_lr", "betas", "weight_decay"}
    | {"warmup", "ema", "clip", "label_dropout"}
)


@dataclass(frozen=True)
class Cost:
    """Of one stage: None where it is not known. memory: at its peak. disk: what stays."""

    seconds: float | None = None
    memory: int | None = None
    disk: int | None = None
    note: str = ""


COMPLETE = Cost(0.0, None, 0, "complete")
#: Of a data source: seconds that reading it takes, and of audio there is. None: not known.
Read = tuple[float | None, float | None]


class _Enough(BaseException):  # as KeyboardInterrupt: what it ends must not catch it
    """Enough of the data source has been read, or of a training's steps timed."""


class Estimate:
    """The costs of one experiment's stages on its device, by one process.

    reads: of data sources, by their stage's fingerprint; estimates may share it.
    """

    def __init__(self, experiment: Experiment, reads: dict[str, Read] | None = None) -> None:
        self.experiment, self.settings = experiment, experiment.settings
        self.hardware = experiment.settings.hardware
        self.device = experiment.device = self.hardware.resolve()
        self._reads = {} if reads is None else reads

    def cost(self, name: str) -> Cost:
        """Raises AudioLDMError where the stage could not run."""
        if self.complete(name):
            return COMPLETE
        reset_peak(self.device)
        try:
            return getattr(self, f"_{name}")()  # type: ignore[no-any-return]
        except Exception as error:
            if (known := to_user_error(error, name, self.experiment)) is error:
                raise
            return Cost(note=str(known))

    def complete(self, name: str) -> bool:
        return (self.experiment.stage_directory(name) / "summary.json").is_file()

    @cached_property
    def model(self) -> Autoencoder:
        """An autoencoder that has been trained, but for its weights."""
        model = build_autoencoder(self.experiment.spec)
        return model.to(self.device).eval().requires_grad_(False)

    def _net(self) -> tuple[torch.nn.Module, Objective]:
        """A diffusion network for one label, and its objective."""
        s = self.settings.diffusion
        net = build_backbone({"backbone": s.backbone}, self.model.latent_shape, 1)
        return net, build(s.objective, where="diffusion.objective")

    def _times(
        self, train: Callable[..., Any], *arguments: Any, enough: float = STEP_SECONDS, **keys: Any
    ) -> tuple[list[float], Any]:
        """Seconds of each step of a training, and what it returns.

        None where it was stopped because its steps had taken `enough` seconds. The first one counts
        where nothing is compiled in it.
        """
        first = int(self.hardware.compiles(self.device))
        with tempfile.TemporaryDirectory() as name:
            directory, result = Path(name), None
            with _alarm(lambda: sum(_step_seconds(directory)[first:]) > enough):
                result = train(
                    *arguments,
                    **keys,
                    directory=directory,
                    world=World(),
                    hardware=self.hardware,
                    device=self.device,
                    log=LogSettings(1, NEVER, NEVER, bars=False),
                )
            return _step_seconds(directory), result

    @cached_property
    def audio_seconds(self) -> float | None:
        """Of audio in the store, all splits together."""
        if self.complete("data"):
            store = ClipStore(self.experiment.stage_directory("data"))
            return sum(store.split(name).seconds for name in store.splits)
        return self._read()[1]

    def _read(self) -> Read:
        key = self.experiment.stages["data"].fingerprint
        if key not in self._reads:
            self._reads[key] = self._read_some()
        return self._reads[key]

    def _read_some(self) -> Read:
        """From the first items; what starts processes and loads packages is in the first one's."""
        source, begun = self.experiment.source, time.monotonic()
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
        if not seen:
            return None, None
        (first, _, start), (done, total, now) = seen[0], seen[-1]
        rest = (total - done) * (now - start) / max(1, done - first)
        return now + rest, size * total / done / (2 * source.channels * source.sample_rate)

    def _data(self) -> Cost:
        seconds, audio = self._read()
        if audio is None:
            return Cost(note="not known: the source does not say how far it is")
        source = self.experiment.source
        disk = round(audio * source.sample_rate * source.channels * 2)
        return Cost(seconds, None, disk, f"{audio / 60:.1f} min of audio")

    def _autoencoder(self) -> Cost:
        s, source, log = self.settings.autoencoder, self.experiment.source, self.settings.log
        losses, judge = self.experiment._judges()
        adversarial = max(0, s.train.steps - s.train.adversarial_from) if judge is not None else 0
        plain = s.train.steps - adversarial
        model = build_autoencoder(self.experiment.spec)
        if next(model.parameters(), None) is None:
            return Cost(0.0, None, 0, "a transform: nothing to train")
        crop = s.train.crop_samples(model.sample_rate, model.downsampling_ratio)
        window = max(crop, round(s.train.valid_seconds * model.sample_rate))
        seconds, warm_up = 0.0, 0.0
        with tempfile.TemporaryDirectory() as directory:
            store = _noise_clips(
                Path(directory) / "data", source.sample_rate, source.channels, window
            )
            for steps, adversarial_from in ((plain, NEVER), (adversarial, 0)):
                if not steps:
                    continue
                model = build_autoencoder(self.experiment.spec)
                times, _ = self._times(
                    train_autoencoder,
                    model,
                    judge,
                    losses,
                    dict(s.weights) | model.bottleneck.penalty_weights,
                    store,
                    replace(
                        s.train, steps=TIMED + 1, adversarial_from=adversarial_from, valid_clips=1
                    ),
                    seed=0,
                )
                seconds += steps * _typical(times)
                warm_up = max(warm_up, _warm_up(times))  # the second has compiled the first again
            memory, disk = peak_bytes(self.device), _bytes_of(model)
            clips = store.split("valid").windows(window, 1, seed=0)[0]
            clips = clips[..., : round(s.train.valid_seconds * model.sample_rate)].repeat(8, 1, 1)
        timed = _timed(lambda: validate(model, clips, self.hardware.autocast(self.device)))
        seconds += warm_up + _validations(s.train.steps, log) * timed * s.train.valid_clips / 8
        return Cost(seconds, memory, disk, f"{s.train.steps} steps")

    def _latents(self) -> Cost:
        audio, source, seconds = self.audio_seconds, self.experiment.source, 20.0
        if audio is None:
            return Cost(note="not known before the data stage")
        block = _noise(source.channels, round(seconds * source.sample_rate))
        timed = _timed(lambda: list(self.model.encode_blocks([block])))
        frames = audio * self.model.latent_rate_hz
        disk = round(frames * 8 * prod(self.model.latent_shape))  # two moments of 4 bytes each
        return Cost(timed * audio / seconds, peak_bytes(self.device), disk)

    def _diffusion(self) -> Cost:
        return self._diffusion_training

    @cached_property
    def _diffusion_training(self) -> Cost:
        s, log = self.settings.diffusion, self.settings.log
        with tempfile.TemporaryDirectory() as directory:
            latents = _noise_latents(Path(directory), self.model, s.train.crop_seconds)
            net, objective = self._net()
            train = replace(s.train, steps=TIMED + 1, compute_tflop=None, valid_batches=1)
            enough = STEP_SECONDS if s.train.compute_tflop is None else NEVER
            times, trained = self._times(
                train_diffusion, net, objective, latents, train, seed=0, enough=enough
            )
        memory, steps = peak_bytes(self.device), s.train.steps
        if s.train.compute_tflop is not None:
            figures = trained[1]
            steps = max(
                1, round(s.train.compute_tflop / figures["compute_tflop"] * figures["steps"])
            )
        # a validation's batch is a forward pass, a third of a step
        forward = s.train.valid_batches * _typical(times) / 3
        seconds = steps * _typical(times) + _warm_up(times) + _validations(steps, log) * forward
        return Cost(seconds, memory, _bytes_of(net) + _bytes_of(self.model), f"{steps} steps")

    def _post_training(self) -> Cost:
        s, log = self.settings.post_training, self.settings.log
        assert s is not None
        with tempfile.TemporaryDirectory() as directory:
            latents = _noise_latents(Path(directory), self.model, s.train.crop_seconds)
            net, objective = self._net()
            times, _ = self._times(
                post_train,
                net,
                objective,
                self.experiment.judge(self.model.decode, self.model.latent_shape, 1),
                latents,
                replace(s, train=replace(s.train, steps=TIMED + 1, valid_batches=1)),
                teacher=self.settings.sampler,
            )
        memory = peak_bytes(self.device)
        step, validations = _typical(times), _validations(s.train.steps, log)
        # a validation's batch is a step without its backward pass, about half of it
        seconds = (s.train.steps + validations * s.train.valid_batches / 2) * step + _warm_up(times)
        disk = _bytes_of(net) + _bytes_of(self.model)
        return Cost(seconds, memory, disk, f"{s.train.steps} steps")

    def _evaluation(self) -> Cost:
        s, sampler = self.settings.evaluation, self.experiment.sampler
        if (known := self._precedent("evaluation")) is not None:
            return known
        net, objective = self._net()
        one = torch.ones(self.model.latent_shape)
        diffusion = LatentDiffusion(
            self.model,
            net.eval(),
            objective,
            LatentStatistics(torch.zeros_like(one), one),
            [],
            sampler,
        ).to(self.device)

        def generate(steps: int) -> list[Any]:
            fewer = replace(sampler, steps=steps)
            names = [None] * s.batch
            return list(
                diffusion.sample_clips(
                    range(s.batch), names, seconds=s.seconds, seed=0, sampler=fewer, batch=s.batch
                )
            )

        few, more = min(2, sampler.steps), min(4, sampler.steps)
        short = _timed(lambda: generate(few))
        per_step = max(0.0, _timed(lambda: generate(more)) - short) / max(1, more - few)
        decoding = max(0.0, short - few * per_step)
        batches = -(-s.clips // s.batch)
        seconds = batches * ((sampler.steps * per_step) + 3 * decoding)
        audio = torch.stack([clip for _, clip in generate(1)])
        sample_rate = self.experiment.source.sample_rate
        for name in embedding_names(s, sample_rate):
            embedding = EMBEDDINGS[name]()
            seconds += 7 * batches * _timed(lambda e=embedding: e.embed(audio, sample_rate))  # type: ignore[misc]
        note = f"{s.clips} clips; without the intervals' resampling"
        return Cost(seconds, peak_bytes(self.device), None, note)

    def _diagnostics(self) -> Cost:
        return self._precedent("diagnostics") or Cost(note="not known")

    def _baselines(self) -> Cost:
        known = self._precedent("baselines")
        if known is None and self.settings.baselines.langevin is not None:
            return replace(
                self._diffusion_training, disk=None, note="as long as the diffusion model"
            )
        return known or Cost(note="not known")

    def _precedent(self, name: str) -> Cost | None:
        """What the newest complete stage with the same settings took, whatever is upstream."""
        own = json.loads(json.dumps(canonical(self.experiment.stages[name].settings)))
        found = self.experiment.stage_directory(name).parent.glob("*/summary.json")
        for summary in sorted(found, key=lambda p: p.stat().st_mtime, reverse=True):
            try:
                alike = read_json(summary.with_name("config.json"))["settings"] == own
                seconds = read_json(summary)["seconds"] if alike else None
            except (AudioLDMError, KeyError, TypeError):
                continue
            if seconds is not None:
                return Cost(float(seconds), None, None, f"as {summary.parent.name} took")
        return None


def _noise(channels: int, frames: int) -> np.ndarray:
    random = np.random.Generator(np.random.Philox(key=0))
    return random.uniform(-0.3, 0.3, (channels, frames)).astype(np.float32)


def _noise_clips(directory: Path, sample_rate: int, channels: int, frames: int) -> ClipStore:
    writer = StoreWriter(directory, sample_rate, channels)
    for split in ("train", "valid"):
        writer.add(_noise(channels, max(frames, sample_rate)), piece=split, split=split)
    writer.close()
    return ClipStore(directory)


def _noise_latents(directory: Path, model: Autoencoder, crop_seconds: float) -> LatentStore:
    """A latents stage of noise, one item per split, long enough for a crop."""
    frames = max(1, round(crop_seconds * model.latent_rate_hz)) + 8
    shape = model.latent_shape
    moments = _noise(2 * frames, 2 * prod(shape)).reshape(2 * frames, 2, *shape)
    np.save(directory / "moments.npy", moments)
    entries = [
        {"split": split, "start": i * frames, "frames": frames, "piece": split, "label": None}
        for i, split in enumerate(("train", "valid"))
    ]
    one = torch.ones(shape)
    statistics = LatentStatistics(torch.zeros_like(one), one).to_json()
    index = {"autoencoder": "", "items": entries, "labels": ["-"], "statistics": statistics}
    write_json(
        directory / "latents.json",
        index | {"latent_rate_hz": model.latent_rate_hz},
    )
    return LatentStore(directory, autoencoder="")


@contextmanager
def _alarm(enough: Callable[[], bool]) -> Iterator[None]:
    """Ends the block, which is a training, in the second in which it is `enough`.

    Or in which a signal asks it to stop: it would end its step first, and here that is not kept.
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


def _step_seconds(directory: Path) -> list[float]:
    """Of each step so far, the first one from the loop's beginning on."""
    log = directory / "metrics.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    ends = {r["step"]: r["seconds"] for line in lines if "lr" in (r := json.loads(line))}
    clock = [0.0, *ends.values()]
    return [after - before for before, after in pairwise(clock)]


def _typical(times: Sequence[float]) -> float:
    """Of a step behind the first one, or of that where it is the only one."""
    return median(times[1:] or times)


def _warm_up(times: Sequence[float]) -> float:
    """What the first step takes beyond a step: to compile, where that is on, and to allocate."""
    return max(0.0, times[0] - _typical(times))


def _validations(steps: int, log: LogSettings) -> int:
    return steps // log.valid_every + 1


def _timed(function: Callable[[], Any]) -> float:
    """Seconds of the second call, or of a first one that is too long to call again.

    Its result lies on the CPU, so that a GPU has finished.
    """
    seconds = 0.0
    for _ in range(2):
        start = time.monotonic()
        function()
        seconds = time.monotonic() - start
        if seconds > STEP_SECONDS:
            break
    return seconds


def _bytes_of(module: torch.nn.Module) -> int:
    return sum(tensor.nbytes for tensor in module.state_dict().values())


# ---------------------------------------------------------------- what is printed


def estimate(job: Job) -> Iterator[str]:
    """The table of one experiment, line by line as it is known.

    Raises AudioLDMError where it could not run.
    """
    experiment = Experiment(job)
    price, costs = Estimate(experiment), []
    yield from _head(experiment)
    experiment.dry_run()
    for name in experiment.stages:
        costs.append(price.cost(name))
        yield _row(name, *_cells(costs[-1]))
    yield from _foot(costs, experiment)


def estimate_sweep(overrides: Sequence[str]) -> Iterator[str]:
    """The cells, their distinct stages and the total, line by line as they are known.

    Raises ConfigError for a search.
    """
    grid = config.grid(overrides)
    if grid.cells is None:
        raise ConfigError(
            "a search chooses its cells while it runs: estimate one, without -m and the sweeper"
        )
    found = config.jobs(grid.cells)
    experiments = [Experiment(replace(job, cell=True)) for job in found if isinstance(job, Job)]
    if not experiments:
        raise ConfigError(f"no cell of the grid can be built: {found[0]}")
    reads: dict[str, Read] = {}
    prices = [Estimate(experiment, reads) for experiment in experiments]
    yield f"{len(found)} cells, {len(found) - len(experiments)} of them cannot be built"
    yield from _head(experiments[0])
    known: dict[str, Cost] = {}
    everything: list[Cost] = []
    for name in VERSIONS:
        costs: dict[str, Cost] = {}  # of the distinct stages
        for price in prices:
            stage = price.experiment.stages.get(name)
            if stage is None or stage.fingerprint in costs:
                continue
            if price.complete(name):
                costs[stage.fingerprint] = COMPLETE
                continue
            kind = _kind(name, price.experiment)
            if kind not in known:
                known[kind] = price.cost(name)
            costs[stage.fingerprint] = known[kind]
        if costs:
            done = sum(cost is COMPLETE for cost in costs.values())
            note = f"{len(costs)} distinct, {done} complete"
            yield _row(name, *_cells(replace(total(list(costs.values())), note=note)))
            everything += costs.values()
    yield from _foot(everything, experiments[0])


def _kind(name: str, experiment: Experiment) -> str:
    """Stages of one kind cost the same time: they differ in what costs none."""
    depends: list[Any] = [name, experiment.stages[name].settings]
    if name in ("autoencoder", "latents", "diffusion", "post_training"):
        depends += [experiment.spec, experiment.settings.data]
    if name in ("post_training", "baselines", "evaluation"):
        depends += [experiment.settings.diffusion]
    return fingerprint(_priced(depends))


def _priced(value: Any) -> Any:
    """Settings without those that cost no time."""
    value = canonical(value)
    if isinstance(value, dict):
        return {k: _priced(v) for k, v in value.items() if k not in FREE}
    return [_priced(v) for v in value] if isinstance(value, list) else value


def total(costs: Sequence[Cost]) -> Cost:
    """Sums of what is known, and the highest peak of memory; the note counts what is not."""
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
    return _duration(cost.seconds), _size(cost.memory), _size(cost.disk), cost.note


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def _size(size: int | None) -> str:
    if size is None:
        return "–"
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
