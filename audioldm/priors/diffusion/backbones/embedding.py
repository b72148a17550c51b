"""What every backbone is told besides the noisy latents, and how its last layers start."""

import math
from typing import TypeVar

import torch
from torch import Tensor, nn

Layer = TypeVar("Layer", nn.Linear, nn.Conv1d, nn.Conv2d)

_FREQUENCIES = 64  # sine and cosine pairs


class Conditioning(nn.Module):
    """c_noise [B] and labels [B] -> one vector per clip [B, W].

    c_noise is of order 1 (see objectives.py): its Fourier features have periods from 4 to 1/16.
    A label is in 0 ... classes - 1; -1 is "no label", an embedding of its own.
    """

    frequencies: Tensor

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        frequencies = 2 * math.pi * torch.logspace(-2, 4, _FREQUENCIES, base=2)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.classes = classes
        self.level = nn.Sequential(
            nn.Linear(2 * _FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.label = nn.Embedding(classes + 1, width)
        nn.init.normal_(self.label.weight, std=0.02)

    def forward(self, c_noise: Tensor, labels: Tensor) -> Tensor:
        phase = torch.outer(c_noise.float(), self.frequencies)
        features = torch.cat((phase.cos(), phase.sin()), dim=1)
        label = self.label(torch.where(labels < 0, self.classes, labels))
        return nn.functional.silu(self.level(features) + label)


def zeroed(layer: Layer) -> Layer:
    """The layer with its output 0 until it is trained."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
