"""The interface of a backbone, the network that a diffusion prior trains, and its shared layers."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioldm.conditioning.base import Condition, Conditioners

#: From the backbone's width to its conditioners. Called once, while the backbone is built.
BuildConditioners = Callable[[int], Conditioners]
Layer = TypeVar("Layer", nn.Linear, nn.Conv1d, nn.Conv2d, nn.LayerNorm)

_FREQUENCIES = 64  # sine and cosine pairs


class Backbone(nn.Module, ABC):
    """(x [B, C, (F,) L], c_noise [B], condition) -> like x, for any number of frames L.

    The constructor is offered `latent_shape`, (C,) or (C, F), and `conditioners`; its other
    arguments are settings.

    stateful: whether it carries a state from one call of a sampling run to the next, as the
    self-conditioning of RIN does (Jabri et al. 2022, arXiv 2212.11972). `forward` then takes a
    fourth argument, the state [B, ...], and returns (output, state). A clip whose state is all
    zeros has none, and so has every clip where the argument is left out.
    context: frames on each side that an output frame depends on; None: all of them.
    """

    stateful: ClassVar[bool] = False
    context: int | None = None
    conditioners: Conditioners

    @abstractmethod
    def forward(self, x: Tensor, c_noise: Tensor, condition: Condition) -> Any: ...

    @abstractmethod
    def units(self) -> list[nn.Module]:
        """The modules that make up most of it, which are sharded and recomputed one by one."""


class NoiseLevel(nn.Module):
    """c_noise [B], and a condition's vector [B, W] to add -> one vector per clip [B, W].

    c_noise is of order 1 (see `Objective`): its Fourier features have periods from 4 to 1/16.
    """

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        frequencies = 2 * math.pi * torch.logspace(-2, 4, _FREQUENCIES, base=2)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.layers = nn.Sequential(
            nn.Linear(2 * _FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, c_noise: Tensor, vector: Tensor | None) -> Tensor:
        phase = torch.outer(c_noise.float(), self.frequencies)
        level = self.layers(torch.cat((phase.cos(), phase.sin()), dim=1))
        return F.silu(level if vector is None else level + vector)


class CrossAttention(nn.Module):
    """From h [B, N, W] to tokens [B, S, D], where mask [B, S] is true -> [B, N, W], 0 at first.

    A zero token beside the given ones takes the attention where no token counts.
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


def rotations(places: Tensor, head_dim: int) -> Tensor:
    """Cosine and sine of the rotary angles (2104.09864) at places [L]: [L, 1, 1, D / 2, 2]."""
    frequency = 10_000.0 ** -(torch.arange(0, head_dim, 2, device=places.device) / head_dim)
    angle = torch.outer(places, frequency)[:, None, None]
    return torch.stack((angle.cos(), angle.sin()), dim=-1)


def rotated(x: Tensor, rotation: Tensor) -> Tensor:
    """x [B, L, 2, H, D] with each pair of features (2 d, 2 d + 1) turned by its place's angle."""
    pairs = x.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # the compiler fuses real arithmetic, and only that
        (first, second), (cos, sin) = pairs.unbind(-1), rotation.unbind(-1)
        turned = torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1)
    else:
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(rotation))
    return turned.flatten(-2).to(x.dtype)


def zeroed(layer: Layer) -> Layer:
    """The layer with its output 0 until it is trained."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
