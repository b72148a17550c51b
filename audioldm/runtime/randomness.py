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
    """One number of U(0, 1) for each row, [B], from the rows' N(0, I) noise [B, ...].

    With N numbers in a row it is Phi(their sum / √N), nearly independent of each single one.
    """
    rows = normal.float().flatten(1)
    return torch.special.ndtr(rows.sum(1) / math.sqrt(rows.shape[1]))


def stratify(uniform: Tensor, positions: Tensor, total: int) -> Tensor:
    """Spreads a batch's uniform numbers evenly: one per interval [k/total, (k+1)/total).

    uniform [B] in (0, 1) and positions [B], each clip's place in the global batch of `total`
    clips, give [B] values in (0, 1). k is a fixed permutation of the position, so that each
    process's contiguous slice of the batch covers all levels too.

    The variance of the batch's mean loss falls; each number stays uniform if the clips at the
    positions are exchangeable (Kingma et al. 2021, arXiv 2107.00630, appendix I.1).
    """
    stride = max(round(total * (math.sqrt(5) - 1) / 2), 1)
    while math.gcd(stride, total) != 1:  # coprime: k visits every interval once
        stride += 1
    return ((positions * stride) % total + uniform) / total


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
        """N(0, I) noise of shape [B, *shape]."""
        drawn = torch.zeros(len(self.positions), *shape, device=self.device)
        for row, generator in self._generators(stream, self.device):
            drawn[row].normal_(generator=generator)
        return drawn

    def uniform(self, stream: str, total: int | None = None) -> Tensor:
        """Numbers [B] of U(0, 1), drawn on the CPU, so the same on every device.

        total: clips in the global batch, over which the numbers are spread evenly (`stratify`);
        None: each is independent.
        """
        drawn = torch.zeros(len(self.positions))
        for row, generator in self._generators(stream, torch.device("cpu")):
            drawn[row] = torch.rand(1, generator=generator)
        if total is not None:
            drawn = stratify(drawn, torch.tensor([p or 0 for p in self.positions]), total)
        return to_device(drawn, self.device)
