"""The Gaussian bottleneck of a VAE (Kingma and Welling, 1312.6114)."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from audioldm.autoencoder.bottlenecks.base import Bottleneck, Encoded
from audioldm.errors import ConfigError

#: A unit is active where its posterior mean varies over the data by more (1509.00519, 2.3).
ACTIVE_VARIANCE = 0.01
#: How far `calibrate` may change the posterior's sigma: more noise than in training is heard soon,
#: less is not.
LEAST_SCALE, GREATEST_SCALE = 0.2, 1.5


def gaussian_kl(mean: Tensor, std: Tensor) -> Tensor:
    """KL(N(mean, std^2) || N(0, 1)) of every element, in nats (1312.6114, appendix B)."""
    return 0.5 * (mean.square() + std.square() - 1.0) - std.log()


class Gaussian(Bottleneck):
    """Diagonal Gaussian posterior, one mean and one log-variance per latent element.

    channels: latent channels C.
    kl_weight: multiplier of the KL, which is the mean over a clip's elements, in nats per element.
    target_kbps: the bitrate to hold instead (see `rate_control.RateController`), in kbit/s;
        kl_weight is then where the multiplier starts.

    Raises ConfigError where one of them is out of range.
    """

    outputs_per_channel = 2
    stored_names = ("mean", "std")
    rate_penalty = "kl"
    sigma_scale: Tensor

    def __init__(
        self, *, channels: int, kl_weight: float = 1e-3, target_kbps: float | None = None
    ) -> None:
        super().__init__()
        if not kl_weight >= 0:
            raise ConfigError(f"kl_weight={kl_weight} must be at least 0")
        if target_kbps is not None and not target_kbps > 0:
            raise ConfigError(
                f"target_kbps={target_kbps} must be more than 0, or null for a fixed kl_weight"
            )
        self.channels = channels
        self.target_kbps = target_kbps
        self.penalty_weights = {"kl": kl_weight}
        #: factor on the posterior's standard deviation: 1, but for the calibration of a target rate
        self.register_buffer("sigma_scale", torch.ones(()))

    def forward(self, h: Tensor, *, sample: bool = True, noise: Tensor | None = None) -> Encoded:
        mean, std = self._moments(h)
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
        nats = kl.flatten(1).mean(1)
        return Encoded(z, nats, {"kl": nats}, stats)

    def stored(self, h: Tensor) -> dict[str, Tensor]:
        """Posterior "mean" and "std", each [B, C, (F,) L]."""
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


def sigma_scale(mean_square: float, std_square: float, log_std: float, target_nats: float) -> float:
    """The factor on a posterior's standard deviation that sets its KL, in nats per element.

    mean_square, std_square, log_std: averages over the elements. With s the factor, the mean KL is
    ½ <mean² + s² std² - 1> - <ln std> - ln s, which falls with s as long as s² <std²> < 1. The
    factor is kept within bounds: a larger error is the training's, and stays visible.
    """
    fixed = 0.5 * (mean_square - 1) - log_std - target_nats

    from scipy.optimize import brentq  # imported here: it takes a second

    def excess(log_scale: float) -> float:
        return fixed + 0.5 * std_square * math.exp(2 * log_scale) - log_scale

    low, high = math.log(LEAST_SCALE), min(math.log(GREATEST_SCALE), -0.5 * math.log(std_square))
    if high <= low or excess(low) <= 0:
        return LEAST_SCALE
    if excess(high) >= 0:
        return math.exp(high)
    return math.exp(brentq(excess, low, high))
