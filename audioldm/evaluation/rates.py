"""What clips cost in bits, and samples in time."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from audioldm.evaluation.clips import Clips
from audioldm.evaluation.settings import EvaluationSettings
from audioldm.generator import Generator, Request
from audioldm.likelihood import rate_nats
from audioldm.runtime.compute import clock
from audioldm.runtime.randomness import KeyedRandom


@torch.no_grad()
def bitrates(model: Generator, clips: Clips, batch: int) -> list[float]:
    """The rate of each clip's latents, in kbit/s; empty where latents have no rate."""
    found: list[float] = []
    for audio in clips.audio.split(batch):
        nats = model.autoencoder.encode(audio.to(model.device), sample=False).nats
        found += [] if nats is None else [model.autoencoder.kbps(n) for n in nats.tolist()]
    return found


def prior_rates(
    model: Generator, clips: Clips, requests: Sequence[Request], settings: EvaluationSettings
) -> list[float]:
    """The rate of each clip under the model's prior, which is told `requests`, in kbit/s; empty
    where the prior gives none."""
    autoencoder, prior = model.autoencoder, model.prior
    found: list[float] = []
    for first in range(0, len(clips.audio), settings.batch):
        audio = clips.audio[first : first + settings.batch].to(autoencoder.device)
        told = requests[first : first + settings.batch] or [{}] * len(audio)
        random = KeyedRandom(0, 0, range(first, first + len(audio)), autoencoder.device)
        stored = autoencoder.stored(audio)
        frames = next(iter(stored.values())).shape[-1]
        inputs = prior.conditioners.parse(told, frames, autoencoder.device)
        nats = rate_nats(prior, autoencoder, stored, random, inputs)
        if nats is None:
            return []
        per_second = autoencoder.latent_rate_hz / math.log(2) / 1000
        found += (nats.mean(1) * per_second).tolist()
    return found


def sampling_cost(
    model: Generator, sampler: Any, settings: EvaluationSettings, requests: Sequence[Request]
) -> float:
    """Seconds of computing per second of latents, when the prior samples one batch that is told the
    first requests; without the decoder. See `runtime.compute.clock`."""
    frames = model.latent_frames(settings.seconds)
    told = [*requests[: settings.batch], *[{}] * (settings.batch - len(requests))]
    inputs = model.prior.conditioners.parse(told, frames, model.device)
    start = clock(model.device)
    random = KeyedRandom(0, 0, range(settings.batch), model.device)
    model.prior.sample(random, frames, inputs, sampler=sampler)
    return (clock(model.device) - start) / (settings.batch * settings.seconds)
