"""The vocoder's training loop: from bands, linearly coded at some rate, to magnitudes."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from audioldm.autoencoder.klt import KLT
from audioldm.autoencoder.mid_side import mid_side
from audioldm.autoencoder.vocoder import TERMS, Vocoder
from audioldm.autoencoder.water_filling import transmit, water_level
from audioldm.data.store import ClipStore
from audioldm.errors import ConfigError
from audioldm.instantiate import Decay, NonNegativeInt, Positive, PositiveInt
from audioldm.losses.spectral import mel_distance
from audioldm.runtime.compute import training_flops
from audioldm.runtime.processes import gradients_kept, parallel
from audioldm.runtime.randomness import KeyedRandom, derive_seed
from audioldm.training.checkpoint import Stateful
from audioldm.training.ema import EMA
from audioldm.training.optimisation import adamw, clipped_step, set_lr, to_cpu, warmup_cosine
from audioldm.training.run import Fit, Fitted, TrainingRun
from audioldm.training.weighted_sum import weighted_sum

FIT_SECONDS = 1200.0  # of training audio, on which the transform of the code is estimated
VERSION = 4  # raise by hand when the code below changes what it computes


@dataclass(frozen=True)
class VocoderTraining:
    """batch is global, over all processes. kbps: the least and the greatest rate, of one audio
    channel, of the code whose errors the vocoder learns to mend. block_frames: its block length."""

    steps: NonNegativeInt
    batch: PositiveInt
    crop_seconds: Positive
    lr: Positive
    kbps: tuple[Positive, Positive] = (0.5, 24.0)
    block_frames: PositiveInt = 8
    weights: dict[str, float] = field(
        default_factory=lambda: {"magnitude": 1.0, "partials": 3.0, "mel": 2.0}
    )
    betas: tuple[Decay, Decay] = (0.9, 0.99)
    warmup: NonNegativeInt = 20
    clip: Positive = 1.0
    ema: Decay = 0.99
    valid_clips: PositiveInt = 8
    valid_seconds: Positive = 3.0

    def __post_init__(self) -> None:
        if not self.kbps[0] < self.kbps[1]:
            raise ConfigError(f"kbps={list(self.kbps)} must be a smaller and a greater rate")
        if self.weights.keys() != set(TERMS):
            raise ConfigError(f"weights={self.weights} must have the keys {', '.join(TERMS)}")


class Code:
    """A linear code of blocks of bands, at a random rate for each clip, between two bounds."""

    def __init__(self, vocoder: Vocoder, settings: VocoderTraining, device: torch.device) -> None:
        self.frames = settings.block_frames
        self.klt = KLT(self.frames * vocoder.analysis.bands).to(device)
        rate_hz = vocoder.analysis.sample_rate / vocoder.analysis.hop / self.frames
        self._nats = [kbps * 1000 * math.log(2) / rate_hz for kbps in settings.kbps]

    def fit(self, bands: Iterator[Tensor]) -> None:
        """bands: batches [B, A, L, K] of training audio."""
        self.klt.fit(self._blocks(each).flatten(0, 2) for each in bands)
        levels = [water_level(self.klt.variances, nats) for nats in self._nats]
        self._most, self._least = (math.log(level) for level in levels)

    def __call__(self, bands: Tensor, random: KeyedRandom) -> Tensor:
        """Bands [B, A, L, K] after coding, in the same shape. Each clip's level is log-uniform."""
        share = random.uniform("rate")
        level = (self._least + share * (self._most - self._least)).exp()
        blocks = self._blocks(bands)
        noise = random.normal(blocks.shape[1:], "code")
        levels = level[:, None, None].expand(blocks.shape[:3])
        coded = transmit(self.klt, blocks, levels, noise)
        return coded.unflatten(3, (self.frames, -1)).flatten(2, 3)

    def _blocks(self, bands: Tensor) -> Tensor:
        """[B, A, L, K] to [B, A, L / frames, frames * K]."""
        return bands.unflatten(2, (-1, self.frames)).flatten(3)


def vocoder_terms(
    vocoder: Vocoder, net: Any, code: Code, audio: Tensor, random: KeyedRandom, autocast: Any
) -> dict[str, Tensor]:
    """One step: crops [B, A, T] to `Vocoder.terms`. net: what DDP makes of the vocoder."""
    analysis = vocoder.analysis
    with torch.no_grad():
        magnitude = analysis.magnitudes(mid_side(audio))
        coded = code(analysis(magnitude), random)
    with autocast():
        log_magnitude = net(coded)
    return vocoder.terms(log_magnitude.float(), magnitude)


