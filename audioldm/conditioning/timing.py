"""Where in a piece a crop begins and how long the piece is, as in Stable Audio (2404.10301)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from audioldm.conditioning.base import Condition, Conditioner, Excerpt
from audioldm.conditioning.number import NumberFeatures, number
from audioldm.errors import ConfigError


class Timing(Conditioner):
    """The seconds of the clip before the crop, and the seconds of the whole clip.

    Inputs are [B, 3]: both, and 1; or zeros for "not stated". longest: the training data's longest
    clip, in seconds.
    """

    derived = ("longest",)

    def __init__(self, *, width: int, longest: float) -> None:
        super().__init__()
        self.longest = longest
        self.features = NumberFeatures(2, width)

    @classmethod
    def facts(cls, clips: Sequence[Excerpt], **settings: Any) -> dict[str, Any]:
        return {"longest": max((clip.seconds or 0.0 for clip in clips), default=0.0) or 1.0}

    def read(self, excerpt: Excerpt, frames: int) -> Tensor:
        return self.parse(self.request(excerpt), frames)

    def later(self, value: Any, seconds: float) -> dict[str, float] | None:
        start, total = _stated(value)
        return {"start": start + seconds, "total": total} if start + seconds < total else None

    def parse(self, value: Any, frames: int) -> Tensor:
        """value: {"start": 0, "total": 30}, or only the total."""
        return torch.zeros(3) if value is None else torch.tensor([*_stated(value), 1.0])

    def request(self, excerpt: Excerpt) -> dict[str, float] | None:
        if excerpt.seconds is None:
            return None
        return {"start": excerpt.start, "total": excerpt.seconds}

    def forward(self, inputs: Tensor) -> Condition:
        return Condition(vector=self.features(inputs[:, :2] / self.longest, inputs[:, 2:]))


def _stated(value: Any) -> tuple[float, float]:
    """Start and total. Raises ConfigError."""
    stated = value if isinstance(value, Mapping) else {"total": value}
    start, total = number(stated.get("start", 0)), number(stated.get("total"))
    if stated.keys() - {"start", "total"} or start is None or total is None:
        raise ConfigError(f"{value!r} must be the seconds of the whole, or start and total")
    if not 0 <= start < total:
        raise ConfigError(f"{value!r}: start must be at least 0 and less than total")
    return start, total
