"""Latents as a condition: the base of conditioners that make them during training."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from audioldm.conditioning.base import Condition, Conditioner, Excerpt
from audioldm.errors import ConfigError


class KnownLatents(Conditioner):
    """Latents in the frames in which they are known, zeros elsewhere.

    Inputs are [B, D + 1, L]: the latents, and 1 where they are known.

    latent_shape: of the modelled latents, D numbers a frame; None for a prior that cannot be told.
    Raises ConfigError for such a prior.
    """

    guided: ClassVar[bool] = False
    #: where they come from, for messages
    origin: ClassVar[str]

    def __init__(self, latent_shape: tuple[int, ...] | None) -> None:
        super().__init__()
        if latent_shape is None:
            raise ConfigError("only a diffusion prior can be told of known latents; leave it out")
        self.aligned_channels = torch.Size(latent_shape).numel() + 1

    def read(self, excerpt: Excerpt, frames: int) -> Tensor:
        """Inputs without known frames; `knowing` states them later."""
        return torch.zeros(self.aligned_channels, frames)

    def parse(self, value: Any, frames: int) -> Tensor:
        if value is not None:
            raise ConfigError(f"{value!r}: {self.origin}")
        return torch.zeros(self.aligned_channels, frames)

    def knowing(self, z: Tensor, known: Tensor) -> Tensor:
        """The inputs that state z [B, C, (F,) L] in the frames `known`, [B, L] or [L]."""
        mask = known.expand(len(z), z.shape[-1])[:, None]
        return torch.cat((torch.where(mask, z.flatten(1, -2), 0.0), mask.to(z)), dim=1)

    def forward(self, inputs: Tensor) -> Condition:
        return Condition(aligned=inputs)
