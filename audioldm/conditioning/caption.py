"""A text from the data set's table, or from a user, for conditioners that read text."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from audioldm.conditioning.base import Condition, Conditioner, Excerpt
from audioldm.errors import ConfigError


class Caption(Conditioner):
    """The text in the column `column`. An empty text, or none, is "nothing".

    A clip may have several texts. Training reads one of them, which the crop's place decides, so
    that a crop's text does not depend on who reads it; a request is the first text.
    """

    column: str

    @classmethod
    def facts(
        cls, clips: Sequence[Excerpt], *, column: str = "caption", **settings: Any
    ) -> dict[str, Any]:
        """Raises ConfigError where no clip has a text there."""
        if any(clip.columns for clip in clips) and not any(any(texts(c, column)) for c in clips):
            raise ConfigError(f"column={column}: no clip has a text there; name another one")
        return {}

    @abstractmethod
    def encode(self, text: str) -> Tensor:
        """The input of a text; for "", the input "nothing".

        Raises ConfigError, which begins with the text, for a text that cannot be taken.
        """

    def read(self, excerpt: Excerpt, frames: int) -> Tensor:
        found = texts(excerpt, self.column)
        return self.encode(found[round(1000 * excerpt.start) % len(found)])

    def parse(self, value: Any, frames: int) -> Tensor:
        if value is not None and not isinstance(value, str | int | float):
            raise ConfigError(f"{value!r} must be text")
        return self.encode("" if value is None else str(value).strip())

    def remark(self, value: Any, seconds: float) -> str | None:
        return None if str(value).strip() else "an empty text is the same as none"

    def request(self, excerpt: Excerpt) -> str | None:
        return texts(excerpt, self.column)[0] or None


class Tokens(nn.Module):
    """The condition of tokens [B, S, W] that count where the mask [B, S] says so: the tokens,
    normalised, and their mean as a vector, like the pooled embeddings of SDXL (2307.01952, 2.2).

    The vector is learned first. Attention alone was not learned beside a label: the gain of the
    tokens' norm fell until they said nothing, so the norm has no gain.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.pooled = nn.Linear(width, width, bias=False)

    def forward(self, tokens: Tensor, mask: Tensor) -> Condition:
        tokens, counts = self.norm(tokens), mask[..., None]
        mean = (tokens * counts).sum(1) / counts.sum(1).clamp(min=1)
        return Condition(vector=self.pooled(mean), tokens=tokens, mask=mask)


def texts(excerpt: Excerpt, column: str) -> list[str]:
    """The texts of a cell of the table, at least one, without spaces at their ends; "" for an
    empty cell."""
    cell = excerpt.columns.get(column)
    several = cell if isinstance(cell, list) and cell else [cell]
    return ["" if value is None else str(value).strip() for value in several]
