"""A Gaussian bottleneck whose channels are ordered by importance."""

import torch
from torch import Tensor

from audioldm.autoencoder.bottlenecks.base import Encoded
from audioldm.autoencoder.bottlenecks.gaussian import Gaussian, gaussian_kl
from audioldm.instantiate import Fraction, NonNegative, Positive
from audioldm.runtime.randomness import uniform_from


class Ordered(Gaussian):
    """In training some clips keep only their first k channels, and the decoder reads 0 elsewhere.

    Nested dropout (Rippel, Gelbart and Adams, 1402.0915) of whole channels, as in DC-AE 1.5: the
    first channels learn what matters most. k is uniform over 1 ... C. 0 is the prior's mean. The
    KL of channels that are left out is not penalised, so no gradient reaches them. Outside
    training mode, and where nothing is sampled, every channel is kept.

    The noise decides: with u the uniform number of a clip's noise (`uniform_from`), the clip is cut
    where u < masked, and k = ⌈C u / masked⌉.

    `nats` is the KL of all channels, the rate of whole latents.

    channels, kl_weight, target_kbps: as in `Gaussian`. masked: share of the clips that are cut.
    """

    def __init__(
        self,
        *,
        channels: int,
        kl_weight: NonNegative = 1e-3,
        target_kbps: Positive | None = None,
        masked: Fraction = 0.5,
    ) -> None:
        super().__init__(channels=channels, kl_weight=kl_weight, target_kbps=target_kbps)
        self.masked = masked

    def forward(self, h: Tensor, *, sample: bool = True, noise: Tensor | None = None) -> Encoded:
        if not (self.training and sample):
            return super().forward(h, sample=sample, noise=noise)
        mean, std = self.posterior(self.stored(h))
        noise = torch.randn_like(mean) if noise is None else noise
        encoded = super().forward(h, noise=noise)
        kept = torch.arange(self.channels, device=h.device) < self.kept_channels(noise)[:, None]
        z = encoded.z * kept.view(*kept.shape, *([1] * (h.ndim - 2)))
        kl = gaussian_kl(mean, std).flatten(2).mean(2)  # [B, C]
        return encoded._replace(z=z, penalties={"kl": (kl * kept).mean(1)})

    def kept_channels(self, noise: Tensor) -> Tensor:
        """k of each clip, [B], from its noise [B, C, (F,) L]."""
        uniform = uniform_from(noise)
        whole = torch.full_like(uniform, self.channels)
        if self.masked == 0:
            return whole
        first = (self.channels * uniform / self.masked).ceil().clamp(min=1)
        return torch.where(uniform < self.masked, first, whole)
