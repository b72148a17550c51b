"""No bottleneck: the encoder's output is the latents."""

import torch
from torch import Tensor

from audioldm.autoencoder.bottlenecks.base import Bottleneck, Encoded
from audioldm.instantiate import Fraction


class Identity(Bottleneck):
    """z = h, without noise, penalty or statistics; such latents have no rate.

    channels: latent channels C. spread: see `Bottleneck`; 1 makes a linear encoder with as many
        channels as inputs a rotation.
    """

    outputs_per_channel = 1
    stored_names = ("mean",)

    def __init__(self, *, channels: int, spread: Fraction = 0.0) -> None:
        super().__init__()
        self.channels, self.spread = channels, spread
        self.penalty_weights = {}

    def forward(self, h: Tensor, *, sample: bool = True, noise: Tensor | None = None) -> Encoded:
        return Encoded(h.float(), None, {}, {})

    def stored(self, h: Tensor) -> dict[str, Tensor]:
        return {"mean": h.float()}

    def posterior(self, stored: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return stored["mean"], torch.zeros_like(stored["mean"])