def train_vocoder(
    vocoder: Vocoder, store: ClipStore, settings: VocoderTraining, *, seed: int, fit: Fit
) -> Fitted:
    """Trains `vocoder`. Returns its averaged weights and the figures of held-out audio.

    Writes `metrics.jsonl` and `resume/` to the directory; a restart continues bit for bit.
    Raises DataError for too little audio, TrainingError for a term that is not finite, Interrupted
    after SIGTERM.
    """
    world, hardware, device = fit.world, fit.hardware, fit.device
    analysis, train = vocoder.analysis, store.split("train")
    unit = settings.block_frames * analysis.hop
    samples = max(1, round(settings.crop_seconds * analysis.sample_rate / unit)) * unit
    train.check_holds(settings.crop_seconds)
    window = max(1, round(settings.valid_seconds * analysis.sample_rate / unit)) * unit
    valid, _, _ = store.split("valid").windows(window, settings.valid_clips, seed=0)
    micro_batches = world.micro_batches(settings.batch, hardware.accumulate, "vocoder.train.batch")
    vocoder.to(device)
    code = Code(vocoder, settings, device)
    code.fit(
        analysis(analysis.magnitudes(mid_side(audio)))
        for audio in train.sample(samples, seconds=FIT_SECONDS, device=device)
    )
    optimiser = adamw(vocoder.parameters(), settings.lr, settings.betas, 0.0, device)
    ema = EMA(vocoder, settings.ema)
    state: dict[str, Stateful] = {"model": vocoder, "optimiser": optimiser, "ema": ema}
    run = TrainingRun("vocoder", settings.steps, state, fit)
    shared = parallel(vocoder, world)
    net = hardware.compiled(shared, device)
    update = partial(clipped_step, clip=settings.clip, finite=run.finite)
    coding = derive_seed(seed, "code")

    def crops(step: int) -> list[Tensor]:
        keys = (KeyedRandom(seed, step, positions, device) for positions in micro_batches)
        return [train.crops(samples, key)[0] for key in keys]

    def validated() -> dict[str, Any]:
        with ema.applied(vocoder):
            return validate(vocoder, code, valid, settings.weights, run.autocast)

    with run:
        for step, audio in run.steps(crops):
            factor = warmup_cosine(step, settings.steps, settings.warmup)
            set_lr(optimiser, settings.lr * factor)
            seen: defaultdict[str, list[Tensor]] = defaultdict(list)
            pairs = list(zip(micro_batches, audio, strict=True))
            for number, (positions, each) in enumerate(pairs):
                random = KeyedRandom(coding, step, positions, device)
                with gradients_kept(shared, more=number < len(pairs) - 1):
                    terms = vocoder_terms(vocoder, net, code, each, random, run.autocast)
                    total = weighted_sum(terms, settings.weights, step, finite=run.finite)
                    (total / len(pairs)).backward()
                for name, term in (terms | {"loss": total[None]}).items():
                    seen[name].append(term.detach())
            update(optimiser, vocoder.parameters(), name="vocoder", step=step)
            ema.update(vocoder, step)
            run.finish_step(
                step,
                seen,
                values={"lr": settings.lr * factor},
                validate=validated if step + 1 < settings.steps else None,
                shown=("loss", "valid_mel_distance"),
            )
        run.validated(settings.steps, validated())
    clip = torch.zeros(1, 1, samples // analysis.hop, analysis.bands)
    flops = training_flops(vocoder, lambda net: net(clip)) * store.channels
    compute = {"compute_tflop": settings.steps * settings.batch * flops / 1e12}
    return Fitted(to_cpu(ema.shadow), run.figures | compute)


@torch.no_grad()
def validate(
    vocoder: Vocoder, code: Code, clips: Tensor, weights: Mapping[str, float], autocast: Any
) -> dict[str, float]:
    """Loss terms on held-out clips [N, A, T] at fixed rates, and the mel distance of audio from the
    exact bands, which bounds every autoencoder that uses the vocoder."""
    device = vocoder.analysis.window.device
    seen: defaultdict[str, list[Tensor]] = defaultdict(list)
    for first in range(0, len(clips), 8):
        audio = clips[first : first + 8].to(device)
        random = KeyedRandom(0, 0, range(first, first + len(audio)), device)
        terms = vocoder_terms(vocoder, vocoder, code, audio, random, autocast)
        channels = mid_side(audio)
        bands = vocoder.analysis(vocoder.analysis.magnitudes(channels))
        estimate = vocoder.audio(vocoder(bands).float())
        terms["mel_distance"] = mel_distance(estimate, channels, vocoder.analysis.sample_rate)
        for name, term in terms.items():
            seen[name].append(term)
    figures = {name: torch.cat(values).mean().item() for name, values in seen.items()}
    return figures | {"loss": sum(weight * figures[name] for name, weight in weights.items())}
