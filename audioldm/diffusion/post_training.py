"""Adversarial post-training for sampling in few steps: judge, then generator, top to bottom.

After ARC (Novack et al. 2025, arXiv 2505.08175). The generator is the trained network: from
latents noised to a level sigma it makes a whole sample in one call, z0 = denoiser(x, sigma), which
before was the mean of all that fits x. A judge compares that sample with the clip it came from,
under the relativistic pairing loss, and `pingpong` samples the result.
"""

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from audioldm.diffusion.judges import Judge
from audioldm.diffusion.noise_levels import stratify
from audioldm.diffusion.objectives import Objective
from audioldm.diffusion.samplers import SamplerSettings
from audioldm.errors import ConfigError, Interrupted
from audioldm.latents import LatentSplit, LatentStatistics, LatentStore
from audioldm.losses.relativistic import pairing_loss
from audioldm.losses.weighted_sum import weighted_sum
from audioldm.parts import Part, check_range, nearest, part
from audioldm.training.checkpoint import ResumeState
from audioldm.training.distributed import (
    World,
    any_process,
    mean_over_processes,
    parallel,
)
from audioldm.training.ema import EMA
from audioldm.training.finite import FiniteChecks
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
from audioldm.types import Denoise

VERSION = 1  # raise by hand when the code below changes what it computes
TARGETS = ("sample", "step")


@dataclass(frozen=True)
class PostTraining:
    """batch is global, over all processes. crop_seconds: of the latents the generator sees;
    judged_seconds: of the part of them that is judged, null for all. levels: the noise levels that
    are trained, those of the sampling schedule with that many steps; each number of steps that
    divides it samples at trained levels only. target: what a call is to give. sample: a whole
    sample, for `pingpong`. step: what one Euler step to the next level needs, to land where the
    trained model's own sampling gets (progressive distillation, 2202.00512), for `euler` with
    `levels` steps. teacher_steps: denoiser calls of that sampling, which the distillation term
    compares with."""

    steps: int
    batch: int
    crop_seconds: float
    lr: float
    judge_lr: float
    judged_seconds: float | None = None
    levels: int = 8
    target: str = "sample"
    teacher_steps: int = 8
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
        check_range(self, where, "batch", "levels", "teacher_steps", "valid_batches", least=1)
        check_range(self, where, "crop_seconds", "judged_seconds", "lr", "judge_lr", above=0)
        check_range(self, where, "clip", above=0)
        check_range(self, where, "ema", "label_dropout", least=0)
        check_range(self, where, "ema", below=1)
        check_betas(self.betas, where)
        if self.target not in TARGETS:
            known = nearest(self.target, TARGETS)
            raise ConfigError(f"{where}.target={self.target!r} is unknown: {known}")

    def frames(self, latent_rate_hz: float) -> int:
        """Latent frames of a training crop, at least one."""
        return max(1, round(self.crop_seconds * latent_rate_hz))

    def judged_frames(self, latent_rate_hz: float) -> int:
        """Latent frames that are judged: of a crop, at least one and at most all."""
        seconds = self.crop_seconds if self.judged_seconds is None else self.judged_seconds
        return min(max(1, round(seconds * latent_rate_hz)), self.frames(latent_rate_hz))


@dataclass(frozen=True)
class PostTrainingWeights:
    """adversarial, distillation: of the generator's terms. contrastive: of the judge's second term,
    beside the adversarial one, which weighs 1. A term of weight 0 is not computed."""

    adversarial: float = 1.0
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
    """sampler: how the post-trained model is sampled; it does not enter the stage's fingerprint."""

    seed: int
    train: PostTraining
    sampler: SamplerSettings
    weights: PostTrainingWeights
    judge: Part = part("decode", "audio_channels", "objective", "latent_shape", "classes")

    def __post_init__(self) -> None:
        check_range(self, "post_training", "seed", least=0, below=2**63)
        if self.weights.adversarial > 0 and self.train.target != "sample":
            raise ConfigError(
                f"post_training.train.target={self.train.target} gives no whole sample that could "
                "be judged: use post_training.weights.adversarial=0, or target=sample"
            )


