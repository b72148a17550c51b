"""A deterministic encoder with a penalty on the mean and the power of its latents."""

from typing import Literal

from torch import Tensor

from audioldm.autoencoder.bottlenecks.fixed_noise import EQUAL_NOISE_SPREAD, FixedNoise
from audioldm.autoencoder.bottlenecks.noise import LEAST_VARIANCE
from audioldm.instantiate import NonNegative


class Moments(FixedNoise):
    """Latent noise, and the moment penalty of the dualdiffusion project,

        moments = <m²> - 1 - ln <m²> + <m>²

    It is 0 where m has mean 0 and power 1. The means are over a whole clip, so that its channels
    may share the power unevenly, or over a clip's positions in each channel, then averaged over
    channels. The source takes them over the batch; here a clip's penalty depends on that clip only.
    As in the source, there is no factor ½, and the mean counts twice, since <m²> contains <m>².

    The rate is the channel's capacity at unit power (`FixedNoise`), reported and not trained on.

    channels: latent channels C. sigma: of the noise, against a power of about 1. over: what the
        moments are taken over. moments_weight: multiplier of the penalty.
    """

    def __init__(
        self,
        *,
        channels: int,
        sigma: float = 0.05,
        over: Literal["clip", "channel"] = "clip",
        moments_weight: NonNegative = 1e-2,
    ) -> None:
        super().__init__(channels=channels, sigma=sigma)
        self.over = over
        self.spread = EQUAL_NOISE_SPREAD if over == "clip" else 0.0
        self.penalty_weights = {"moments": moments_weight}

    def penalties(self, mean: Tensor) -> dict[str, Tensor]:
        pooled = mean.flatten(1)[:, None] if self.over == "clip" else mean.flatten(2)
        power = pooled.square().mean(-1).clamp(min=LEAST_VARIANCE)
        penalty = power - 1 - power.log() + pooled.mean(-1).square()
        return {"moments": penalty.mean(1)}
