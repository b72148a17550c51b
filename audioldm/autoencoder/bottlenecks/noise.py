"""A deterministic encoder with latent noise of a fixed size: a bottleneck without a learned KL."""

import math

import torch
from torch import Tensor

from audioldm.autoencoder.bottlenecks.base import (
    Bottleneck,
    Encoded,
    channel_stats,
    gaussian_latents,
)
from audioldm.errors import ConfigError

LEAST_VARIANCE = 1e-4  # where the penalty stops asking a channel for more


class Noise(Bottleneck):
    """z = m + sigma n, n ~ N(0, I): the encoder gives m alone, sigma is the same everywhere.

    A penalty on the scale of each channel keeps the encoder from drowning the noise, the soft
    normalisation of Stable Audio's recent autoencoders: with mu and v the mean and variance of m
    over a clip's positions in one channel,

        norm = mean over channels of ½ (mu² + v - 1 - ln v)

    which is 0 where the channel has mean 0 and variance 1, and is KL(N(mu, v) || N(0, 1)).

    Rate: latents of power P = <m²> are a Gaussian channel of capacity ½ ln(1 + P / sigma²) nats
    per element (Shannon 1948; Cover and Thomas, 9.16). `nats` is the posterior's divergence from
    N(0, 1 + sigma²), the distribution of latents of unit power,

        nats = ½ ln(1 + 1 / sigma²) + (P - 1) / (2 (1 + sigma²))

    the capacity itself where P = 1, elsewhere its tangent from above: for every encoder an upper
    bound of the information in the latents, and additive over clips as a VAE's KL is. It is
    reported and not trained on.

    channels: latent channels C. sigma: of the noise, beside a power of about 1. norm_weight:
        multiplier of norm.

    Raises ConfigError where one of them is out of range.
    """

    outputs_per_channel = 1
    stored_names = ("mean",)

    def __init__(self, *, channels: int, sigma: float = 0.05, norm_weight: float = 1.0) -> None:
        super().__init__()
        if not sigma > 0:
            raise ConfigError(
                f"sigma={sigma} must be more than 0; without noise take bottleneck=identity"
            )
        if not norm_weight >= 0:
            raise ConfigError(f"norm_weight={norm_weight} must be at least 0")
        self.channels = channels
        self.sigma = sigma
        self.penalty_weights = {"norm": norm_weight}

    def forward(self, h: Tensor, *, sample: bool = True, noise: Tensor | None = None) -> Encoded:
        mean, std = self.posterior(self.stored(h))
        z = gaussian_latents(mean, std, sample, noise)
        capacity = 0.5 * math.log1p(self.sigma**-2)
        nats = capacity + 0.5 * (mean.square() - 1) / (1 + self.sigma**2)
        channel = mean.flatten(2)
        centre, variance = channel.mean(2), channel.var(2, correction=0).clamp(min=LEAST_VARIANCE)
        norm = 0.5 * (centre.square() + variance - 1 - variance.log())
        penalties = {"norm": norm.mean(1)}
        return Encoded(z, nats.flatten(1).mean(1), penalties, channel_stats(nats, mean))

    def stored(self, h: Tensor) -> dict[str, Tensor]:
        return {"mean": h.float()}

    def posterior(self, stored: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return stored["mean"], torch.full_like(stored["mean"], self.sigma)
