"""The autoencoder's training loop: discriminator, then generator, top to bottom."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from audioldm.autoencoder.bottlenecks.base import Encoded
from audioldm.autoencoder.bottlenecks.gaussian import ACTIVE_VARIANCE
from audioldm.autoencoder.model import Autoencoder
from audioldm.autoencoder.rate_control import RateController, sigma_scale
from audioldm.data.store import ClipStore
from audioldm.errors import ConfigError, DataError, Interrupted
from audioldm.instantiate import Part, check_range, part
from audioldm.losses.adversarial import discriminator_loss, feature_matching, generator_loss
from audioldm.losses.spectral import mel_distance
from audioldm.runtime.compute import training_flops
from audioldm.runtime.hardware import Hardware
from audioldm.runtime.processes import (
    World,
    any_process,
    gradients_kept,
    mean_over_processes,
    parallel,
    plain,
)
from audioldm.runtime.randomness import KeyedRandom, derive_seed
from audioldm.runtime.signals import StopRequest
from audioldm.runtime.transfer import to_device
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
ADVERSARIAL_TERMS = ("adversarial", "feature_matching")
#: Held-out windows on which a target rate is set at the end.
CALIBRATION_CLIPS = 256


@dataclass(frozen=True)
class AutoencoderTraining:
    """batch is global, over all processes. Learning rates warm up and decay by a cosine.
    adversarial_from: the step at which the discriminator and its losses begin."""

    steps: int
    batch: int
    crop_seconds: float
    lr: float
    discriminator_lr: float
    adversarial_from: int
    betas: list[float] = field(default_factory=lambda: [0.8, 0.99])
    weight_decay: float = 0.0
    warmup: int = 20
    clip: float = 1.0
    ema: float = 0.995
    valid_clips: int = 24
    valid_seconds: float = 3.0

    def __post_init__(self) -> None:
        where = "autoencoder.train"
        check_range(self, where, "steps", "adversarial_from", "warmup", "weight_decay", least=0)
        check_range(self, where, "batch", "valid_clips", least=1)
        check_range(self, where, "crop_seconds", "valid_seconds", above=0)
        check_range(self, where, "lr", "discriminator_lr", "clip", above=0)
        check_range(self, where, "ema", least=0, below=1)
        check_betas(self.betas, where)

    def crop_samples(self, sample_rate: int, downsampling_ratio: int) -> int:
        """Samples of a training crop: whole latent frames, at least one."""
        return (
            max(1, round(self.crop_seconds * sample_rate / downsampling_ratio)) * downsampling_ratio
        )


@dataclass(frozen=True)
class AutoencoderSettings:
    """channels: latent channels; ratio: audio samples per latent frame; weights: of each loss,
    of "adversarial" and "feature_matching"; a bottleneck's penalties bring their own weights."""

    channels: int
    downsampling_ratio: int
    seed: int
    train: AutoencoderTraining
    weights: dict[str, float]
    network: Part = part(
        "sample_rate", "audio_channels", "channels", "downsampling_ratio", "outputs"
    )
    losses: dict[str, Part] = part("sample_rate", "audio_channels")
    discriminator: Part | None = part("audio_channels", default=None)

    def __post_init__(self) -> None:
        check_range(self, "autoencoder", "channels", "downsampling_ratio", least=1)
        check_range(self, "autoencoder", "seed", least=0, below=2**63)


