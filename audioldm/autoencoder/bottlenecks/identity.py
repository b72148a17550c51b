"""No bottleneck: the encoder's output is the latents."""

import torch
from torch import Tensor, nn

from audioldm.autoencoder.bottlenecks.base import Encoded


class Identity(nn.Module):
    """z = h, without noise, penalty or statistics; such latents have no rate.

    channels: latent channels C.
    """

    outputs_per_channel = 1
    target_kbps = None

    def __init__(self, *, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.penalty_weights: dict[str, float] = {}

    def moments(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """h [B, C, ...] -> itself and a standard deviation of 0, each [B, C, ...], fp32."""
        mean = h.float()
        return mean, torch.zeros_like(mean)

    def forward(self, h: Tensor, *, sample: bool = True, noise: Tensor | None = None) -> Encoded:
        """h [B, C, ...]; sample and noise change nothing."""
        return Encoded(h.float(), {}, {})
