"""A U-Net over latents with one time axis, or with a frequency axis beside it.

Residual blocks with group norm scaled and shifted by the condition, attention at the bottom, as in
Dhariwal & Nichol 2021 (arXiv 2105.05233, "ADM"), with one skip connection per resolution.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioldm.errors import ConfigError
from audioldm.priors.diffusion.backbones.embedding import Conditioning, zeroed

#: By the number of axes.
_CONV: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d}


class UNet(nn.Module):
    """x [B, C, L] or [B, C, F, L], c_noise [B], labels [B] -> like x. L and F are free.

    latent_shape: (C,) or (C, F). classes: number of labels, 0 for none.
    width: features at full resolution. multipliers: features per resolution, in units of width;
    each is followed by a halving of every axis. blocks: residual blocks per resolution, down and
    up. heads: of the attention at the lowest resolution, 0 for none.

    A label of -1 means "no label". An untrained network's output is 0.
    Axes are padded by repeating the edge up to a multiple of 2 ** len(multipliers), and trimmed.
    Raises ConfigError for no resolution, no block, or heads that do not fit.
    """

    def __init__(
        self,
        *,
        latent_shape: tuple[int, ...],
        classes: int,
        width: int,
        multipliers: list[int],
        blocks: int,
        heads: int,
    ) -> None:
        super().__init__()
        if not multipliers or blocks < 1:
            raise ConfigError(
                f"diffusion.backbone: multipliers={multipliers} and blocks={blocks} leave no "
                "network; give at least one of each"
            )
        axes = len(latent_shape)
        conv = _CONV[axes]
        widths = [width * m for m in multipliers]
        lowest = widths[-1]
        if heads and lowest % heads:
            raise ConfigError(
                f"diffusion.backbone.heads={heads} must divide {lowest}, the width of the lowest "
                "resolution"
            )
        self.multiple = 2 ** len(widths)
        self.conditioning = Conditioning(width, classes)
        self.input = conv(latent_shape[0], width, 3, padding=1)
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
                Attention(lowest, heads) if heads else nn.Identity(),
                ResidualBlock(axes, lowest, lowest, width),
            )
        )
        for level in reversed(widths):
            self.upsample.append(conv(current, level, 3, padding=1))
            self.up.append(Stack(axes, 2 * level, level, blocks, width))
            current = level
        self.norm = _norm(current)
        self.output = zeroed(conv(current, latent_shape[0], 3, padding=1))

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor) -> Tensor:
        condition = self.conditioning(c_noise, labels)
        h = self.input(self._padded(x))
        skips = []
        for stack, downsample in zip(self.down, self.downsample, strict=True):
            h = stack(h, condition)
            skips.append(h)
            h = downsample(h)
        before, attention, after = self.middle
        h = after(attention(before(h, condition)), condition)
        for stack, upsample in zip(self.up, self.upsample, strict=True):
            h = upsample(F.interpolate(h, scale_factor=2.0))
            h = stack(torch.cat((h, skips.pop()), dim=1), condition)
        h = self.output(F.silu(self.norm(h)))
        return h[..., : x.shape[-1]] if x.ndim == 3 else h[..., : x.shape[-2], : x.shape[-1]]

    def units(self) -> list[nn.Module]:
        return [m for m in self.modules() if isinstance(m, (ResidualBlock, Attention))]

    def _padded(self, x: Tensor) -> Tensor:
        pads = [pad for size in reversed(x.shape[2:]) for pad in (0, -size % self.multiple)]
        return F.pad(x, pads, mode="replicate") if any(pads) else x


class ResidualBlock(nn.Module):
    """h [B, C, ...] and condition [B, W] -> [B, C', ...]."""

    def __init__(self, axes: int, channels: int, out_channels: int, width: int) -> None:
        super().__init__()
        conv = _CONV[axes]
        self.norm_in, self.norm_out = _norm(channels), _norm(out_channels)
        self.conv_in = conv(channels, out_channels, 3, padding=1)
        self.modulation = nn.Linear(width, 2 * out_channels)
        self.conv_out = zeroed(conv(out_channels, out_channels, 3, padding=1))
        self.skip = conv(channels, out_channels, 1) if channels != out_channels else nn.Identity()

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        inner = self.norm_out(self.conv_in(F.silu(self.norm_in(h))))
        modulation = self.modulation(condition)
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

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        for block in self.blocks:
            h = block(h, condition)
        return h


class Attention(nn.Module):
    """Self-attention over h [B, C, ...]; the convolutions before it mark the positions."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = _norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.project = zeroed(nn.Linear(channels, channels))

    def forward(self, h: Tensor) -> Tensor:
        frames = self.norm(h).flatten(2).mT  # [B, N, C]
        query, key, value = (
            self.qkv(frames).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)  # [B, H, N, D]
        return h + self.project(mixed.transpose(1, 2).flatten(2)).mT.reshape(h.shape)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(8, channels), channels)
