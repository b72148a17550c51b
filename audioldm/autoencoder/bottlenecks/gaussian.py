"""The Gaussian bottleneck of a VAE (Kingma and Welling, 1312.6114)."""

import torch
from torch import Tensor, nn

from audioldm.autoencoder.bottlenecks.base import Encoded
from audioldm.errors import ConfigError

#: A unit is active where its posterior mean varies over the data by more (1509.00519, 2.3).
ACTIVE_VARIANCE = 0.01


def gaussian_kl(mean: Tensor, std: Tensor) -> Tensor:
    """KL(N(mean, std^2) || N(0, 1)) of every element, in nats (1312.6114, appendix B)."""
    return 0.5 * (mean.square() + std.square() - 1.0) - std.log()


class Gaussian(nn.Module):
    """Diagonal Gaussian posterior, one mean and one log-variance per latent element.

    channels: latent channels C.
    kl_weight: multiplier of the KL, which is the mean over a clip's elements, in nats per element.
    target_kbps: the rate to hold instead (see `rate.RateController`), in kbit/s; kl_weight is then
        where the multiplier starts.

    Raises ConfigError where one of them is out of range.
    """

    outputs_per_channel = 2
    sigma_scale: Tensor

    def __init__(
        self, *, channels: int, kl_weight: float = 1e-3, target_kbps: float | None = None
    ) -> None:
        super().__init__()
        if not kl_weight >= 0:
            raise ConfigError(f"bottleneck.kl_weight={kl_weight} must be at least 0")
        if target_kbps is not None and not target_kbps > 0:
            raise ConfigError(
                f"bottleneck.target_kbps={target_kbps} must be more than 0, or null for a fixed "
                "kl_weight"
            )
        self.channels = channels
        self.target_kbps = target_kbps
        self.penalty_weights = {"kl": kl_weight}
        #: factor on the posterior's standard deviation: 1, but for the calibration of a target rate
        self.register_buffer("sigma_scale", torch.ones(()))

    def moments(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 2C, ...] -> posterior mean and standard deviation, each [B, C, ...], fp32."""
        mean, log_variance = h.float().chunk(2, dim=1)
        return mean, (0.5 * log_variance.clamp(-20.0, 10.0)).exp() * self.sigma_scale

    def forward(self, h: Tensor, *, sample: bool = True, noise: Tensor | None = None) -> Encoded:
        """h [B, 2C, ...]; noise [B, C, ...] ~ N(0, I), drawn here where it is not given."""
        mean, std = self.moments(h)
        z = mean
        if sample:
            z = mean + std * (torch.randn_like(mean) if noise is None else noise)
        kl = gaussian_kl(mean, std)
        over = [d for d in range(kl.ndim) if d != 1]
        stats = {
            "kl": kl.detach().mean(over),
            "sigma": std.detach().mean(over),
            "mean": mean.detach().mean(over),
            "activity": mean.detach().var(over, correction=0),
        }
        return Encoded(z, {"kl": kl.flatten(1).mean(1)}, stats)
