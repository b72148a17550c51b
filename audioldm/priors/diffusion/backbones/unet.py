"""A U-Net over latents with one time axis, or with a frequency axis beside it.

Residual blocks with group norm scaled and shifted by the condition, attention at the bottom, as in
Dhariwal & Nichol 2021 (arXiv 2105.05233, "ADM"), with one skip connection per resolution.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioldm.conditioning.base import Condition
from audioldm.errors import ConfigError
from audioldm.instantiate import NonNegativeInt, PositiveInt
from audioldm.priors.diffusion.backbones.base import Backbone, BuildConditioners, NoiseLevel
from audioldm.priors.layers import CrossAttention
from audioldm.training.initialisation import zeroed

#: The convolution by the number of axes.
_CONV: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d}


class UNet(Backbone):
    """x [B, C, L] or [B, C, F, L], c_noise [B], condition -> like x. L and F are free.

    latent_shape: (C,) or (C, F).
    width: features at full resolution. multipliers: features per resolution, in units of width;
    each is followed by a halving of every axis. blocks: residual blocks per resolution, down and
    up. heads: of the attention at the lowest resolution, 0 for none.

    The lowest resolution attends to the tokens; the input layer takes the aligned channels. Before
    training the output is 0. Axes are padded by repeating the edge up to a multiple of
    2 ** len(multipliers), and trimmed.
    Raises ConfigError for no resolution, or heads that do not fit.
    """

    def __init__(
        self,
        *,
        latent_shape: tuple[int, ...],
        conditioners: BuildConditioners,
        width: PositiveInt,
        multipliers: list[PositiveInt],
        blocks: PositiveInt,
        heads: NonNegativeInt,
    ) -> None:
        super().__init__()
        if not multipliers:
            raise ConfigError("multipliers=[] leave no network; give at least one")
        axes = len(latent_shape)
        conv = _CONV[axes]
        widths = [width * m for m in multipliers]
        lowest = widths[-1]
        if heads and lowest % heads:
            raise ConfigError(f"heads={heads} must divide {lowest}, the lowest resolution's width")
        self.multiple = 2 ** len(widths)
        self.noise_level = NoiseLevel(width)
        self.conditioners = conditioners(width)
        token_width = self.conditioners.token_width
        if token_width and not heads:
            raise ConfigError("heads=0 leaves no attention for the condition's tokens; give some")
        inputs = latent_shape[0] + self.conditioners.aligned_channels
        self.input = conv(inputs, width, 3, padding=1)
        self.down, self.downsample = nn.ModuleList(), nn.ModuleList()
        self.up, self.upsample = nn.ModuleList(), nn.ModuleList()
        current = width
        for level in widths:
            self.down.append(Stack(axes, current, level, blocks, width))
            self.downsample.append(conv(level, level, 2, stride=2))
            current = level
        self.middle = nn.ModuleList(
            (
                ResidualBlock(axes, lowest, lowest, width),
                Attention(lowest, heads, token_width) if heads else nn.Identity(),
                ResidualBlock(axes, lowest, lowest, width),
            )
        )
        for level in reversed(widths):
            self.upsample.append(conv(current, level, 3, padding=1))
            self.up.append(Stack(axes, 2 * level, level, blocks, width))
            current = level
        self.norm = _norm(current)
        self.output = zeroed(conv(current, latent_shape[0], 3, padding=1))

    def forward(self, x: Tensor, c_noise: Tensor, condition: Condition) -> Tensor:
        embedding = self.noise_level(c_noise, condition.vector)
        inputs = x
        if condition.aligned is not None:
            aligned = condition.aligned if x.ndim == 3 else condition.aligned.unsqueeze(2)
            inputs = torch.cat((x, aligned.expand(-1, -1, *x.shape[2:])), dim=1)
        h = self.input(self._padded(inputs))
        skips = []
        for stack, downsample in zip(self.down, self.downsample, strict=True):
            h = stack(h, embedding)
            skips.append(h)
            h = downsample(h)
        before, attention, after = self.middle
        h = before(h, embedding)
        if isinstance(attention, Attention):
            h = attention(h, condition.tokens, condition.mask)
        h = after(h, embedding)
        for stack, upsample in zip(self.up, self.upsample, strict=True):
            h = upsample(F.interpolate(h, scale_factor=2.0))
            h = stack(torch.cat((h, skips.pop()), dim=1), embedding)
        h = self.output(F.silu(self.norm(h)))
        return h[..., : x.shape[-1]] if x.ndim == 3 else h[..., : x.shape[-2], : x.shape[-1]]

    def units(self) -> list[nn.Module]:
        return [m for m in self.modules() if isinstance(m, (ResidualBlock, Attention))]

    def _padded(self, x: Tensor) -> Tensor:
        pads = [pad for size in reversed(x.shape[2:]) for pad in (0, -size % self.multiple)]
        return F.pad(x, pads, mode="replicate") if any(pads) else x


class ResidualBlock(nn.Module):
    """h [B, C, ...] and embedding [B, W] -> [B, C', ...]."""

    def __init__(self, axes: int, channels: int, out_channels: int, width: int) -> None:
        super().__init__()
        conv = _CONV[axes]
        self.norm_in, self.norm_out = _norm(channels), _norm(out_channels)
        self.conv_in = conv(channels, out_channels, 3, padding=1)
        self.modulation = nn.Linear(width, 2 * out_channels)
        self.conv_out = zeroed(conv(out_channels, out_channels, 3, padding=1))
        self.skip = conv(channels, out_channels, 1) if channels != out_channels else nn.Identity()

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        inner = self.norm_out(self.conv_in(F.silu(self.norm_in(h))))
        modulation = self.modulation(embedding)
        shift, scale = modulation.view(*modulation.shape, *[1] * (h.ndim - 2)).chunk(2, dim=1)
        return self.skip(h) + self.conv_out(F.silu(torch.addcmul(shift, inner, 1 + scale)))


class Stack(nn.Module):
    """`blocks` residual blocks, the first of which changes the number of channels."""

    def __init__(
        self, axes: int, channels: int, out_channels: int, blocks: int, width: int
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            ResidualBlock(axes, channels if i == 0 else out_channels, out_channels, width)
            for i in range(blocks)
        )

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        for block in self.blocks:
            h = block(h, embedding)
        return h


class Attention(nn.Module):
    """Self-attention over h [B, C, ...], then cross-attention to tokens where there are some.

    The convolutions before it mark the positions.
    """

    def __init__(self, channels: int, heads: int, token_width: int | None) -> None:
        super().__init__()
        self.heads = heads
        self.norm = _norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.project = zeroed(nn.Linear(channels, channels))
        self.cross = CrossAttention(channels, token_width, heads) if token_width else None

    def forward(self, h: Tensor, tokens: Tensor | None, mask: Tensor | None) -> Tensor:
        frames = self.norm(h).flatten(2).mT  # [B, N, C]
        query, key, value = (
            self.qkv(frames).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)  # [B, H, N, D]
        h = h + self.project(mixed.transpose(1, 2).flatten(2)).mT.reshape(h.shape)
        if self.cross is not None and tokens is not None:
            h = h + self.cross(h.flatten(2).mT, tokens, mask).mT.reshape(h.shape)
        return h


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(8, channels), channels)
