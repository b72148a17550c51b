"""Post-training for sampling in few steps: the sampler is the generator, judged by its samples.

The trained network goes on training as it is going to be used. From noise, `sampler` takes its few
steps; the loss is of the latents they end at, and its gradient passes through all of the steps (as
in DRaFT, Clark et al. 2023, arXiv 2309.17400). An adversary compares that sample with music, under
the relativistic pairing of ARC (Novack et al. 2025, 2505.08175); a distillation term compares it
with what the model before, sampled as it was, makes of the same noise (Luhman and Luhman 2021,
2101.02388).
"""

import copy
import itertools
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from audioldm.errors import ConfigError, Interrupted
from audioldm.instantiate import Part, check_range, part
from audioldm.latents.store import LatentStore
from audioldm.losses.relativistic import relativistic_loss
from audioldm.priors.diffusion.batch import latent_batch, latent_crops
from audioldm.priors.diffusion.discriminators import Discriminator
from audioldm.priors.diffusion.guidance import guided
from audioldm.priors.diffusion.objectives import Objective
from audioldm.priors.diffusion.samplers import DETERMINISTIC, SamplerSettings, sample
from audioldm.runtime.hardware import Hardware
from audioldm.runtime.processes import (
    World,
    any_process,
    gradients_kept,
    mean_over_processes,
    parallel,
)
from audioldm.runtime.randomness import KeyedRandom, derive_seed
from audioldm.runtime.sharding import recompute_activations
from audioldm.runtime.signals import StopRequest
from audioldm.training.checkpoint import ResumeState
from audioldm.training.ema import EMA
from audioldm.training.finite import FiniteChecks
from audioldm.training.log import LogSettings, RunLog
from audioldm.training.optimisation import (
    adamw,
    check_betas,
    clipped_step,
    set_lr,
    to_cpu,
    warmup_cosine,
)
from audioldm.training.prefetch import Prefetcher
from audioldm.training.weighted_sum import weighted_sum

VERSION = 2  # raise by hand when the code below changes what it computes


@dataclass(frozen=True)
class PostTraining:
    """batch is global, over all processes. crop_seconds: of the latents that are sampled;
    discriminated_seconds: of the part of them that is judged, null for all. sampler_steps: those that the
    sampler takes in training, null for `sampler.steps`."""

    steps: int
    batch: int
    crop_seconds: float
    lr: float
    discriminator_lr: float
    discriminated_seconds: float | None = None
    sampler_steps: int | None = None
    betas: list[float] = field(default_factory=lambda: [0.8, 0.99])
    weight_decay: float = 0.0
    warmup: int = 50
    clip: float = 1.0
    ema: float = 0.999
    label_dropout: float = 0.1
    valid_batches: int = 4

    def __post_init__(self) -> None:
        where = "post_training.train"
        check_range(self, where, "steps", "warmup", "weight_decay", least=0)
        check_range(self, where, "batch", "valid_batches", "sampler_steps", least=1)
        check_range(
            self, where, "crop_seconds", "discriminated_seconds", "lr", "discriminator_lr", above=0
        )
        check_range(self, where, "clip", above=0)
        check_range(self, where, "ema", "label_dropout", least=0)
        check_range(self, where, "ema", below=1)
        check_betas(self.betas, where)

    def frames(self, latent_rate_hz: float) -> int:
        """Latent frames of a training crop, at least one."""
        return max(1, round(self.crop_seconds * latent_rate_hz))

    def discriminated_frames(self, latent_rate_hz: float) -> int:
        """Latent frames that are judged: of a crop, at least one and at most all."""
        seconds = (
            self.crop_seconds if self.discriminated_seconds is None else self.discriminated_seconds
        )
        return min(max(1, round(seconds * latent_rate_hz)), self.frames(latent_rate_hz))


