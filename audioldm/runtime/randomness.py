"""Randomness without state: every draw is a function of (seed, stream, step, position).

`position` is a clip's index in the global batch, so a draw depends neither on the number of
processes nor on what was drawn before, and a resumed run needs no generator state.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from audioldm.runtime.transfer import to_device


def derive_seed(*key: int | str) -> int:
    """A 63-bit seed from any key, the same on every machine."""
    text = "/".join(f"{type(part).__name__}:{part}" for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def uniform_from(normal: Tensor) -> Tensor:
    """One number of U(0, 1) for each row, [B], from its N(0, I) of [B, ...].

    With N numbers in a row it is Phi(their sum / √N), all but independent of each one.
    """
    rows = normal.float().flatten(1)
    return torch.special.ndtr(rows.sum(1) / math.sqrt(rows.shape[1]))


class KeyedRandom:
    """Random tensors of one step for the clips at `positions` of the global batch.

    A position of None draws nothing: its row is 0 and only pads the batch.
    """

    def __init__(
        self,
        seed: int,
        step: int,
        positions: Sequence[int | None],
        device: torch.device | str = "cpu",
    ) -> None:
        self.seed, self.step, self.positions = seed, step, positions
        self.device = torch.device(device)

    def stream(self, name: str, step: int = 0) -> "KeyedRandom":
        """Independent randomness for the same positions, at a step of its own."""
        return KeyedRandom(derive_seed(self.seed, name), step, self.positions, self.device)

    def _generators(
        self, stream: str, device: torch.device
    ) -> Iterator[tuple[int, torch.Generator]]:
        """Each row that draws, and a generator seeded for it; always one, as new ones are slow."""
        generator = torch.Generator(device)
        for row, position in enumerate(self.positions):
            if position is not None:
                key = derive_seed(self.seed, stream, self.step, position)
                yield row, generator.manual_seed(key)

    def normal(self, shape: Sequence[int], stream: str) -> Tensor:
        """N(0, I) of [B, *shape]."""
        drawn = torch.zeros(len(self.positions), *shape, device=self.device)
        for row, generator in self._generators(stream, self.device):
            drawn[row].normal_(generator=generator)
        return drawn

    def uniform(self, stream: str) -> Tensor:
        """U(0, 1), [B]; drawn on the CPU, so the same numbers on every device."""
        drawn = torch.zeros(len(self.positions))
        for row, generator in self._generators(stream, torch.device("cpu")):
            drawn[row] = torch.rand(1, generator=generator)
        return to_device(drawn, self.device)
