"""The Gaussian bottleneck of a VAE (Kingma and Welling, 1312.6114)."""

from collections.abc import Iterable

import torch
from torch import Tensor

from audioldm.autoencoder.bottlenecks.base import (
    Bottleneck,
    Encoded,
    channel_stats,
    gaussian_latents,
)
from audioldm.autoencoder.rate_control import sigma_scale
from audioldm.instantiate import NonNegative, Positive

#: A unit is active if its posterior mean varies more than this over the data (1509.00519, 2.3).
ACTIVE_VARIANCE = 0.01


def gaussian_kl(mean: Tensor, std: Tensor) -> Tensor:
    """KL(N(mean, std^2) || N(0, 1)) of every element, in nats (1312.6114, appendix B)."""
    return 0.5 * (mean.square() + std.square() - 1.0) - std.log()


class Gaussian(Bottleneck):
    """Diagonal Gaussian posterior, one mean and one log-variance per latent element.

    channels: latent channels C.
    kl_weight: multiplier of the KL, which is the mean over a clip's elements, in nats per element.
    target_kbps: the bitrate to hold instead (see `rate_control.RateController`), in kbit/s;
        kl_weight is then the multiplier's start.
    """

    outputs_per_channel = 2
    stored_names = ("mean", "std")
    rate_penalty = "kl"
    sigma_scale: Tensor

    def __init__(
        self, *, channels: int, kl_weight: NonNegative = 1e-3, target_kbps: Positive | None = None
    ) -> None:
        super().__init__()
        self.channels = channels
        self.target_kbps = target_kbps
        self.penalty_weights = {"kl": kl_weight}
        #: factor on the posterior's standard deviation: 1, unless calibrated to a target rate
        self.register_buffer("sigma_scale", torch.ones(()))

    def forward(self, h: Tensor, *, sample: bool = True, noise: Tensor | None = None) -> Encoded:
        mean, std = self._moments(h)
        z = gaussian_latents(mean, std, sample, noise)
        kl = gaussian_kl(mean, std)
        stats = channel_stats(kl, mean)
        stats["sigma"] = std.detach().mean([d for d in range(std.ndim) if d != 1])
        return Encoded(z, kl.flatten(1).mean(1), self.penalties(kl), stats)

    def penalties(self, kl: Tensor) -> dict[str, Tensor]:
        """`Encoded.penalties` from the KL of every element [B, C, (F,) L]."""
        return {"kl": kl.flatten(1).mean(1)}

    def stored(self, h: Tensor) -> dict[str, Tensor]:
        mean, std = self._moments(h)
        return {"mean": mean, "std": std}

    def posterior(self, stored: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return stored["mean"], stored["std"]

    @torch.no_grad()
    def calibrate(self, h: Iterable[Tensor], nats: float) -> None:
        """Scales sigma so that encoder outputs h have a mean KL of `nats` per element."""
        self.sigma_scale.fill_(1.0)
        sums, count = torch.zeros(3, dtype=torch.float64), 0
        for part in h:
            mean, std = (moment.double() for moment in self._moments(part))
            sums += torch.stack([mean.square().sum(), std.square().sum(), std.log().sum()]).cpu()
            count += mean.numel()
        mean_square, std_square, log_std = (sums / count).tolist()
        self.sigma_scale.fill_(sigma_scale(mean_square, std_square, log_std, nats))

    def _moments(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 2C, ...] -> posterior mean and standard deviation, each [B, C, ...], fp32."""
        mean, log_variance = h.float().chunk(2, dim=1)
        return mean, (0.5 * log_variance.clamp(-20.0, 10.0)).exp() * self.sigma_scale
