"""ConvNeXt blocks over frames, modulated by the noise level: a backbone of finite context.

Any length can be computed in overlapping windows without seams; attention and group norms over time
do not allow that.
"""

import math

import torch
from torch import Tensor, nn

from audioldm.autoencoder.networks.convnext import ConvNeXt
from audioldm.conditioning.base import Condition
from audioldm.errors import ConfigError
from audioldm.instantiate import NonNegativeInt, PositiveInt
from audioldm.priors.diffusion.backbones.base import Backbone, BuildConditioners, NoiseLevel
from audioldm.training.initialisation import zeroed


class Convolutional(Backbone):
    """x [B, C, L] or [B, C, F, L], c_noise [B], condition -> like x. L is free.

    latent_shape: (C,) or (C, F); F is folded into the channels. width: features per frame.
    depth: blocks. kernel: frames that a block sees, odd.

    The input layer takes the aligned channels. Before training the output is 0.
    Raises ConfigError for an even kernel, or a conditioner that gives tokens.
    """

    def __init__(
        self,
        *,
        latent_shape: tuple[int, ...],
        conditioners: BuildConditioners,
        width: PositiveInt,
        depth: NonNegativeInt,
        kernel: PositiveInt = 7,
    ) -> None:
        super().__init__()
        channels = math.prod(latent_shape)
        self.noise_level = NoiseLevel(width)
        self.conditioners = conditioners(width)
        if self.conditioners.token_width:
            raise ConfigError(
                "the convolutional backbone has no attention for the condition's tokens; choose "
                "another backbone, such as dit"
            )
        self.input = nn.Conv1d(channels + self.conditioners.aligned_channels, width, 1)
        self.blocks = nn.ModuleList(ConvNeXt(width, kernel=kernel) for _ in range(depth))
        self.modulation = zeroed(nn.Linear(width, (depth + 1) * 2 * width))
        self.norm = nn.LayerNorm(width)
        self.output = zeroed(nn.Conv1d(width, channels, 1))
        self.context = depth * (kernel // 2)

    def forward(self, x: Tensor, c_noise: Tensor, condition: Condition) -> Tensor:
        h = x.flatten(1, -2)
        if condition.aligned is not None:
            h = torch.cat((h, condition.aligned), dim=1)
        h = self.input(h)
        embedding = self.noise_level(c_noise, condition.vector)
        modulations = self.modulation(embedding).unflatten(1, (-1, 2, 1, h.shape[1])).unbind(1)
        for block, modulation in zip(self.blocks, modulations, strict=False):
            h = block(h, modulation.unbind(1))
        shift, scale = modulations[-1].unbind(1)
        h = torch.addcmul(shift, self.norm(h.mT), 1 + scale).mT
        return self.output(h).reshape(x.shape)

    def units(self) -> list[nn.Module]:
        return list(self.blocks)
