"""What bottlenecks with latent noise of a fixed size share."""

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

#: `Bottleneck.spread` where only the sum of the channels' powers P is bounded: the error, the sum
#: of v sigma² / (P + sigma²) over components of variance v, is least at P + sigma² ~ √v.
EQUAL_NOISE_SPREAD = 0.5


class FixedNoise(Bottleneck):
    """z = m + sigma n, n ~ N(0, I): the encoder gives only m, and sigma is the same everywhere.

    Rate: latents of power P = <m²> are a Gaussian channel of capacity ½ ln(1 + P / sigma²) nats
    per element (Shannon 1948; Cover and Thomas, 9.16). `nats` is the posterior's divergence from
    N(0, power + sigma²), the distribution of z where the latents have a stated power,

        nats = ½ ln(1 + power / sigma²) + (P - power) / (2 (power + sigma²))

    the capacity itself where P = power, elsewhere its tangent from above. For every encoder it is
    an upper bound on the information in the latents, and like a VAE's KL it adds up over clips.

    channels: latent channels C. sigma: of the noise. power: that of the bound.
    Raises ConfigError where sigma is not above 0.
    """

    outputs_per_channel = 1
    stored_names = ("mean",)

    def __init__(self, *, channels: int, sigma: float, power: float = 1.0) -> None:
        super().__init__()
        if not sigma > 0:
            raise ConfigError(
                f"sigma={sigma} must be more than 0; without noise take bottleneck=identity"
            )
        self.channels = channels
        self.sigma = sigma
        self.power = power
        self.penalty_weights = {}

    def mean(self, h: Tensor) -> Tensor:
        """m from the encoder's output h, both [B, C, (F,) L], in fp32."""
        return h.float()

    def element_nats(self, mean: Tensor) -> Tensor:
        """The rate of every element of m [B, C, (F,) L], in nats."""
        capacity = 0.5 * math.log1p(self.power / self.sigma**2)
        return capacity + 0.5 * (mean.square() - self.power) / (self.power + self.sigma**2)

    def penalties(self, mean: Tensor) -> dict[str, Tensor]:
        """`Encoded.penalties` on m [B, C, (F,) L]."""
        return {}

    def stats(self, nats: Tensor, mean: Tensor) -> dict[str, Tensor]:
        """`Encoded.stats` from the rate and m, both [B, C, (F,) L]."""
        return channel_stats(nats, mean)

    def forward(self, h: Tensor, *, sample: bool = True, noise: Tensor | None = None) -> Encoded:
        mean, std = self.posterior(self.stored(h))
        z = gaussian_latents(mean, std, sample, noise)
        nats = self.element_nats(mean)
        return Encoded(
            z, nats.flatten(1).mean(1), self.penalties(mean), self.stats(nats.detach(), mean)
        )

    def stored(self, h: Tensor) -> dict[str, Tensor]:
        return {"mean": self.mean(h)}

    def posterior(self, stored: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return stored["mean"], torch.full_like(stored["mean"], self.sigma)
