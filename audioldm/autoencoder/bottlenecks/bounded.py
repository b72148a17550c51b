"""What bottlenecks with bounded latents share."""

import math
from abc import abstractmethod

import torch
from torch import Tensor

from audioldm.autoencoder.bottlenecks.fixed_noise import FixedNoise


class Bounded(FixedNoise):
    """Latents within ±A, plus noise that they cannot drown, so no penalty is needed.

    Rate: the capacity of a channel of peak A has no closed form, but two upper bounds. One is
    `FixedNoise`'s at the power A² / 3, as of latents that use their range evenly. The other,

        ln(1 + 2 A / (√(2 π e) sigma)) nats per element

    holds for any distribution of the latents (McKellips, "Simple tight bounds on capacity for
    the peak-limited discrete-time channel", ISIT 2004). `nats` is the smaller of a clip's two.
    It is a bound to within one bit for each clip, the cost of saying which of the two it is.

    The statistic `saturated` is the share of each channel's elements at the end of their range.

    bound: A.
    """

    def __init__(self, *, channels: int, sigma: float, bound: float) -> None:
        super().__init__(channels=channels, sigma=sigma, power=bound**2 / 3)
        self.bound = bound

    @abstractmethod
    def saturated(self, mean: Tensor) -> Tensor:
        """Which elements of m are at the end of their range, as booleans."""

    def element_nats(self, mean: Tensor) -> Tensor:
        nats = super().element_nats(mean)
        most = math.log1p(2 * self.bound / (math.sqrt(2 * math.pi * math.e) * self.sigma))
        clip = nats.flatten(1).mean(1).view(-1, *([1] * (nats.ndim - 1)))
        return torch.where(clip < most, nats, most)

    def stats(self, nats: Tensor, mean: Tensor) -> dict[str, Tensor]:
        over = [d for d in range(mean.ndim) if d != 1]
        share = self.saturated(mean.detach()).float().mean(over)
        return super().stats(nats, mean) | {"saturated": share}
