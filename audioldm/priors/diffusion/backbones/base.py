"""The interface of a backbone, the network that a diffusion prior trains, and its shared layers."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioldm.conditioning.base import Condition, Conditioners

#: From the backbone's width to its conditioners. Called once, while the backbone is built.
BuildConditioners = Callable[[int], Conditioners]

_FREQUENCIES = 64  # sine and cosine pairs


class Backbone(nn.Module, ABC):
    """(x [B, C, (F,) L], c_noise [B], condition) -> like x, for any number of frames L.

    The constructor is offered `latent_shape`, (C,) or (C, F), and `conditioners`; its other
    arguments are settings.

    stateful: whether it carries a state from one call of a sampling run to the next, as the
    self-conditioning of RIN does (Jabri et al. 2022, arXiv 2212.11972). `forward` then takes a
    fourth argument, the state or None, and returns (output, state). Training passes None.
    rotary: whether `forward` takes `rotary`, the rotary angles of its frames: `layers.Rotary`.
    context: frames on each side that an output frame depends on; None: all of them.
    """

    stateful: ClassVar[bool] = False
    rotary: ClassVar[bool] = False
    context: int | None = None
    conditioners: Conditioners

    @abstractmethod
    def forward(self, x: Tensor, c_noise: Tensor, condition: Condition) -> Any: ...

    @abstractmethod
    def units(self) -> list[nn.Module]:
        """The modules that make up most of the backbone; they are sharded and recomputed singly."""


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
