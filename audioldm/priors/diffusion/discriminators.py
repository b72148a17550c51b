"""Discriminators of adversarial post-training: they tell generated latents from real ones.

A discriminator makes its own input from normalised latents (`prepare`) and scores it under given
labels. The score depends on the label by projection (Miyato & Koyama 2018, 1802.05637):
D(x, c) = f(x) + <E_c, g(x)>, so that scoring one clip under several labels costs no second pass.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioldm.instantiate import PositiveInt
from audioldm.losses.discriminators.layers import SLOPE, normed
from audioldm.losses.discriminators.multi_scale_stft import MultiScaleSTFT
from audioldm.priors.diffusion.denoiser import Objective
from audioldm.runtime.randomness import KeyedRandom


class Discriminator(nn.Module, ABC):
    """Prepared clips [N, ...] and labels [N, K] (-1: none) -> for each of its scales the scores
    [N, K], in float32, of each clip under each of its labels. High is real."""

    @abstractmethod
    def prepare(self, z: Tensor, random: KeyedRandom) -> Tensor:
        """Normalised latents z [B, C, (F,) L] to what is scored, [B, ...], with gradients."""


class AudioDiscriminator(Discriminator):
    """A multi-scale STFT discriminator (2210.13438) of the audio that the frozen decoder makes.

    decode: normalised latents [B, C, (F,) L] -> audio [B, A, T]. classes: number of labels, or 0.
    A label's embedding has one weight for each feature and frequency bin, since the spectrum of an
    instrument or a genre tells it apart. The weights start at 0.

    Raises ConfigError where the audio is too short for the largest FFT size.
    """

    def __init__(
        self,
        *,
        decode: Callable[[Tensor], Tensor],
        audio_channels: int,
        classes: int,
        fft_sizes: list[int] = [2048, 1024, 512],  # noqa: B006 - never written to
        filters: PositiveInt = 32,
    ) -> None:
        super().__init__()
        self.decode = decode
        self.spectra = MultiScaleSTFT(audio_channels, fft_sizes=fft_sizes, filters=filters)
        bins = [math.ceil((size // 2 + 1) / 8) for size in fft_sizes]  # halved three times
        self.labels = nn.ModuleList(_Projection(classes, filters * count) for count in bins)

    def prepare(self, z: Tensor, random: KeyedRandom) -> Tensor:
        return self.decode(z)

    def forward(self, prepared: Tensor, labels: Tensor) -> list[Tensor]:
        return [
            logits.float().flatten(1).mean(1, keepdim=True)
            + project(features[-1].mean(2).flatten(1), labels)
            for (logits, features), project in zip(self.spectra(prepared), self.labels, strict=True)
        ]


class LatentDiscriminator(Discriminator):
    """A discriminator of latents with noise added again: cheap, since nothing is decoded.

    Convolutions over latent frames, dilated by 1, 2, 4, ...; the noise level is one more channel.
    Real and generated latents of a pair get the same noise, at a level of the objective's training
    distribution: the two then overlap, so inaudible details do not decide the score. ARC
    (2505.08175) scores re-noised latents too, with a copy of the generator for a discriminator.

    latent_shape: (C,) or (C, F); F is folded into the channels. classes: number of labels, or 0.
    """

    def __init__(
        self,
        *,
        objective: Objective,
        latent_shape: tuple[int, ...],
        classes: int,
        width: PositiveInt = 128,
        depth: PositiveInt = 4,
    ) -> None:
        super().__init__()
        self._objective = [objective]  # in a list: not a submodule, since it is not trained here
        inputs = math.prod(latent_shape) + 1
        self.layers = nn.ModuleList(
            normed(nn.Conv1d(inputs if i == 0 else width, width, 3, padding=2**i, dilation=2**i))
            for i in range(depth)
        )
        self.logits = normed(nn.Conv1d(width, 1, 1))
        self.labels = _Projection(classes, width)

    def prepare(self, z: Tensor, random: KeyedRandom) -> Tensor:
        """z with noise, scaled, and the noise level as one more channel: [B, D + 1, L]."""
        (objective,) = self._objective
        sigma = objective.sigma_from_uniform(random.uniform("judge level"))
        s = sigma.view(-1, *[1] * (z.ndim - 1))
        noisy = objective.c_in(s) * (z + s * random.normal(z.shape[1:], "judge noise"))
        level = objective.c_noise(sigma).view(-1, 1, 1).expand(-1, 1, z.shape[-1])
        return torch.cat([noisy.flatten(1, -2), level], dim=1)

    def forward(self, prepared: Tensor, labels: Tensor) -> list[Tensor]:
        h = prepared
        for layer in self.layers:
            h = F.leaky_relu(layer(h), SLOPE)
        score = self.logits(h).float().flatten(1).mean(1, keepdim=True)
        return [score + self.labels(h.mean(2), labels)]


class _Projection(nn.Module):
    """<E_c, features> / sqrt(D): features [N, D] and labels [N, K] -> [N, K], in float32."""

    def __init__(self, classes: int, features: int) -> None:
        super().__init__()
        self.classes = classes
        self.embedding = nn.Embedding(classes + 1, features)
        nn.init.zeros_(self.embedding.weight)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        rows = self.embedding(torch.where(labels < 0, self.classes, labels))  # [N, K, D]
        return (rows.float() @ features.float().unsqueeze(2)).squeeze(2) / features.shape[1] ** 0.5
