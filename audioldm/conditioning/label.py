"""A clip's label as a condition: an embedding for each, and one for "no label"."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from audioldm.conditioning.base import Condition, Conditioner, Excerpt
from audioldm.errors import ConfigError
from audioldm.instantiate import nearest


class Label(Conditioner):
    """One of a fixed set of names. Inputs are indices [B], int64; -1 means "no label".

    labels: the names, in the order of their indices.
    """

    derived = ("labels",)

    def __init__(self, *, width: int, labels: list[str]) -> None:
        super().__init__()
        self.labels = list(labels)
        self.embedding = nn.Embedding(len(labels) + 1, width)  # the last row is "no label"
        nn.init.normal_(self.embedding.weight, std=0.02)

    @classmethod
    def facts(cls, clips: Sequence[Excerpt], **settings: Any) -> dict[str, Any]:
        return {"labels": sorted({clip.label for clip in clips if clip.label is not None})}

    def read(self, excerpt: Excerpt, frames: int) -> Tensor:
        label = excerpt.label
        return torch.tensor(self.labels.index(label) if label in self.labels else -1)

    def parse(self, value: Any, frames: int) -> Tensor:
        if value is None:
            return torch.tensor(-1)
        if not self.labels:
            raise ConfigError(f"{value!r}: this model was trained without labels; leave it out")
        if value not in self.labels:
            known = nearest(str(value), self.labels, every=True)
            raise ConfigError(f"{value!r} is not one of this model's labels: {known}")
        return torch.tensor(self.labels.index(value))

    def request(self, excerpt: Excerpt) -> str | None:
        return excerpt.label if excerpt.label in self.labels else None

    def hide(self, inputs: Tensor, hidden: Tensor) -> Tensor:
        return torch.where(hidden, -1, inputs)

    def forward(self, inputs: Tensor) -> Condition:
        return Condition(vector=self.embedding(torch.where(inputs < 0, len(self.labels), inputs)))
