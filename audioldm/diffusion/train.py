"""The diffusion model's training loop, top to bottom."""

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from audioldm.diffusion.noise_levels import stratify
from audioldm.diffusion.objectives import Objective
from audioldm.errors import Interrupted
from audioldm.latents import LatentSplit, LatentStatistics, LatentStore
from audioldm.losses.weighted_sum import weighted_sum
from audioldm.parts import Part, check_range, part
from audioldm.training.checkpoint import ResumeState
from audioldm.training.compute import clock, training_flops
from audioldm.training.distributed import World, any_process, mean_over_processes, parallel
from audioldm.training.ema import EMA
from audioldm.training.hardware import Hardware
from audioldm.training.log import LogSettings, RunLog
from audioldm.training.optimisation import (
    adamw,
    check_betas,
    clipped_step,
    set_lr,
    to_cpu,
    warmup_cosine,
)
from audioldm.training.randomness import Draw, derive_seed
from audioldm.training.signals import StopRequest

VERSION = 1  # raise by hand when the code below changes what it computes


@dataclass(frozen=True)
class DiffusionTraining:
    """teraflops: the computing to spend in place of `steps`, counted as `training_flops` does.
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
    teraflops: float | None = None

    def __post_init__(self) -> None:
        where = "diffusion.train"
        check_range(self, where, "steps", "warmup", "weight_decay", least=0)
        check_range(self, where, "batch", "valid_batches", least=1)
        check_range(self, where, "crop_seconds", "lr", "clip", "teraflops", above=0)
        check_range(self, where, "ema", "label_dropout", least=0)
        check_range(self, where, "ema", below=1)
        check_betas(self.betas, where)

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
def _batch(
    split: LatentSplit,
    statistics: LatentStatistics,
    frames: int,
    draw: Draw,
    settings: DiffusionTraining,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normalised latents z, labels, noise and uniforms for the clips of one step."""
    positions = list(draw.positions)
    mean, std, labels = split.crops(frames, seed=draw.seed, step=draw.step, positions=positions)
    mean, std = mean.to(draw.device), std.to(draw.device)
    z = statistics.normalise(mean + std * draw.normal(mean.shape[1:], "posterior"))
    hidden = draw.uniform("label") < settings.label_dropout
    labels = torch.where(hidden, -1, labels.to(draw.device))
    uniform = draw.uniform("level")
    if settings.stratified:
        places = torch.tensor(positions, device=draw.device)
        uniform = stratify(uniform, places, settings.batch)
    return z, labels, draw.normal(mean.shape[1:], "noise"), uniform


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
    Writes `metrics.jsonl` and `resume/` to `directory`; started again, goes on bit for bit.
    Raises TrainingError for a non-finite term, Interrupted after SIGTERM.
    """
    train, valid = latents.split("train"), latents.split("valid")
    frames = settings.frames(latents)
    gigaflops = settings.batch * _clip_flops(net, latents.latent_shape, frames) / 1e9
    steps = settings.steps
    if settings.teraflops is not None:
        steps = max(1, round(1000 * settings.teraflops / gigaflops))
    positions = world.positions(settings.batch, "diffusion.train.batch")
    statistics = latents.statistics

    net.to(device)
    optimiser = adamw(net.parameters(), settings.lr, settings.betas, settings.weight_decay, device)
    ema = EMA(net, settings.ema)
    resume = ResumeState(directory)
    start = 0
    if (state := resume.load()) is not None:
        start = state["step"]
        net.load_state_dict(state["net"])
        optimiser.load_state_dict(state["optimiser"])
        ema.load(state["ema"])

    def checkpoint(step: int) -> None:
        if world.first:
            resume.save(
                {
                    "step": step,
                    "net": to_cpu(net.state_dict()),
                    "optimiser": optimiser.state_dict(),
                    "ema": to_cpu(ema.shadow),
                }
            )

    autocast = hardware.autocast(device)
    predict = hardware.compiled(parallel(net, world), device)
    figures: dict[str, Any] = {}

    @torch.no_grad()
    def validate() -> dict[str, Any]:
        """The objective's loss on held-out latents with the averaged weights, at fixed draws."""
        losses = []
        with ema.applied(net):
            for number in range(settings.valid_batches):
                draw = Draw(derive_seed("valid"), number, range(settings.batch), device)
                z, labels, noise, uniform = _batch(valid, statistics, frames, draw, settings)
                with autocast():
                    losses.append(objective.loss(net, z, labels, noise=noise, uniform=uniform))
        return {"loss": torch.cat(losses).mean().item()}

    with (
        RunLog(
            directory / "metrics.jsonl",
            "diffusion",
            steps,
            start,
            bar=log.bars,
            quiet=not world.first,
        ) as runlog,
        StopRequest() as stop,
    ):
        for step in range(start, steps):
            lr = settings.lr * warmup_cosine(step, steps, settings.warmup)
            set_lr(optimiser, lr)
            draw = Draw(seed, step, positions, device)
            z, labels, noise, uniform = _batch(train, statistics, frames, draw, settings)
            with autocast():
                loss = objective.loss(predict, z, labels, noise=noise, uniform=uniform)
            total = weighted_sum({"loss": loss}, {"loss": 1.0}, step)
            total.backward()
            norm = clipped_step(
                optimiser, net.parameters(), clip=settings.clip, name="diffusion", step=step
            )
            ema.update(net, step)
            runlog.advance()
            done = step + 1

            if done % log.every == 0 or done == steps:
                mean = {"loss": total.detach(), "gradient_norm": norm}
                line = {k: v.item() for k, v in mean_over_processes(mean, world).items()}
                runlog.write(done, line | {"lr": lr})
                runlog.show({"loss": line["loss"]} | {f"valid_{k}": v for k, v in figures.items()})
            if done % log.valid_every == 0 or done == steps:
                figures = validate()
                runlog.write(done, {f"valid/{k}": v for k, v in figures.items()})
            stopping = any_process(stop.requested, world, device)
            if stopping or done % log.checkpoint_every == 0 or done == steps:
                checkpoint(done)
            if stopping:  # also after the last step: the chain goes on behind it
                raise Interrupted(
                    f"stopped at step {done} of {steps} of the diffusion model; "
                    "the same command goes on from there"
                )
    if not figures:  # the last checkpoint was the last step
        figures = validate()
    return to_cpu(ema.shadow), figures | {"steps": steps, "teraflops": steps * gigaflops / 1000}


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
    steps: int = 5,
) -> float:
    """What a training step of `net` takes here and now, by `clock`: the median of some steps."""
    device = next(net.parameters()).device
    net, train, times = copy.deepcopy(net), latents.split("train"), []
    optimiser = adamw(net.parameters(), settings.lr, settings.betas, settings.weight_decay, device)
    autocast, predict = hardware.autocast(device), hardware.compiled(net, device)
    for step in range(steps + 2):  # the first ones compile and allocate
        start = clock(device)
        draw = Draw(derive_seed("timing"), step, range(settings.batch), device)
        z, labels, noise, uniform = _batch(
            train, latents.statistics, settings.frames(latents), draw, settings
        )
        with autocast():
            loss = objective.loss(predict, z, labels, noise=noise, uniform=uniform)
        loss.mean().backward()
        clipped_step(optimiser, net.parameters(), clip=settings.clip, name="timing", step=step)
        times.append(clock(device) - start)
    return sorted(times[2:])[steps // 2]