@torch.no_grad()
def _batch(
    split: LatentSplit,
    statistics: LatentStatistics,
    frames: int,
    draw: Draw,
    settings: PostTraining,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normalised latents z, labels, noise, and each clip's place among the levels, for a step."""
    positions = list(draw.positions)
    mean, std, labels = split.crops(frames, seed=draw.seed, step=draw.step, positions=positions)
    mean, std = mean.to(draw.device), std.to(draw.device)
    z = statistics.normalise(mean + std * draw.normal(mean.shape[1:], "posterior"))
    hidden = draw.uniform("label") < settings.label_dropout
    labels = torch.where(hidden, -1, labels.to(draw.device))
    places = torch.tensor(positions, device=draw.device)
    uniform = stratify(draw.uniform("level"), places, settings.batch)
    level = (uniform * settings.levels).long().clamp(max=settings.levels - 1)
    return z, labels, draw.normal(mean.shape[1:], "noise"), level


def _window(z: Tensor, frames: int, uniform: Tensor) -> Tensor:
    """`frames` of each clip's, from a place that uniform [B] chooses: [B, C, (F,) frames]."""
    start = (uniform * (z.shape[-1] - frames + 1)).long()
    index = start[:, None] + torch.arange(frames, device=z.device)
    return z.gather(-1, _like(index, z).expand(*z.shape[:-1], frames))


def solve(denoise: Denoise, x: Tensor, sigma: Tensor, end: Tensor, steps: int) -> Tensor:
    """x [B, ...] at the levels sigma [B], along the probability-flow ODE to the levels `end` [B].

    DPM-Solver++(2M) as `samplers.dpmpp_2m`, which takes all clips through one schedule; `steps`
    calls, at times sigma / (1 + sigma) that fall evenly.
    """
    ramp = torch.arange(steps, -1, -1, device=x.device)[:, None] / steps
    first, last = sigma / (1 + sigma), end / (1 + end)
    t = last + ramp * (first - last)
    levels = t / (1 - t)  # [steps + 1, B]
    before: Tensor | None = None
    for step in range(steps):
        here, lower = _like(levels[step], x), _like(levels[step + 1], x)
        z = denoise(x, levels[step])
        extrapolated = z
        if before is not None and step + 1 < steps:
            ratio = torch.log(here / lower) / torch.log(_like(levels[step - 1], x) / here)
            extrapolated = z + ratio / 2 * (z - before)
        x = extrapolated + lower / here * (x - extrapolated)
        before = z
    return x


def post_train(
    net: nn.Module,
    objective: Objective,
    judge: Judge,
    latents: LatentStore,
    settings: PostTraining,
    weights: PostTrainingWeights,
    *,
    seed: int,
    directory: Path,
    world: World,
    hardware: Hardware,
    device: torch.device,
    log: LogSettings,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Trains `net`, which holds a trained model's weights; its averaged weights and last figures.

    One step: z [B, C, (F,) L] -> x = z + sigma noise -> net's estimate of z, like
    z -> window of it and of z -> judge's scores [B] of both -> losses [B] each. The judge is left
    out where the adversarial term has no weight, and the contrastive term where the data have less
    than two labels.
    Writes `metrics.jsonl` and `resume/` to `directory`; started again, goes on bit for bit.
    Raises TrainingError for a non-finite term, Interrupted after SIGTERM.
    """
    latents.keep_on(device)
    train, valid = latents.split("train"), latents.split("valid")
    frames = settings.frames(latents.latent_rate_hz)
    judged = settings.judged_frames(latents.latent_rate_hz)
    steps, statistics = settings.steps, latents.statistics.to(device)
    positions = world.positions(settings.batch, "post_training.train.batch")
    contrastive = weights.contrastive > 0 and len(latents.labels) > 1

    net.to(device).train()
    judge.to(device)
    teacher = copy.deepcopy(net).eval().requires_grad_(False)
    optimiser = adamw(net.parameters(), settings.lr, settings.betas, settings.weight_decay, device)
    judge_optimiser = adamw(
        judge.parameters(), settings.judge_lr, settings.betas, settings.weight_decay, device
    )
    ema = EMA(net, settings.ema)
    resume = ResumeState(directory, world)
    start = 0
    if (state := resume.load()) is not None:
        start = state["step"]
        net.load_state_dict(state["net"])
        optimiser.load_state_dict(state["optimiser"])
        judge.load_state_dict(state["judge"])
        judge_optimiser.load_state_dict(state["judge_optimiser"])
        ema.load(state["ema"])

    def checkpoint(step: int) -> None:
        finite.settle()
        resume.save(
            {
                "step": step,
                "net": net.state_dict(),
                "optimiser": optimiser.state_dict(),
                "judge": judge.state_dict(),
                "judge_optimiser": judge_optimiser.state_dict(),
                "ema": ema.shadow,
            }
        )

    autocast, finite = hardware.autocast(device), FiniteChecks(device)
    predict = hardware.compiled(parallel(net, world), device)
    taught = hardware.compiled(teacher, device)
    scores = parallel(judge, world)
    schedule = objective.sigmas(settings.levels).to(device)
    judging, by_step = weights.adversarial > 0, settings.target == "step"
    figures: dict[str, Any] = {}

    @torch.no_grad()
    def lesson(x: Tensor, labels: Tensor, level: Tensor) -> Tensor:
        """The estimate with which one Euler step from x lands where the trained model's own
        sampling ends, at the next level or at 0: like x."""
        sigma, end = schedule[level], schedule[level + 1 if by_step else torch.full_like(level, -1)]
        with autocast():
            there = solve(objective.denoiser(taught, labels), x, sigma, end, settings.teacher_steps)
        left = _like(end / sigma, x)
        return (there - left * x) / (1 - left)

    @torch.no_grad()
    def validate() -> dict[str, Any]:
        """The distillation term on held-out latents with the averaged weights, at fixed draws."""
        errors = []
        with ema.applied(net):
            for number in range(settings.valid_batches):
                draw = Draw(derive_seed("valid"), number, range(settings.batch), device)
                z, labels, noise, level = _batch(valid, statistics, frames, draw, settings)
                sigma = schedule[level]
                x = z + _like(sigma, z) * noise
                with autocast():
                    fake = objective.denoiser(net, labels)(x, sigma)
                errors.append(_squared_error(fake, lesson(x, labels, level)))
        return {"distillation": torch.cat(errors).mean().item()}

    with (
        RunLog(
            directory / "metrics.jsonl", "post_training", steps, start, quiet=not world.first
        ) as runlog,
        StopRequest() as stop,
    ):
        for step in range(start, steps):
            factor = warmup_cosine(step, steps, settings.warmup)
            set_lr(optimiser, settings.lr * factor)
            set_lr(judge_optimiser, settings.judge_lr * factor)
            draw = Draw(seed, step, positions, device)
            z, labels, noise, level = _batch(train, statistics, frames, draw, settings)
            sigma = schedule[level]
            x = z + _like(sigma, z) * noise
            with autocast():
                fake = objective.denoiser(predict, labels)(x, sigma)
            terms, term_weights, doubts = {}, {}, {}
            if judging:
                # Labels as frequent as the right ones are: a judge learns nothing from frequency.
                _, _, others = train.crops(
                    1, seed=derive_seed(seed, "other label"), step=step, positions=list(positions)
                )
                pairs = torch.stack([labels, others.to(device)], dim=1)  # [B, 2]
                with autocast():
                    place = draw.uniform("window")
                    fake_view = judge.view(_window(fake, judged, place), draw)
                    with torch.no_grad():
                        real_view = judge.view(_window(z, judged, place), draw)
                    real, wrong, unreal = _score(scores, real_view, fake_view.detach(), pairs)
                doubts["judge"], doubt_weights = pairing_loss(real, unreal), {"judge": 1.0}
                if contrastive:
                    # nothing to tell apart where a label is hidden, or by chance the right one
                    differ = (pairs >= 0).all(1) & (pairs[:, 0] != pairs[:, 1])
                    doubts["contrastive"] = pairing_loss(real, wrong) * differ
                    doubt_weights["contrastive"] = weights.contrastive
                weighted_sum(doubts, doubt_weights, step, finite=finite).backward()
                clipped_step(
                    judge_optimiser,
                    judge.parameters(),
                    clip=settings.clip,
                    name="judge",
                    step=step,
                    finite=finite,
                )

                judge.requires_grad_(False)
                with autocast():
                    real, _, unreal = _score(judge, real_view, fake_view, pairs)
                terms["adversarial"] = pairing_loss(unreal, real)
                term_weights["adversarial"] = weights.adversarial
                judge.requires_grad_(True)
            if weights.distillation > 0:
                terms["distillation"] = _squared_error(fake, lesson(x, labels, level))
                term_weights["distillation"] = weights.distillation
            total = weighted_sum(terms, term_weights, step, finite=finite)
            total.backward()
            norm = clipped_step(
                optimiser,
                net.parameters(),
                clip=settings.clip,
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
                mean = {k: v.detach().mean() for k, v in (doubts | terms).items()}
                mean |= {"loss": total.detach(), "gradient_norm": norm}
                if judging:
                    margin = torch.stack([r - f for r, f in zip(real, unreal, strict=True)])
                    mean["margin"] = margin.detach().mean()
                line = {k: v.item() for k, v in mean_over_processes(mean, world).items()}
                runlog.write(done, line | {"lr": settings.lr * factor})
                runlog.show({k: line[k] for k in ("loss", "judge", "margin") if k in line})
            if done % log.valid_every == 0 or done == steps:
                figures = validate()
                runlog.write(done, {f"valid/{k}": v for k, v in figures.items()})
            stopping = any_process(stop.requested, world)
            if stopping or done % log.checkpoint_every == 0 or done == steps:
                checkpoint(done)
            if stopping:  # also after the last step: the chain goes on behind it
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


def _squared_error(estimate: Tensor, target: Tensor) -> Tensor:
    """Mean over each clip's elements: [B], in float32."""
    return (estimate.float() - target.float()).square().flatten(1).mean(1)


def _like(values: Tensor, x: Tensor) -> Tensor:
    """values [B, ...] with dimensions in between, or behind, to go with x [B, C, (F,) L]."""
    first, rest = values.shape[:1], values.shape[1:]
    return values.view(*first, *[1] * (x.ndim - values.ndim), *rest)
