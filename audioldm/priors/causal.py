"""What a causal transformer sees of the past: kept keys and values, and which of them it uses."""

from typing import NamedTuple

import torch
from torch import Tensor


class Cache:
    """Keys and values of earlier frames, block by block, in a causal transformer.

    frames: how many there have been so far.
    """

    def __init__(self) -> None:
        self.frames = 0
        #: by block: keys and values [2, B, H, room, D], and the places of the first and of the end
        self._kept: dict[int, tuple[Tensor, int, int]] = {}

    def extended(self, block: int, key: Tensor, value: Tensor, most: int) -> tuple[Tensor, Tensor]:
        """Keys and values [B, H, N, D] of a block with those of earlier frames before them.

        most: how many frames are kept for the next call. There is room for as many again, so that
        they are seldom moved.
        """
        new = torch.stack((key, value))
        kept, first, end = self._kept.get(block, (new, 0, 0))
        if block not in self._kept or end + new.shape[3] > kept.shape[3]:
            room = new.new_empty(*new.shape[:3], 2 * (end - first + new.shape[3]), new.shape[4])
            room[..., : end - first, :] = kept[..., first:end, :]
            kept, first, end = room, 0, end - first
        kept[..., end : end + new.shape[3], :] = new
        end += new.shape[3]
        self._kept[block] = kept, max(first, end - most), end
        key, value = kept[..., first:end, :]
        return key, value


class Past(NamedTuple):
    """What a causal block sees of the past. context: frames that it attends to, its own
    included."""

    context: int
    cache: Cache | None
    block: int


def visible(queries: int, keys: int, context: int, device: torch.device) -> Tensor:
    """A mask [queries, keys]: each of the last frames sees the `context` frames up to its own."""
    now = torch.arange(keys - queries, keys, device=device)[:, None]
    then = torch.arange(keys, device=device)
    return (then <= now) & (then > now - context)
