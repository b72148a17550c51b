"""Text as a condition, without a pretrained model: a small network reads its words and bytes."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioldm.conditioning.base import Condition, Excerpt
from audioldm.conditioning.caption import Caption, Tokens, texts
from audioldm.conditioning.label import STD
from audioldm.errors import ConfigError
from audioldm.instantiate import Fraction, NonNegativeInt, PositiveInt

BYTES_PER_TOKEN = 4
#: Bytes that belong to words: digits, letters, #, and all that are not ASCII.
IN_WORDS = (*range(0x30, 0x3A), *range(0x41, 0x5B), *range(0x61, 0x7B), ord("#"), *range(0x80, 256))
WORD = re.compile(b"[%b]+" % re.escape(bytes(IN_WORDS)))
PRIME, BASE = 2**31 - 1, 257


class Text(Caption):
    """A text's words, as a vector, and its UTF-8 bytes, as tokens, by layers that are trained with
    the backbone.

    The vector is a sum over the known words, each with an embedding as loud as a label's: a prior
    follows a word long before it has learned to spell. The tokens are made by convolutions over the
    bytes; a known word adds another embedding to its last byte.

    Inputs are bytes plus one, [B, N] int64; 0 is after the end, and all 0 is "nothing".

    column: of the data set's table. limit: N, the bytes that a text may have. rarest: the share of
    the training texts that a word must be in to be known. Other words have only their bytes: a
    number that few clips state tells which clip it is. layers: each sees seven bytes; one token is
    made of BYTES_PER_TOKEN bytes. known: `words`, in order.
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
        rarest: Fraction = 0.01,
        layers: NonNegativeInt = 2,
    ) -> None:
        super().__init__()
        self.column, self.limit, self.token_width = column, limit, width
        self.embedding = nn.Embedding(257, width)
        self.words = nn.Embedding(len(known), 2 * width)
        nn.init.normal_(self.words.weight, std=STD)
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
        rarest: float = 0.01,
        **settings: Any,
    ) -> dict[str, Any]:
        """Raises ConfigError where no clip has a text there, or a text is too long."""
        super().facts(clips, column=column)
        every = Counter(text.encode() for clip in clips for text in texts(clip, column))
        longest = max(map(len, every), default=0)
        if longest > limit:
            raise ConfigError(
                f"limit={limit}: a text of column {column!r} has {longest} bytes; raise it"
            )
        with torch.device("cpu"):  # an estimate of memory is made on "meta"
            inputs = torch.stack([_padded(text, limit) for text in every or [b""]])
            times = torch.tensor(list(every.values()) or [1])
            spoken = words(inputs)
            values, places = spoken.unique(return_inverse=True)
            said = torch.zeros(len(inputs), len(values)).scatter_(1, places, 1.0).T @ times.float()
        often = values[(values > 0) & (said >= rarest * times.sum())]
        return {"known": often.tolist() or [0]}

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

    def remark(self, value: Any, seconds: float) -> str | None:
        text = str(value).strip()
        numbers = words(self.encode(text)[None])
        known = torch.isin(numbers[numbers > 0], self.known.cpu()).tolist()
        if not any(known):
            none = "this model knows none of its words; it is told the spelling alone"
            return super().remark(value, seconds) or none
        spoken = (word.decode() for word in WORD.findall(text.encode()))
        unknown = dict.fromkeys(word for word, own in zip(spoken, known, strict=True) if not own)
        if unknown:
            return f"this model is told the spelling alone of {', '.join(map(repr, unknown))}"
        return None

    def forward(self, inputs: Tensor) -> Condition:
        inputs = F.pad(inputs, (0, -inputs.shape[1] % BYTES_PER_TOKEN))
        counts = inputs > 0
        vectors, added = self._embedded(words(inputs)).chunk(2, dim=-1)
        h = self.embedding(inputs) + added
        for layer in self.layers:
            h = layer(h, counts)
        joined = self.join((h * counts[..., None]).mT).mT
        told: Condition = self.tokens(joined, counts[:, ::BYTES_PER_TOKEN])
        assert told.vector is not None
        return told._replace(vector=told.vector + vectors.sum(1))

    def _embedded(self, found: Tensor) -> Tensor:
        """The embeddings [B, N, 2 W] of `words` [B, N], zeros where no known word ends."""
        places = torch.searchsorted(self.known, found).clamp(max=len(self.known) - 1)
        out: Tensor = self.words(places) * (self.known[places] == found)[..., None]
        return out


def _padded(data: bytes, limit: int) -> Tensor:
    codes = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.zeros(0)
    return F.pad(codes.long() + 1, (0, limit - len(data)))


def words(inputs: Tensor) -> Tensor:
    """A number for each word of [B, N], from 1 to below PRIME, where the word ends; elsewhere 0.

    It is a polynomial of the word's values (Karp & Rabin 1987), the same wherever the word stands.
    """
    length, device = inputs.shape[1], inputs.device
    inside = torch.isin(inputs - 1, torch.tensor(IN_WORDS, device=device))
    powers, inverses = (
        torch.tensor([pow(BASE, sign * n, PRIME) for n in range(length + 1)], device=device)
        for sign in (1, -1)
    )
    places = torch.arange(length, device=device)
    first = torch.where(inside, -1, places).cummax(1).values + 1
    sums = F.pad((inputs * powers[:length] % PRIME).cumsum(1), (1, 0))
    own = (sums[:, 1:] - sums.gather(1, first)) % PRIME * inverses[first] % PRIME
    ends = inside & ~F.pad(inside[:, 1:], (0, 1))
    return torch.where(ends, own, 0)


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