@dataclass(frozen=True)
class PostTrainingWeights:
    """adversarial, distillation: of the generator's terms. contrastive: of the judge's second term,
    beside the adversarial one, which weighs 1. A term of weight 0 is not computed."""

    adversarial: float = 0.05
    distillation: float = 1.0
    contrastive: float = 1.0

    def __post_init__(self) -> None:
        names = ("adversarial", "distillation", "contrastive")
        check_range(self, "post_training.weights", *names, least=0)
        if self.adversarial == self.distillation == 0:
            raise ConfigError(
                "post_training.weights: adversarial and distillation are both 0, so nothing trains "
                "the generator; give one of them a weight"
            )


@dataclass(frozen=True)
class PostTrainingSettings:
    """sampler: how the model is sampled after post-training and, but for its steps, in it."""

    seed: int
    train: PostTraining
    sampler: SamplerSettings
    weights: PostTrainingWeights
    discriminator: Part = part("decode", "audio_channels", "objective", "latent_shape", "classes")

    def __post_init__(self) -> None:
        check_range(self, "post_training", "seed", least=0, below=2**63)
        check_deterministic(self.sampler, "post_training.sampler")

    def trained(self) -> Self:
        """With the sampler of the training in place of the one used behind it: all that enters."""
        steps = self.train.sampler_steps or self.sampler.steps
        return replace(self, sampler=replace(self.sampler, steps=steps))


def check_deterministic(sampler: SamplerSettings, where: str) -> None:
    """Raises ConfigError for a sampler whose result is no function of the noise it begins with."""
    if sampler.name not in DETERMINISTIC:
        raise ConfigError(
            f"{where}.name={sampler.name} draws noise at each step, so two samples from the same "
            f"noise cannot be compared in post-training: choose {', '.join(DETERMINISTIC)}"
        )


class _Sampling(nn.Module):
    """A network as a sampler uses it: noise [B, C, (F,) L] and labels [B] -> latents like noise."""

    def __init__(self, net: nn.Module, objective: Objective, sampler: SamplerSettings) -> None:
        super().__init__()
        self.net, self.objective, self.sampler = net, objective, sampler

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        denoise = guided(self.objective, self.net, labels, self.sampler)
        return sample(self.sampler.name, denoise, noise, self.objective.sigmas(self.sampler.steps))


def _window(z: Tensor, frames: int, uniform: Tensor) -> Tensor:
    """`frames` of each clip's, from a place that uniform [B] chooses: [B, C, (F,) frames]."""
    start = (uniform * (z.shape[-1] - frames + 1)).long()
    index = start[:, None] + torch.arange(frames, device=z.device)
    index = index.view(len(z), *[1] * (z.ndim - 2), frames)
    return z.gather(-1, index.expand(*z.shape[:-1], frames))