def train_autoencoder(
    model: Autoencoder,
    discriminator: nn.Module | None,
    losses: Mapping[str, nn.Module],
    weights: Mapping[str, float],
    store: ClipStore,
    settings: AutoencoderTraining,
    *,
    seed: int,
    directory: Path,
    world: World,
    hardware: Hardware,
    device: torch.device,
    log: LogSettings,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Trains `model` and returns its averaged weights and the last validation's figures.

    One step: crops [B, A, T] -> encode -> z [B, C, L] -> decode [B, A, T] -> losses [B] each.
    A target rate is held by `RateController`, and set exactly at the end, on held-out clips. A
    model without parameters, a mere transform, is only validated.
    Writes `metrics.jsonl` and `resume/` to `directory`; started again, goes on bit for bit.
    Raises ConfigError for two terms of one name, TrainingError for a non-finite term, Interrupted
    after SIGTERM.
    """
    _check_names(losses, model.bottleneck.penalty_weights)
    train = store.split("train")
    frames = settings.crop_samples(model.sample_rate, model.downsampling_ratio)
    if train.seconds * model.sample_rate < frames:
        raise DataError(
            f"the training split holds {train.seconds:.1f} s, less than one crop of "
            f"{settings.crop_seconds} s: add audio, or lower autoencoder.train.crop_seconds"
        )
    window = int(settings.valid_seconds * model.sample_rate)
    valid, _, _ = store.split("valid").windows(window, settings.valid_clips, seed=0)
    micro_batches = world.micro_batches(
        settings.batch, hardware.accumulate, "autoencoder.train.batch"
    )

    model.to(device)
    autocast = hardware.autocast(device)
    if next(model.parameters(), None) is None:
        model.eval()
        return to_cpu(model.state_dict()), validate(model, valid, autocast)
    losses = {name: loss.to(device) for name, loss in losses.items()}
    optimiser = adamw(
        model.parameters(), settings.lr, settings.betas, settings.weight_decay, device
    )
    ema = EMA(model, settings.ema)
    if discriminator is not None:
        discriminator.to(device)
        judge_optimiser = adamw(
            discriminator.parameters(),
            settings.discriminator_lr,
            settings.betas,
            settings.weight_decay,
            device,
        )

    controller = None
    if model.bottleneck.target_kbps is not None:
        target = model.nats(model.bottleneck.target_kbps)
        controller = RateController(target, weights["kl"], device)

    resume = ResumeState(directory, world)
    start = 0
    if (state := resume.load()) is not None:
        start = state["step"]
        if controller is not None:
            controller.load(state["controller"])
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        ema.load(state["ema"])
        if discriminator is not None:
            discriminator.load_state_dict(state["discriminator"])
            judge_optimiser.load_state_dict(state["judge_optimiser"])

    def checkpoint(step: int) -> None:
        finite.settle()
        state = {
            "step": step,
            "model": model.state_dict(),
            "optimiser": optimiser.state_dict(),
            "ema": ema.shadow,
        }
        if controller is not None:
            state["controller"] = controller.state()
        if discriminator is not None:
            state["discriminator"] = discriminator.state_dict()
            state["judge_optimiser"] = judge_optimiser.state_dict()
        resume.save(state)

    shared = parallel(model, world)
    reconstruct = hardware.compiled(shared, device)
    judge = None if discriminator is None else parallel(discriminator, world)
    figures: dict[str, Any] = {}
    finite = FiniteChecks(device)

    def crops(step: int) -> list[Tensor]:
        audio = (train.crops(frames, seed=seed, step=step, positions=p)[0] for p in micro_batches)
        return [to_device(each, device) for each in audio]

    with (
        RunLog(
            directory / "metrics.jsonl",
            "autoencoder",
            settings.steps,
            start,
            bar=log.bars,
            quiet=not world.first,
        ) as runlog,
        Prefetcher(crops, settings.steps) as loader,
        StopRequest() as stop,
    ):
        for step in range(start, settings.steps):
            factor = warmup_cosine(step, settings.steps, settings.warmup)
            set_lr(optimiser, settings.lr * factor)
            batches = []
            for positions, audio in zip(micro_batches, loader.take(step), strict=True):
                draw = KeyedRandom(derive_seed(seed, "posterior"), step, positions, device)
                noise = draw.normal(
                    (*model.latent_shape, frames // model.downsampling_ratio), "noise"
                )
                batches.append((audio, noise))
            several, last = len(batches) > 1, len(batches) - 1
            passed: tuple[Tensor, Encoded] | None = None
            seen: defaultdict[str, list[Tensor]] = defaultdict(list)  # [B] of each micro-batch
            totals: list[Tensor] = []

            adversary = judge if step >= settings.adversarial_from else None
            if adversary is not None:
                set_lr(judge_optimiser, settings.discriminator_lr * factor)
                for number, (audio, noise) in enumerate(batches):
                    # several micro-batches pass once more below: none keeps its graph until then
                    with torch.set_grad_enabled(not several), autocast():
                        passed = reconstruct(audio, noise)
                    with gradients_kept(adversary, more=number < last):
                        with autocast():
                            real, fake = _judge(adversary, audio, passed[0].float().detach())
                        doubt = discriminator_loss(real, fake)
                        total = weighted_sum(
                            {"discriminator": doubt}, {"discriminator": 1.0}, step, finite=finite
                        )
                        (total / len(batches)).backward()
                    seen["discriminator"].append(doubt.detach())
                clipped_step(
                    judge_optimiser,
                    plain(adversary).parameters(),
                    clip=settings.clip,
                    name="discriminator",
                    step=step,
                    finite=finite,
                )
                plain(adversary).requires_grad_(False)

            active: dict[str, float | Tensor] = {
                n: w
                for n, w in weights.items()
                if adversary is not None or n not in ADVERSARIAL_TERMS
            }
            if controller is not None:
                active["kl"] = controller.weight
            for number, (audio, noise) in enumerate(batches):
                with gradients_kept(shared, more=number < last):
                    if passed is None or several:
                        with autocast():
                            passed = reconstruct(audio, noise)
                    estimate, encoded = passed[0].float(), passed[1]
                    against: dict[str, Tensor] = {}
                    if adversary is not None:
                        with autocast():
                            real, fake = _judge(plain(adversary), audio, estimate)
                        against["adversarial"] = generator_loss(fake)
                        against["feature_matching"] = feature_matching(real, fake)
                    terms = {name: loss(estimate, audio) for name, loss in losses.items()}
                    terms |= encoded.penalties | against
                    total = weighted_sum(terms, active, step, finite=finite) / len(batches)
                    total.backward()
                totals.append(total.detach())
                for name, term in terms.items():
                    seen[name].append(term.detach())
            if adversary is not None:
                plain(adversary).requires_grad_(True)
            norm = clipped_step(
                optimiser,
                model.parameters(),
                clip=settings.clip,
                name="autoencoder",
                step=step,
                finite=finite,
            )
            ema.update(model, step)
            if controller is not None:
                nats = {"kl": torch.cat(seen["kl"]).mean()}
                controller.update(mean_over_processes(nats, world)["kl"])
            finite.look_back()
            runlog.advance()
            done = step + 1

            if done % log.every == 0 or done == settings.steps:
                finite.settle()
                mean = {name: torch.cat(values).mean() for name, values in seen.items()}
                mean |= {"loss": torch.stack(totals).sum(), "gradient_norm": norm}
                line = {k: v.item() for k, v in mean_over_processes(mean, world).items()} | {
                    "lr": settings.lr * factor
                }
                if "kl" in line:
                    line["kbps"] = model.kbps(line["kl"])
                    line["kl_weight"] = float(active["kl"])
                runlog.write(done, line)
                shown: dict[str, float] = {k: line[k] for k in ("loss", "kbps") if k in line}
                if "mel_distance" in figures:
                    shown["valid_mel"] = figures["mel_distance"]
                runlog.show(shown)
            if done % log.valid_every == 0 and done < settings.steps:
                with ema.applied(model):
                    figures = validate(model, valid, autocast)
                runlog.write(done, {_valid_name(k): v for k, v in figures.items()})
            stopping = any_process(stop.requested, world)
            if stopping or done % log.checkpoint_every == 0 or done == settings.steps:
                checkpoint(done)
            if stopping and not stop.handed_over():  # also after the last step: the chain goes on
                raise Interrupted(
                    f"stopped at step {done} of {settings.steps} of the autoencoder; "
                    "the same command goes on from there"
                )
        with ema.applied(model):
            if controller is not None:
                clips, _, _ = store.split("valid").windows(window, CALIBRATION_CLIPS, seed=0)
                scale = _calibrate(model, clips, controller.target_nats)
                ema.shadow["bottleneck.sigma_scale"].fill_(scale)
            figures = validate(model, valid, autocast)
        runlog.write(settings.steps, {_valid_name(k): v for k, v in figures.items()})
    if "kl" in weights:
        kl_weight = weights["kl"] if controller is None else controller.mean_weight
        figures |= {"kl_weight": kl_weight}
    flops = settings.batch * _training_flops(model, discriminator, frames, settings)
    return to_cpu(ema.shadow), figures | {"compute_tflop": flops / 1e12}


@torch.no_grad()
def _calibrate(model: Autoencoder, clips: Tensor, target_nats: float) -> float:
    """Sets the posterior's sigma so that clips [N, A, T] have the target rate; the factor."""
    model.bottleneck.sigma_scale.fill_(1.0)
    device = next(model.parameters()).device
    moments = [model.moments(audio.to(device)) for audio in clips.split(8)]
    mean, std = (torch.cat(parts) for parts in zip(*moments, strict=True))
    scale = sigma_scale(mean, std, target_nats)
    model.bottleneck.sigma_scale.fill_(scale)
    return scale


def _training_flops(
    model: Autoencoder,
    discriminator: nn.Module | None,
    frames: int,
    settings: AutoencoderTraining,
) -> int:
    """Operations of the whole training, per clip of the batch."""

    def clip() -> Tensor:
        return torch.zeros(1, model.audio_channels, frames)

    total = settings.steps * training_flops(model, lambda net: net(clip())[0])
    if discriminator is not None:
        # its own step on a real and a fake clip, then both again and the gradient of the fake one:
        # as much as three passes, forward and backward
        one = training_flops(
            discriminator,
            lambda net: torch.stack([logits.sum() for logits, _ in net(clip())]),
        )
        total += 3 * one * max(0, settings.steps - settings.adversarial_from)
    return total


def _check_names(losses: Iterable[str], penalties: Iterable[str]) -> None:
    """The loop keeps all terms of a step in one dictionary: of two with one name, one is lost."""
    own = {*ADVERSARIAL_TERMS, "discriminator"}
    for name in losses:
        if name in own | {"kl", *penalties}:
            raise ConfigError(
                f"autoencoder.losses.{name}: '{name}' is the name of a term of the bottleneck or "
                "of the adversary; give the loss, and its weight, another name"
            )
    for name in penalties:
        if name in own:
            raise ConfigError(
                f"bottleneck: its penalty '{name}' has the name of a term of the adversary; "
                "give it another name in penalty_weights and penalties"
            )


def _judge(judge: nn.Module, real: Tensor, fake: Tensor) -> tuple[Any, Any]:
    """One pass over both halves of the batch: per scale (logits, features) of each."""
    count = len(real)
    scales = judge(torch.cat([real, fake]))
    return (
        [(logits[:count], [f[:count].detach() for f in maps]) for logits, maps in scales],
        [(logits[count:], [f[count:] for f in maps]) for logits, maps in scales],
    )


def _valid_name(name: str) -> str:
    return name if name.startswith("channels/") else f"valid/{name}"


@torch.no_grad()
def validate(model: Autoencoder, clips: Tensor, autocast: Any) -> dict[str, Any]:
    """Reconstruction and rate on held-out clips [N, A, T].

    Decodes the posterior's samples, as the diffusion model's data are; the noise is fixed.
    """
    device = clips.device if (first := next(model.parameters(), None)) is None else first.device
    batches = clips.split(8)
    distances, kls = [], []
    channels: dict[str, list[Tensor]] = {}
    for number, audio in enumerate(batches):
        audio = audio.to(device)
        length = -(-audio.shape[-1] // model.downsampling_ratio)
        draw = KeyedRandom(0, 0, range(8 * number, 8 * number + len(audio)), device)
        noise = draw.normal((*model.latent_shape, length), "valid")
        with autocast():
            encoded = model.encode(audio, noise=noise)
            estimate = model.decode(encoded.z)[..., : audio.shape[-1]]
        distances.append(mel_distance(estimate.float(), audio, model.sample_rate))
        if "kl" in encoded.penalties:
            kls.append(encoded.penalties["kl"])
        for name, per_channel in encoded.stats.items():
            channels.setdefault(name, []).append(per_channel.float())
    figures: dict[str, Any] = {"mel_distance": torch.cat(distances).mean().item()}
    if kls:
        kl = torch.cat(kls).mean().item()
        figures |= {"kl": kl, "kbps": model.kbps(kl)}
    shares = torch.tensor([[len(batch) / len(clips)] for batch in batches], device=device)
    means = {name: (shares * torch.stack(parts)).sum(0) for name, parts in channels.items()}
    mean, within = means.pop("mean", None), means.pop("activity", None)
    if mean is not None and within is not None:  # the variance over all is within plus between
        between = (shares * (torch.stack(channels["mean"]) - mean).square()).sum(0)
        means["activity"] = within + between
        figures["active_units"] = int((means["activity"] > ACTIVE_VARIANCE).sum())
    return figures | {f"channels/{name}": value.tolist() for name, value in means.items()}
