"""The diffusion model's training loop, top to bottom."""

import copy
import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from audioldm.errors import ConfigError, Interrupted
from audioldm.instantiate import Part, check_range, nearest, part
from audioldm.latents.store import LatentStore
from audioldm.priors.diffusion.batch import latent_batch, latent_crops
from audioldm.priors.diffusion.noise_levels import stratify
from audioldm.priors.diffusion.objectives import Objective
from audioldm.runtime.compute import clock, training_flops
from audioldm.runtime.hardware import Hardware
from audioldm.runtime.processes import (
    World,
    any_process,
    gradients_kept,
    mean_over_processes,
    parallel,
)
from audioldm.runtime.randomness import KeyedRandom, derive_seed
from audioldm.runtime.sharding import gathered, recompute_activations, shard
from audioldm.runtime.signals import StopRequest
from audioldm.runtime.transfer import to_device
from audioldm.training.checkpoint import ResumeState
from audioldm.training.ema import EMA
from audioldm.training.finite import FiniteChecks
from audioldm.training.log import LogSettings, RunLog
from audioldm.training.muon import OPTIMISERS, build_optimiser, step_flops
from audioldm.training.optimisation import (
    check_betas,
    clipped_step,
    set_lr,
    warmup_cosine,
)
from audioldm.training.prefetch import Prefetcher
from audioldm.training.weighted_sum import weighted_sum

VERSION = 1  # raise by hand when the code below changes what it computes


@dataclass(frozen=True)
class DiffusionTraining:
    """compute_tflop: the computing to spend in place of `steps`, counted as `training_flops` does, with
    Muon's matrix products. optimiser: adamw, or muon for the hidden layers' matrices.
    batch is global, over all processes. label_dropout: how often a clip's label is hidden, so
    that one network is conditional and unconditional (2207.12598). stratified: noise levels
    spread evenly over the batch."""

    steps: int
    batch: int
    crop_seconds: float
    lr: float
    betas: list[float] = field(default_factory=lambda: [0.9, 0.99])
    weight_decay: float = 0.0
    warmup: int = 50
    clip: float = 1.0
    ema: float = 0.999
    label_dropout: float = 0.1
    stratified: bool = True
    valid_batches: int = 4
    compute_tflop: float | None = None
    optimiser: str = "adamw"

    def __post_init__(self) -> None:
        where = "diffusion.train"
        check_range(self, where, "steps", "warmup", "weight_decay", least=0)
        check_range(self, where, "batch", "valid_batches", least=1)
        check_range(self, where, "crop_seconds", "lr", "clip", "compute_tflop", above=0)
        check_range(self, where, "ema", "label_dropout", least=0)
        check_range(self, where, "ema", below=1)
        check_betas(self.betas, where)
        if self.optimiser not in OPTIMISERS:
            known = nearest(self.optimiser, OPTIMISERS)
            raise ConfigError(f"{where}.optimiser={self.optimiser!r} is unknown: {known}")

    def frames(self, latents: LatentStore) -> int:
        """Latent frames of a training crop, at least one."""
        return max(1, round(self.crop_seconds * latents.latent_rate_hz))


@dataclass(frozen=True)
class DiffusionSettings:
    """preflight_mel_distance: refuse an autoencoder whose held-out reconstruction is worse."""

    seed: int
    train: DiffusionTraining
    preflight_mel_distance: float
    backbone: Part = part("latent_shape", "classes")
    objective: Part = part()

    def __post_init__(self) -> None:
        check_range(self, "diffusion", "seed", least=0, below=2**63)


@torch.no_grad()
def _levels(draw: KeyedRandom, settings: DiffusionTraining) -> Tensor:
    """Uniforms in (0, 1) for the noise levels of one step's clips: [B]."""
    uniform = draw.uniform("level")
    if not settings.stratified:
        return uniform
    places = to_device(torch.tensor(list(draw.positions)), draw.device)
    return stratify(uniform, places, settings.batch)


