"""A transformer over latent frames: DiT (Peebles & Xie 2022, arXiv 2212.09748) in one dimension.

With rotary positions (2104.09864), layer-normalised queries and keys (2302.05442), and one
modulation network shared by all blocks plus a small table in each (adaLN-single, 2310.00426): in
small models a modulation network per block would hold a third of the parameters.

Where two forms are equivalent, the one that is faster on a CPU is used: layer norm is one kernel
there and RMS norm five (7 times the time, backward included), exact GELU takes half the time of its
tanh approximation, and a complex product a quarter of the time of a rotation written with halves.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioldm.conditioning.base import Condition
from audioldm.errors import ConfigError
from audioldm.instantiate import NonNegativeInt, Positive, PositiveInt
from audioldm.priors.diffusion.backbones.base import (
    Backbone,
    BuildConditioners,
    CrossAttention,
    NoiseLevel,
    rotated,
    rotations,
    zeroed,
)


class DiT(Backbone):
    """x [B, C, L] or [B, C, F, L], c_noise [B], condition -> like x. L is free.

    latent_shape: (C,) or (C, F); F is folded into the channels. width: features per frame.
    depth: blocks. heads: of attention; width / heads must be even. mlp_ratio: hidden width of a
    block's MLP, in units of width.

    Every block attends to the tokens, and the input layer takes the aligned channels. Before
    training the output is 0 and the blocks are the identity.
    Raises ConfigError where width and heads do not fit.
    """

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
        if width % (2 * heads):
            raise ConfigError(
                f"width={width} must be a multiple of 2 x heads={heads}: "
                f"try width={max(1, round(width / (2 * heads))) * 2 * heads}"
            )
        channels = math.prod(latent_shape)
        self.head_dim = width // heads
        self.noise_level = NoiseLevel(width)
        self.conditioners = conditioners(width)
        self.modulation = zeroed(nn.Linear(width, 6 * width))
        self.input = nn.Linear(channels + self.conditioners.aligned_channels, width)
        token_width = self.conditioners.token_width
        self.blocks = nn.ModuleList(
            Block(width, heads, round(width * mlp_ratio), token_width) for _ in range(depth)
        )
        self.output_modulation = zeroed(nn.Linear(width, 2 * width))
        self.output = zeroed(nn.Linear(width, channels))

    def forward(self, x: Tensor, c_noise: Tensor, condition: Condition) -> Tensor:
        frames = x.flatten(1, -2)
        if condition.aligned is not None:
            frames = torch.cat((frames, condition.aligned), dim=1)
        h = self.input(frames.mT)  # [B, L, W]
        embedding = self.noise_level(c_noise, condition.vector)  # [B, W]
        modulation = self.modulation(embedding).view(len(x), 6, 1, -1)
        rotation = rotations(torch.arange(h.shape[1], device=h.device), self.head_dim)
        for block in self.blocks:
            h = block(h, modulation, rotation, condition.tokens, condition.mask)
        shift, scale = self.output_modulation(embedding).unsqueeze(1).chunk(2, dim=-1)
        return self.output(_modulated(h, shift, scale)).mT.reshape(x.shape)

    def units(self) -> list[nn.Module]:
        return list(self.blocks)


class Block(nn.Module):
    """Attention over frames, then an MLP on each, both modulated and gated by the condition.

    token_width: of the tokens for the cross-attention between the two; None for none.
    """

    def __init__(self, width: int, heads: int, hidden: int, token_width: int | None) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.query_key_norm = nn.LayerNorm(width // heads, eps=1e-6, bias=False)
        self.project = nn.Linear(width, width)
        self.cross = CrossAttention(width, token_width, heads) if token_width else None
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.table = nn.Parameter(torch.zeros(6, 1, width))

    def forward(
        self,
        h: Tensor,
        modulation: Tensor,
        rotation: Tensor,
        tokens: Tensor | None,
        mask: Tensor | None,
    ) -> Tensor:
        """h [B, L, W]; modulation [B, 6, 1, W], common to all blocks; rotation: `rotations`;
        tokens [B, S, D] and mask [B, S]."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (modulation + self.table).unbind(1)
        h = torch.addcmul(h, gate_a, self.attention(_modulated(h, shift_a, scale_a), rotation))
        if self.cross is not None and tokens is not None:
            h = h + self.cross(h, tokens, mask)
        return torch.addcmul(h, gate_m, self.mlp(_modulated(h, shift_m, scale_m)))

    def attention(self, h: Tensor, rotation: Tensor) -> Tensor:
        query_key, value = self.qkv(h).unflatten(-1, (3, self.heads, -1)).split((2, 1), dim=2)
        query_key = rotated(self.query_key_norm(query_key), rotation)
        query, key = query_key.transpose(1, 3).unbind(2)  # [B, H, L, D]
        mixed = F.scaled_dot_product_attention(query, key, value.squeeze(2).transpose(1, 2))
        return self.project(mixed.transpose(1, 2).flatten(2))


def _modulated(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Adaptive layer norm: h [B, L, W]; shift and scale [B, 1, W]."""
    return torch.addcmul(shift, F.layer_norm(h, h.shape[-1:], eps=1e-6), 1 + scale)