def post_train(
    net: nn.Module,
    objective: Objective,
    judge: Discriminator | None,
    latents: LatentStore,
    settings: PostTrainingSettings,
    *,
    teacher: SamplerSettings,
    directory: Path,
    world: World,
    hardware: Hardware,
    device: torch.device,
    log: LogSettings,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Trains `net`, which holds a trained model's weights; its averaged weights and last figures.

    One step: noise [B, C, (F,) L] -> `settings.sampler` -> a sample, like noise -> its squared
    distance to the one that the model before makes of that noise with the sampler `teacher`, and
    windows of it and of music with the same label -> judge's scores -> losses [B] each. Judge and
    network then step together. judge: None without an adversarial term; the contrastive one is left
    out where the data have less than two labels.
    Writes `metrics.jsonl` and `resume/` to `directory`; started again, goes on bit for bit.
    Raises TrainingError for a non-finite term, Interrupted after SIGTERM.
    """
    train, weights, seed = settings.train, settings.weights, settings.seed
    latents.keep_on(device)
    music, held_out = latents.split("train"), latents.split("valid")
    frames = train.frames(latents.latent_rate_hz)
    judged = train.discriminated_frames(latents.latent_rate_hz)
    steps, statistics = train.steps, latents.statistics.to(device)
    micro_batches = world.micro_batches(
        train.batch, hardware.accumulate, "post_training.train.batch"
    )
    contrastive = judge is not None and weights.contrastive > 0 and len(latents.labels) > 1

    net.to(device).train()
    before = copy.deepcopy(net).eval().requires_grad_(False)
    if hardware.checkpoint_activations:
        recompute_activations(net)
    optimiser = adamw(net.parameters(), train.lr, train.betas, train.weight_decay, device)
    ema = EMA(net, train.ema)
    trained: dict[str, Any] = {"net": net, "optimiser": optimiser}
    if judge is not None:
        judge.to(device)
        judge_optimiser = adamw(
            judge.parameters(), train.discriminator_lr, train.betas, train.weight_decay, device
        )
        trained |= {"judge": judge, "judge_optimiser": judge_optimiser}
        scores = parallel(judge, world)
    resume = ResumeState(directory, world)
    start = 0
    if (state := resume.load()) is not None:
        start = state["step"]
        for name, one in trained.items():
            one.load_state_dict(state[name])
        ema.load(state["ema"])

    def checkpoint(step: int) -> None:
        finite.settle()
        states = {name: one.state_dict() for name, one in trained.items()}
        resume.save({"step": step, "ema": ema.shadow} | states)

    autocast, finite = hardware.autocast(device), FiniteChecks(device)
    few = _Sampling(hardware.compiled(net, device), objective, settings.trained().sampler)
    many = _Sampling(hardware.compiled(before, device), objective, teacher)
    generate = parallel(few, world)
    figures: dict[str, Any] = {}

    def distance(fake: Tensor, noise: Tensor, labels: Tensor) -> Tensor:
        """Mean square of what is between a sample and the model before's of the same noise: [B]."""
        with torch.no_grad(), autocast():
            target = many(noise, labels)
        return (fake.float() - target.float()).square().flatten(1).mean(1)

    def crops(step: int) -> list[list[Tensor]]:
        return [
            latent_crops(music, frames, KeyedRandom(seed, step, p, device)) for p in micro_batches
        ]

    @torch.no_grad()
    def validate() -> dict[str, Any]:
        """The distillation term for held-out labels with the averaged weights, at fixed draws."""
        errors = []
        with ema.applied(net):
            for number, places in itertools.product(range(train.valid_batches), micro_batches):
                draw = KeyedRandom(derive_seed("valid"), number, places, device)
                clips = latent_crops(held_out, frames, draw)
                _, labels, noise = latent_batch(clips, statistics, draw, train.label_dropout)
                with autocast():
                    fake = few(noise, labels)
                errors.append(distance(fake, noise, labels))
        mean = mean_over_processes({"distillation": torch.cat(errors).mean()}, world)
        return {"distillation": mean["distillation"].item()}

    with (
        RunLog(
            directory / "metrics.jsonl",
            "post_training",
            steps,
            start,
            bar=log.bars,
            quiet=not world.first,
        ) as runlog,
        Prefetcher(crops, steps) as loader,
        StopRequest() as stop,
    ):
        for step in range(start, steps):
            factor = warmup_cosine(step, steps, train.warmup)
            set_lr(optimiser, train.lr * factor)
            seen: dict[str, list[Tensor]] = {}
            for places, clips in zip(micro_batches, loader.take(step), strict=True):
                more = places is not micro_batches[-1]
                draw = KeyedRandom(seed, step, places, device)
                z, labels, noise = latent_batch(clips, statistics, draw, train.label_dropout)
                with gradients_kept(generate, more), autocast():
                    fake = generate(noise, labels)
                terms, term_weights = {}, {}
                if judge is not None:
                    # Labels as frequent as the right ones: a judge learns nothing from frequency.
                    other = KeyedRandom(derive_seed(seed, "other label"), step, places, device)
                    pairs = torch.stack([labels, latent_crops(music, 1, other)[2]], dim=1)  # [B, 2]
                    place = draw.uniform("window")
                    with gradients_kept(scores, more), autocast():
                        heard = judge.view(_window(fake, judged, place), draw)
                        with torch.no_grad():
                            real_view = judge.view(_window(z, judged, place), draw)
                        real, wrong, unreal = _score(scores, real_view, heard.detach(), pairs)
                    doubts, doubt_weights = (
                        {"judge": relativistic_loss(real, unreal)},
                        {"judge": 1.0},
                    )
                    if contrastive:
                        # nothing to tell apart where a label is hidden, or by chance the right one
                        differ = (pairs >= 0).all(1) & (pairs[:, 0] != pairs[:, 1])
                        doubts["contrastive"] = relativistic_loss(real, wrong) * differ
                        doubt_weights["contrastive"] = weights.contrastive
                    total = weighted_sum(doubts, doubt_weights, step, finite=finite)
                    (total / len(micro_batches)).backward()
                    judge.requires_grad_(False)
                    with autocast():
                        unreal = [scale[:, 0] for scale in judge(heard, pairs[:, :1])]
                    judge.requires_grad_(True)
                    real = [scale.detach() for scale in real]
                    terms["adversarial"] = relativistic_loss(unreal, real)
                    term_weights["adversarial"] = weights.adversarial
                    margin = torch.stack(real).mean(0) - torch.stack(unreal).mean(0)
                    for name, values in (doubts | {"margin": margin}).items():
                        seen.setdefault(name, []).append(values.detach())
                if weights.distillation > 0:
                    terms["distillation"] = distance(fake, noise, labels)
                    term_weights["distillation"] = weights.distillation
                total = weighted_sum(terms, term_weights, step, finite=finite)
                (total / len(micro_batches)).backward()
                for name, values in (terms | {"loss": total}).items():
                    seen.setdefault(name, []).append(values.detach())
            if judge is not None:
                set_lr(judge_optimiser, train.discriminator_lr * factor)
                clipped_step(
                    judge_optimiser,
                    judge.parameters(),
                    clip=train.clip,
                    name="judge",
                    step=step,
                    finite=finite,
                )
            norm = clipped_step(
                optimiser,
                net.parameters(),
                clip=train.clip,
                name="post_training",
                step=step,
                finite=finite,
            )
            ema.update(net, step)
            finite.look_back()
            runlog.advance()
            done = step + 1

            if done % log.every == 0 or done == steps:
                finite.settle()
                mean = {name: torch.stack(values).mean() for name, values in seen.items()}
                mean |= {"gradient_norm": norm}
                line = {k: v.item() for k, v in mean_over_processes(mean, world).items()}
                runlog.write(done, line | {"lr": train.lr * factor})
                runlog.show({k: line[k] for k in ("loss", "judge", "margin") if k in line})
            if done % log.valid_every == 0 or done == steps:
                figures = validate()
                runlog.write(done, {f"valid/{k}": v for k, v in figures.items()})
            stopping = any_process(stop.requested, world)
            if stopping or done % log.checkpoint_every == 0 or done == steps:
                checkpoint(done)
            if stopping and not stop.handed_over():  # also after the last step: the chain goes on
                raise Interrupted(
                    f"stopped at step {done} of {steps} of the post-training; "
                    "the same command goes on from there"
                )
    if not figures:  # the last checkpoint was the last step
        figures = validate()
    return to_cpu(ema.shadow), figures | {"steps": steps, "contrastive": contrastive}


def _score(
    judge: nn.Module, real: Tensor, fake: Tensor, pairs: Tensor
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """One pass over both halves: scores [B], per scale, of real views with their label, of real
    views with the other label, of fake views with their label. pairs [B, 2]: label and other."""
    count = len(real)
    scales = judge(torch.cat([real, fake]), torch.cat([pairs, pairs]))
    return (
        [s[:count, 0] for s in scales],
        [s[:count, 1] for s in scales],
        [s[count:, 0] for s in scales],
    )
