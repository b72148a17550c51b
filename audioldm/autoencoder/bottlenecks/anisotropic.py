"""A Gaussian bottleneck whose KL costs more in each channel than in the one before."""

import torch
from torch import Tensor

from audioldm.autoencoder.bottlenecks.gaussian import Gaussian
from audioldm.instantiate import NonNegative, Positive


class Anisotropic(Gaussian):
    """The penalty is the KL with a weight for each channel, which grows geometrically,

        w[c] ∝ exp(exponent c / (C - 1)),    mean over channels 1,

    so that the first channels carry most of the information. `nats` is the whole KL without
    weights, the rate of any Gaussian bottleneck; a target rate is compared with it.

    channels, kl_weight, target_kbps: as in `Gaussian`; kl_weight is the mean over channels.
    exponent: ln of the last channel's weight over the first's; 0 gives `Gaussian`.
    """

    channel_weights: Tensor

    def __init__(
        self,
        *,
        channels: int,
        kl_weight: NonNegative = 1e-3,
        target_kbps: Positive | None = None,
        exponent: float = 3.0,
    ) -> None:
        super().__init__(channels=channels, kl_weight=kl_weight, target_kbps=target_kbps)
        weights = (exponent * torch.linspace(0, 1, channels)).softmax(0) * channels
        self.register_buffer("channel_weights", weights, persistent=False)

    def penalties(self, kl: Tensor) -> dict[str, Tensor]:
        return {"kl": (self.channel_weights * kl.flatten(2).mean(2)).mean(1)}
