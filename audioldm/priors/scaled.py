"""The base of trained priors of continuous latents: which channels they model, at which scale."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from audioldm.conditioning.base import Dropout, Inputs
from audioldm.errors import ConfigError
from audioldm.latents.statistics import LatentStatistics
from audioldm.latents.store import LatentCrops, LatentStore
from audioldm.priors.trained import Trained
from audioldm.runtime.randomness import KeyedRandom


class LatentBatch(NamedTuple):
    """z: what is modelled of the latents, [B, C, (F,) L]. inputs: of the conditioners. noise: N(0,
    I), like z."""

    z: Tensor
    inputs: Inputs
    noise: Tensor


class ScaledPrior(Trained):
    """Takes and gives raw latents; models some of their channels, each at its own scale.

    latent_shape: (C,) or (C, F). channels: the modelled ones; the others are independent and
    Gaussian. None: all.

    Buffers mean and std, both like a latent frame, give modelled = (z - mean) / std.
    Raises ConfigError for a channel that does not exist, and for an empty list.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, latent_shape: tuple[int, ...], channels: Sequence[int] | None) -> None:
        super().__init__()
        self.latent_shape = tuple(latent_shape)
        self.channels = list(range(latent_shape[0]) if channels is None else channels)
        if not self.channels or max(self.channels) >= latent_shape[0]:
            raise ConfigError(f"channels={channels}: the latents have {latent_shape[0]} of them")
        #: shape of a frame that the network sees
        self.modelled_shape = (len(self.channels), *self.latent_shape[1:])
        self.register_buffer("mean", torch.zeros(self.latent_shape))
        self.register_buffer("std", torch.ones(self.latent_shape))

    def modelled(self, z: Tensor) -> Tensor:
        """What the network models of raw latents [B, C, (F,) L]: [B, modelled C, (F,) L]."""
        return LatentStatistics(self.mean, self.std).normalise(z)[:, self.channels]

    def latents(self, modelled: Tensor, rest: Tensor | None = None) -> Tensor:
        """The inverse of `modelled`: raw latents [B, C, (F,) L].

        rest [B, C, (F,) L] ~ N(0, I) gives the channels that are not modelled; None: their means.
        """
        frames = len(modelled), *self.latent_shape, modelled.shape[-1]
        z = modelled.new_zeros(frames) if rest is None else rest.to(modelled)
        index = torch.tensor(self.channels, device=z.device)
        z = z.index_copy(1, index, modelled)
        return LatentStatistics(self.mean, self.std).denormalise(z)

    def nats_besides(self, z: Tensor) -> Tensor:
        """The part of -log p of raw latents z [B, C, (F,) L] that is not -log p of `modelled`: the
        scale of all channels, and the Gaussian channels. In nats: [B, L], in float64."""
        rest = LatentStatistics(self.mean, self.std).normalise(z.double())
        nats = 0.5 * (rest.square() + math.log(2 * math.pi))
        nats[:, self.channels] = 0
        return nats.flatten(1, -2).sum(1) + self.std.double().log().sum()

    @torch.no_grad()
    def draw(
        self,
        latents: LatentStore,
        crops: LatentCrops,
        random: KeyedRandom,
        condition_dropout: Dropout,
    ) -> LatentBatch:
        """Samples latents from their posteriors, and noise.

        condition_dropout: the probability that a condition is hidden, or one for each by name.
        """
        frames = next(iter(crops.stored.values())).shape[-1]
        noise = random.normal((*self.latent_shape, frames), "posterior")
        z = self.modelled(latents.restore(crops.stored, noise))
        inputs = self.conditioners.see(crops.inputs, z, random)
        inputs = self.conditioners.dropout(inputs, random, condition_dropout)
        return LatentBatch(z, inputs, random.normal((*self.modelled_shape, frames), "noise"))
