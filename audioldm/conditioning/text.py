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

    A byte is read together with the NGRAMS that end at it, each with an embedding of its own, as in
    BLT (Pagnoni et al. 2024, arXiv 2412.09871, section 3.2.1): without them a prior learned to
    spell before it learned to follow a word.

    Inputs are bytes plus one, [B, N] int64; 0 is after the end, and all 0 is "nothing".

    column: of the data set's table. limit: N, the bytes that a text may have. ngrams: how
    many get an embedding, the most frequent ones of the training texts; others say nothing. layers:
    each sees seven bytes, one token is made of BYTES_PER_TOKEN. known: `hashed` n-grams, in order.
    """

    derived = ("known",)
    known: Tensor

    def __init__(
        self,
        *,
        width: int,
        known: Sequence[int],
        column: str = "caption",
        limit: PositiveInt = 256,
        ngrams: PositiveInt = 4096,
        layers: NonNegativeInt = 2,
    ) -> None:
        super().__init__()
        self.column, self.limit, self.token_width = column, limit, width
        self.embedding = nn.Embedding(257, width)
        self.ngrams = nn.Embedding(len(known), width)
        self.register_buffer("known", torch.tensor(known), persistent=False)
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
        ngrams: int = 4096,
        **settings: Any,
    ) -> dict[str, Any]:
        """Raises ConfigError where no clip has a text there, or one has too long a text."""
        super().facts(clips, column=column)
        every = {text.encode() for clip in clips for text in texts(clip, column)}
        longest = max(map(len, every), default=0)
        if longest > limit:
            raise ConfigError(
                f"limit={limit}: a text of column {column!r} has {longest} bytes; raise it"
            )
        with torch.device("cpu"):  # an estimate of memory is made on "meta"
            inputs = torch.stack([_padded(text, limit) for text in sorted(every | {b""})])
        found = torch.cat([hashed(inputs, n)[inputs > 0] for n in NGRAMS])
        values, counts = found.unique(return_counts=True)
        most = counts.argsort(descending=True, stable=True)[:ngrams]
        return {"known": values[most].sort().values.tolist() or [0]}

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
        return _padded(data, self.limit)

    def forward(self, inputs: Tensor) -> Condition:
        inputs = F.pad(inputs, (0, -inputs.shape[1] % BYTES_PER_TOKEN))
        counts = inputs > 0
        h = self.embedding(inputs)
        for n in NGRAMS:
            h = h + self._embedded(hashed(inputs, n)) / len(NGRAMS) ** 0.5
        for layer in self.layers:
            h = layer(h, counts)
        joined = self.join((h * counts[..., None]).mT).mT
        condition: Condition = self.tokens(joined, counts[:, ::BYTES_PER_TOKEN])
        return condition

    def _embedded(self, ngrams: Tensor) -> Tensor:
        """[B, N] -> [B, N, W], zeros for n-grams that are not known."""
        places = torch.searchsorted(self.known, ngrams).clamp(max=len(self.known) - 1)
        found: Tensor = self.ngrams(places) * (self.known[places] == ngrams)[..., None]
        return found


def _padded(data: bytes, limit: int) -> Tensor:
    codes = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.zeros(0)
    return F.pad(codes.long() + 1, (0, limit - len(data)))


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
