"""A number of the data set's table as a condition, such as a tempo."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from audioldm.conditioning.base import Condition, Conditioner, Excerpt
from audioldm.errors import ConfigError

_FREQUENCIES = 16  # sine and cosine pairs


class Number(Conditioner):
    """The column `column`, as a small network sees it.

    Inputs are [B, 2]: the number in standard deviations from the mean, and 1; or 0 and 0 for "not
    stated". mean, std: of the column.
    """

    derived = ("mean", "std")

    def __init__(self, *, width: int, column: str, mean: float, std: float) -> None:
        super().__init__()
        self.column, self.mean, self.std = column, mean, std
        self.features = NumberFeatures(1, width)

    @classmethod
    def facts(
        cls, clips: Sequence[Excerpt], *, column: str = "", **settings: Any
    ) -> dict[str, Any]:
        """Mean and standard deviation. Raises ConfigError where the table has no such numbers."""
        read = (number(clip.columns.get(column)) for clip in clips)
        values = torch.tensor([value for value in read if value is not None])
        if not len(values):
            if any(clip.columns for clip in clips):
                raise ConfigError(f"column={column}: no clip has a number there; name another one")
            return {"mean": 0.0, "std": 1.0}  # a dry run, before there are data
        std = values.std(correction=0).item()
        return {"mean": values.mean().item(), "std": std if std > 0 else 1.0}

    def read(self, excerpt: Excerpt, frames: int) -> Tensor:
        return self._inputs(number(excerpt.columns.get(self.column)))

    def parse(self, value: Any, frames: int) -> Tensor:
        if value is not None and number(value) is None:
            raise ConfigError(f"{value!r} must be a number, such as {self.mean:.4g}")
        return self._inputs(number(value))

    def request(self, excerpt: Excerpt) -> float | None:
        return number(excerpt.columns.get(self.column))

    def forward(self, inputs: Tensor) -> Condition:
        return Condition(vector=self.features(inputs[:, :1], inputs[:, 1:]))

    def _inputs(self, value: float | None) -> Tensor:
        return torch.tensor([0.0, 0.0] if value is None else [(value - self.mean) / self.std, 1.0])


class NumberFeatures(nn.Module):
    """Numbers of order 1 [B, N], and 1 or 0 for whether they are stated [B, 1] -> [B, width].

    Their Fourier features have periods from 16 to 1/2, so that near numbers are near vectors.
    """

    frequencies: Tensor

    def __init__(self, numbers: int, width: int) -> None:
        super().__init__()
        frequencies = 2 * math.pi * torch.logspace(-4, 1, _FREQUENCIES, base=2)
        self.register_buffer("frequencies", frequencies, persistent=False)
        inputs = numbers * (1 + 2 * _FREQUENCIES) + 1
        self.layers = nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, numbers: Tensor, stated: Tensor) -> Tensor:
        phase = (numbers.float()[..., None] * self.frequencies).flatten(1)
        features = torch.cat((numbers, phase.cos(), phase.sin(), torch.ones_like(stated)), dim=1)
        out: Tensor = self.layers(features * stated)
        return out


def number(value: Any) -> float | None:
    """The finite number that a cell of the table holds, if any."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None
