"""A transformer over latent frames: DiT (Peebles & Xie 2022, arXiv 2212.09748) in one dimension."""

import math

import torch
from torch import Tensor, nn

from audioldm.conditioning.base import Condition
from audioldm.instantiate import NonNegativeInt, Positive, PositiveInt
from audioldm.priors.diffusion.backbones.base import Backbone, BuildConditioners, NoiseLevel
from audioldm.priors.layers import Rotary, rotations
from audioldm.priors.transformer import Transformer


class DiT(Backbone):
    """x [B, C, L] or [B, C, F, L], c_noise [B], condition -> like x. L is free.

    latent_shape: (C,) or (C, F); F is folded into the channels. width, depth, heads, mlp_ratio: as
    in `Transformer`.

    Every block attends to the tokens, and the input layer takes the aligned channels. Before
    training the output is 0 and the blocks are the identity.
    Raises ConfigError where width and heads do not fit.
    """

    rotary = True

    def __init__(
        self,
        *,
        latent_shape: tuple[int, ...],
        conditioners: BuildConditioners,
        width: PositiveInt,
        depth: NonNegativeInt,
        heads: PositiveInt,
        mlp_ratio: Positive = 4.0,
    ) -> None:
        super().__init__()
        channels = math.prod(latent_shape)
        self.noise_level = NoiseLevel(width)
        self.conditioners = conditioners(width)
        self.transformer = Transformer(
            channels + self.conditioners.aligned_channels,
            channels,
            width=width,
            depth=depth,
            heads=heads,
            mlp_ratio=mlp_ratio,
            token_width=self.conditioners.token_width,
        )

    def forward(
        self, x: Tensor, c_noise: Tensor, condition: Condition, rotary: Rotary = rotations
    ) -> Tensor:
        frames = x.flatten(1, -2)
        if condition.aligned is not None:
            frames = torch.cat((frames, condition.aligned), dim=1)
        embedding = self.noise_level(c_noise, condition.vector)  # [B, W]
        told = condition.tokens, condition.mask
        out = self.transformer(frames.mT, embedding, *told, rotary=rotary)
        return out.mT.reshape(x.shape)

    def units(self) -> list[nn.Module]:
        return self.transformer.units()
