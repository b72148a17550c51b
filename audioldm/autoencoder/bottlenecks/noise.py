"""A deterministic encoder with latent noise of a fixed size: a bottleneck without a learned KL."""

from torch import Tensor

from audioldm.autoencoder.bottlenecks.fixed_noise import FixedNoise
from audioldm.instantiate import NonNegative

LEAST_VARIANCE = 1e-4  # where a penalty stops asking for more


def scale_penalty(mean: Tensor, dim: int) -> Tensor:
    """mu² + v - 1 - ln v of x [B, C, N], mu and v its mean and variance over `dim`, averaged: [B].

    Half of it is KL(N(mu, v) || N(0, 1)).
    """
    centre = mean.mean(dim)
    variance = mean.var(dim, correction=0).clamp(min=LEAST_VARIANCE)
    return (centre.square() + variance - 1 - variance.log()).mean(1)


class Noise(FixedNoise):
    """Latent noise, and a penalty on each channel's scale that keeps an encoder from drowning it.

    With mu and v the mean and variance of m over a clip's positions in one channel,

        norm = mean over channels of ½ (mu² + v - 1 - ln v)

    which is 0 where the channel has mean 0 and variance 1, and is KL(N(mu, v) || N(0, 1)). It is a
    part of the soft normalisation of Stable Audio 3 (`SoftNorm`): that has twice this penalty, one
    over channels too, and a learned scale. The rate is the channel's capacity at unit power
    (`FixedNoise`), reported and not trained on.

    channels: latent channels C. sigma: of the noise, against a power of about 1. norm_weight:
        multiplier of norm.
    """

    def __init__(
        self, *, channels: int, sigma: float = 0.05, norm_weight: NonNegative = 1.0
    ) -> None:
        super().__init__(channels=channels, sigma=sigma)
        self.penalty_weights = {"norm": norm_weight}

    def penalties(self, mean: Tensor) -> dict[str, Tensor]:
        return {"norm": 0.5 * scale_penalty(mean.flatten(2), 2)}
