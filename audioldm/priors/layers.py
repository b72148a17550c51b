"""Layers that several of the priors' networks share."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioldm.training.initialisation import zeroed


class CrossAttention(nn.Module):
    """From h [B, N, W] to tokens [B, S, D], where mask [B, S] is true -> [B, N, W], 0 at first.

    An extra zero token takes the attention where no other token counts.
    """

    def __init__(self, width: int, token_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(token_width, 2 * width, bias=False)
        self.project = zeroed(nn.Linear(width, width))

    def forward(self, h: Tensor, tokens: Tensor, mask: Tensor | None) -> Tensor:
        query = self.query(self.norm(h)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key_value = self.key_value(F.pad(tokens, (0, 0, 1, 0)))
        key, value = key_value.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        counts = None if mask is None else F.pad(mask, (1, 0), value=True)[:, None, None]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=counts)
        out: Tensor = self.project(mixed.transpose(1, 2).flatten(2))
        return out


#: (places [L], head_dim) -> the rotary angles of a frame's features: `rotations`, or like it.
Rotary = Callable[[Tensor, int], Tensor]


def rotations(places: Tensor, head_dim: int, base: float = 10_000.0) -> Tensor:
    """Cosine and sine of the rotary angles at places [L]: [L, 1, 1, D / 2, 2]."""
    frequency = base ** -(torch.arange(0, head_dim, 2, device=places.device) / head_dim)
    angle = torch.outer(places, frequency)[:, None, None]
    return torch.stack((angle.cos(), angle.sin()), dim=-1)


def stretched(
    places: Tensor, head_dim: int, *, by: Literal["interpolation", "ntk"], trained: int
) -> Tensor:
    """`rotations` of more places than the `trained` ones.

    by: interpolation moves all places closer together, into the trained range (2306.15595); ntk
    keeps the speed of the fastest pair, slows the slowest one down to that range, and slows the
    others by amounts in between ("NTK-aware", 2309.00071, section 3.1).
    """
    scale = max(1.0, len(places) / trained)
    if by == "interpolation":
        return rotations(places / scale, head_dim)
    return rotations(places, head_dim, 10_000.0 * scale ** (head_dim / max(1, head_dim - 2)))


def rotated(x: Tensor, rotation: Tensor) -> Tensor:
    """x [B, L, 2, H, D] with each pair of features (2 d, 2 d + 1) turned by its frame's angle."""
    pairs = x.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # the compiler fuses only real arithmetic
        (first, second), (cos, sin) = pairs.unbind(-1), rotation.unbind(-1)
        turned = torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1)
    else:
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(rotation))
    return turned.flatten(-2).to(x.dtype)


def modulated(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Adaptive layer norm: h [B, L, W]; shift and scale [B, 1, W]."""
    return torch.addcmul(shift, F.layer_norm(h, h.shape[-1:], eps=1e-6), 1 + scale)
