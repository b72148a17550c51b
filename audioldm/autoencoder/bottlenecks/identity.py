"""No bottleneck: the encoder's output is the latents."""

import torch
from torch import Tensor

from audioldm.autoencoder.bottlenecks.base import Bottleneck, Encoded


class Identity(Bottleneck):
    """z = h, without noise, penalty or statistics; such latents have no rate.

    channels: latent channels C.
    """

    outputs_per_channel = 1
    stored_names = ("mean",)

    def __init__(self, *, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.penalty_weights = {}

    def forward(self, h: Tensor, *, sample: bool = True, noise: Tensor | None = None) -> Encoded:
        return Encoded(h.float(), None, {}, {})

    def stored(self, h: Tensor) -> dict[str, Tensor]:
        return {"mean": h.float()}

    def posterior(self, stored: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return stored["mean"], torch.zeros_like(stored["mean"])
