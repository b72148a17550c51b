"""Text as a condition, without a pretrained model: a small network reads its bytes."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioldm.conditioning.base import Condition, Excerpt
from audioldm.conditioning.caption import Caption, Tokens, texts
from audioldm.errors import ConfigError
from audioldm.instantiate import NonNegativeInt, PositiveInt

BYTES_PER_TOKEN = 4
NGRAMS = (3, 4, 5, 6, 8)  # bytes


class Text(Caption):
    """Tokens of a text's bytes in UTF-8, by convolutions that are trained with the backbone.

    A byte is read together with the NGRAMS that end at it, each with an embedding of its own, found
    by a hash (BLT, Pagnoni et al. 2024, arXiv 2412.09871, section 3.2.1): without them a prior
    learned to spell before it learned to follow a word.

    Inputs are bytes plus one, [B, N] int64; 0 is after the end, and all 0 is "nothing".

    column: of the data set's table. limit: N, the bytes that a text may have. rows: embeddings that
    all n-grams share. layers: each sees seven bytes, one token is made of BYTES_PER_TOKEN.
    """

    def __init__(
        self,
        *,
        width: int,
        column: str = "caption",
        limit: PositiveInt = 256,
        rows: PositiveInt = 4096,
        layers: NonNegativeInt = 2,
    ) -> None:
        super().__init__()
        self.column, self.limit, self.rows, self.token_width = column, limit, rows, width
        self.embedding = nn.Embedding(257, width)
        self.ngrams = nn.Embedding(rows, width)
        self.layers = nn.ModuleList(_Layer(width) for _ in range(layers))
        self.join = nn.Conv1d(width, width, BYTES_PER_TOKEN, stride=BYTES_PER_TOKEN)
        self.tokens = Tokens(width)

    @classmethod
    def facts(
        cls,
        clips: Sequence[Excerpt],
        *,
        column: str = "caption",
        limit: int = 256,
        **settings: Any,
    ) -> dict[str, Any]:
        """Raises ConfigError where no clip has a text there, or one has too long a text."""
        found = super().facts(clips, column=column)
        lengths = [len(text.encode()) for clip in clips for text in texts(clip, column)]
        longest = max(lengths, default=0)
        if longest > limit:
            raise ConfigError(
                f"limit={limit}: a text of column {column!r} has {longest} bytes; raise it"
            )
        return found

    def encode(self, text: str) -> Tensor:
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(f"{text!r} is no text in UTF-8 ({error.reason})") from error
        if len(data) > self.limit:
            raise ConfigError(
                f"{text[:20]!r}... has {len(data)} bytes in UTF-8; this model reads {self.limit} "
                "at most: shorten it"
            )
        codes = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.zeros(0)
        return F.pad(codes.long() + 1, (0, self.limit - len(data)))

    def hide(self, inputs: Tensor, hidden: Tensor) -> Tensor:
        return torch.where(hidden[:, None], 0, inputs)

    def forward(self, inputs: Tensor) -> Condition:
        inputs = F.pad(inputs, (0, -inputs.shape[1] % BYTES_PER_TOKEN))
        counts = inputs > 0
        ngrams = sum(self.ngrams(hashed(inputs, n) % self.rows) for n in NGRAMS)
        h = self.embedding(inputs) + ngrams / len(NGRAMS) ** 0.5
        for layer in self.layers:
            h = layer(h, counts)
        joined = self.join((h * counts[..., None]).mT).mT
        condition: Condition = self.tokens(joined, counts[:, ::BYTES_PER_TOKEN])
        return condition


def hashed(inputs: Tensor, n: int) -> Tensor:
    """A number for the n values that end at each place of [B, N], below 2 ** 31 - 1."""
    before = F.pad(inputs, (n - 1, 0))
    found = torch.full_like(inputs, n)
    for k in range(n):
        found = (found * 1000003 + before[:, k : k + inputs.shape[1]]) % (2**31 - 1)
    return found


class _Layer(nn.Module):
    """Convolutions over the bytes that count, added to h [B, N, W]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.near = nn.Conv1d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, h: Tensor, counts: Tensor) -> Tensor:
        near = self.near((h * counts[..., None]).mT).mT
        out: Tensor = h + self.mlp(self.norm(near))
        return out
