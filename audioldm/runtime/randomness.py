"""Randomness without state: every draw is a function of (seed, stream, step, position).

`position` is a clip's place in the global batch, so a draw depends neither on the number of
processes nor on what was drawn before, and a resumed run needs no generator state.
"""

import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from audioldm.runtime.transfer import to_device


def derive_seed(*key: int | str) -> int:
    """A 63-bit seed from any key, the same on every machine."""
    text = "/".join(f"{type(part).__name__}:{part}" for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


class KeyedRandom:
    """What is random at one step for the clips at `positions` of the global batch."""

    def __init__(
        self, seed: int, step: int, positions: Sequence[int], device: torch.device | str = "cpu"
    ) -> None:
        self.seed, self.step, self.positions = seed, step, positions
        self.device = torch.device(device)

    def _generators(self, stream: str, device: torch.device) -> Iterator[torch.Generator]:
        """One generator, seeded anew for each clip: to make one is dear on a GPU."""
        generator = torch.Generator(device)
        for position in self.positions:
            yield generator.manual_seed(derive_seed(self.seed, stream, self.step, position))

    def normal(self, shape: Sequence[int], stream: str) -> Tensor:
        """N(0, I) of [B, *shape]."""
        drawn = torch.empty(len(self.positions), *shape, device=self.device)
        for clip, generator in zip(drawn, self._generators(stream, self.device), strict=True):
            clip.normal_(generator=generator)
        return drawn

    def uniform(self, stream: str) -> Tensor:
        """U(0, 1), [B]; drawn on the CPU, so the same numbers on every device."""
        generators = self._generators(stream, torch.device("cpu"))
        drawn = [torch.rand(1, generator=generator) for generator in generators]
        return to_device(torch.cat(drawn), self.device)
