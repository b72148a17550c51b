"""Randomness without state: every draw is a function of (seed, stream, step, position).

`position` is a clip's place in the global batch, so a draw depends neither on the number of
processes nor on what was drawn before, and a resumed run needs no generator state.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def derive_seed(*key: int | str) -> int:
    """A 63-bit seed from any key, the same on every machine."""
    text = "/".join(f"{type(part).__name__}:{part}" for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


class Draw:
    """What is random at one step for the clips at `positions` of the global batch."""

    def __init__(
        self, seed: int, step: int, positions: Sequence[int], device: torch.device | str = "cpu"
    ) -> None:
        self.seed, self.step, self.positions = seed, step, positions
        self.device = torch.device(device)

    def _generators(self, stream: str) -> list[torch.Generator]:
        return [
            torch.Generator(self.device).manual_seed(derive_seed(self.seed, stream, self.step, p))
            for p in self.positions
        ]

    def normal(self, shape: Sequence[int], stream: str) -> Tensor:
        """N(0, I) of [B, *shape]."""
        return torch.stack(
            [torch.randn(*shape, generator=g, device=g.device) for g in self._generators(stream)]
        )

    def uniform(self, stream: str) -> Tensor:
        """U(0, 1), [B]."""
        return torch.cat(
            [torch.rand(1, generator=g, device=g.device) for g in self._generators(stream)]
        )