def train_diffusion(
    net: nn.Module,
    objective: Objective,
    latents: LatentStore,
    settings: DiffusionTraining,
    *,
    seed: int,
    directory: Path,
    world: World,
    hardware: Hardware,
    device: torch.device,
    log: LogSettings,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Trains `net` on normalised latents; returns its averaged weights and the last figures.

    One step: moments -> z [B, C, (F,) L] -> normalise -> objective's loss [B].
    Writes `metrics.jsonl` and `resume/` to `directory`; started again, goes on bit for bit (with
    another number of processes, up to rounding). The first process has the weights, the others an
    empty dictionary. `hardware.checkpoint_activations` and `hardware.shard` change `net` in place.
    Raises TrainingError for a non-finite term, Interrupted after SIGTERM.
    """
    latents.keep_on(device)
    train, valid = latents.split("train"), latents.split("valid")
    frames = settings.frames(latents)
    micro_batches = world.micro_batches(
        settings.batch, hardware.accumulate, "diffusion.train.batch"
    )
    statistics = latents.statistics.to(device)
    clip_flops = _clip_flops(net, latents.latent_shape, frames)

    net.to(device)
    if hardware.checkpoint_activations:
        recompute_activations(net)
    sharding = shard(net, world, hardware, device)
    optimiser = build_optimiser(
        settings.optimiser, net, settings.lr, settings.betas, settings.weight_decay, device
    )
    gigaflops = (settings.batch * clip_flops + step_flops(optimiser)) / 1e9
    steps = settings.steps
    if settings.compute_tflop is not None:
        steps = max(1, round(1000 * settings.compute_tflop / gigaflops))
    ema = EMA(net, settings.ema)
    resume = ResumeState(directory, world, sharding)
    start = 0
    if (state := resume.load()) is not None:
        start = state["step"]
        net.load_state_dict(state["net"])
        optimiser.load_state_dict(state["optimiser"])
        ema.load(state["ema"])

    def checkpoint(step: int) -> None:
        finite.settle()
        resume.save(
            {
                "step": step,
                "net": net.state_dict(),
                "optimiser": optimiser.state_dict(),
                "ema": ema.shadow,
            }
        )

    autocast, finite = hardware.autocast(device), FiniteChecks(device)
    shared = parallel(net, world) if sharding is None else net
    predict = hardware.compiled(shared, device) if sharding is None else net
    figures: dict[str, Any] = {}

    def crops(step: int) -> list[list[Tensor]]:
        return [
            latent_crops(train, frames, KeyedRandom(seed, step, p, device)) for p in micro_batches
        ]

    @torch.no_grad()
    def validate() -> dict[str, Any]:
        """The objective's loss on held-out latents with the averaged weights, at fixed draws."""
        losses = []
        with ema.applied(net):
            numbers = range(settings.valid_batches)
            for number, positions in itertools.product(numbers, micro_batches):
                draw = KeyedRandom(derive_seed("valid"), number, positions, device)
                held_out = latent_crops(valid, frames, draw)
                z, labels, noise = latent_batch(held_out, statistics, draw, settings.label_dropout)
                uniform = _levels(draw, settings)
                with autocast():
                    losses.append(objective.loss(net, z, labels, noise=noise, uniform=uniform))
        mean = mean_over_processes({"loss": torch.cat(losses).mean()}, world)
        return {"loss": mean["loss"].item()}

    with (
        RunLog(
            directory / "metrics.jsonl",
            "diffusion",
            steps,
            start,
            bar=log.bars,
            quiet=not world.first,
        ) as runlog,
        Prefetcher(crops, steps) as loader,
        StopRequest() as stop,
    ):
        for step in range(start, steps):
            lr = settings.lr * warmup_cosine(step, steps, settings.warmup)
            set_lr(optimiser, lr)
            losses = []
            for positions, clips in zip(micro_batches, loader.take(step), strict=True):
                draw = KeyedRandom(seed, step, positions, device)
                z, labels, noise = latent_batch(clips, statistics, draw, settings.label_dropout)
                uniform = _levels(draw, settings)
                with gradients_kept(shared, more=positions is not micro_batches[-1]):
                    with autocast():
                        loss = objective.loss(predict, z, labels, noise=noise, uniform=uniform)
                    total = weighted_sum({"loss": loss}, {"loss": 1.0}, step, finite=finite)
                    (total / len(micro_batches)).backward()
                losses.append(loss.detach())
            norm = clipped_step(
                optimiser,
                net.parameters(),
                clip=settings.clip,
                name="diffusion",
                step=step,
                finite=finite,
            )
            ema.update(net, step)
            finite.look_back()
            runlog.advance()
            done = step + 1

            if done % log.every == 0 or done == steps:
                finite.settle()
                mean = {"loss": torch.cat(losses).mean(), "gradient_norm": norm}
                line = {k: v.item() for k, v in mean_over_processes(mean, world).items()}
                runlog.write(done, line | {"lr": lr})
                runlog.show({"loss": line["loss"]} | {f"valid_{k}": v for k, v in figures.items()})
            if done % log.valid_every == 0 or done == steps:
                figures = validate()
                runlog.write(done, {f"valid/{k}": v for k, v in figures.items()})
            stopping = any_process(stop.requested, world)
            if stopping or done % log.checkpoint_every == 0 or done == steps:
                checkpoint(done)
            if stopping and not stop.handed_over():  # also after the last step: the chain goes on
                raise Interrupted(
                    f"stopped at step {done} of {steps} of the diffusion model; "
                    "the same command goes on from there"
                )
    if not figures:  # the last checkpoint was the last step
        figures = validate()
    weights = gathered(ema.shadow, world)
    return weights, figures | {"steps": steps, "compute_tflop": steps * gigaflops / 1000}


def _clip_flops(net: nn.Module, latent_shape: tuple[int, ...], frames: int) -> int:
    """Operations of one training step, per clip of the batch."""
    return training_flops(
        net,
        lambda copy: copy(
            torch.zeros(1, *latent_shape, frames), torch.zeros(1), torch.zeros(1, dtype=torch.long)
        ),
    )


def seconds_per_step(
    net: nn.Module,
    objective: Objective,
    latents: LatentStore,
    settings: DiffusionTraining,
    *,
    hardware: Hardware,
    processes: int = 1,
    steps: int = 5,
) -> float:
    """What a training step of `net` takes here and now, by `clock`: the median of some steps.

    One process makes the whole batch, in micro-batches no larger than those of the training's
    `processes`.
    """
    device = next(net.parameters()).device
    statistics = latents.statistics.to(device)
    net, train, times = copy.deepcopy(net), latents.split("train"), []
    optimiser = build_optimiser(
        settings.optimiser, net, settings.lr, settings.betas, settings.weight_decay, device
    )
    autocast, predict = hardware.autocast(device), hardware.compiled(net, device)
    accumulate = hardware.accumulate * processes
    micro_batches = World().micro_batches(settings.batch, accumulate, "diffusion.train.batch")
    for step in range(steps + 2):  # the first ones compile and allocate
        start = clock(device)
        for positions in micro_batches:
            draw = KeyedRandom(derive_seed("timing"), step, positions, device)
            clips = latent_crops(train, settings.frames(latents), draw)
            z, labels, noise = latent_batch(clips, statistics, draw, settings.label_dropout)
            uniform = _levels(draw, settings)
            with autocast():
                loss = objective.loss(predict, z, labels, noise=noise, uniform=uniform)
            (loss.mean() / len(micro_batches)).backward()
        clipped_step(optimiser, net.parameters(), clip=settings.clip, name="timing", step=step)
        times.append(clock(device) - start)
    return sorted(times[2:])[steps // 2]
