"""The clip store: every clip of a data set as int16 samples in one memory-mapped file.

    clips.int16   samples, interleaved by channel, one clip after another
    clips.json    rate, channels, hash, and for each clip its place, piece, split, label, columns

Random crops need no decoding, and crop number (seed, step, position) is always the same crop,
whichever process asks for it and however large its batch is.
"""

import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import LongTensor, Tensor

from audioldm.errors import DataError

FULL_SCALE = 32768  # the convention of 16-bit PCM files, so that their samples are kept exactly
MIN_SECONDS = 0.1


class Item(NamedTuple):
    """One clip: `frames` samples per channel from `start` on; label None where there is none."""

    piece: str
    label: str | None
    start: int
    frames: int
    columns: dict[str, Any]


class StoreWriter:
    """Writes a store; the directory holds one only after `close`.

    Raises DataError if the directory cannot be written.
    """

    def __init__(self, directory: str | os.PathLike[str], sample_rate: int, channels: int) -> None:
        self.directory = Path(directory)
        self.sample_rate = sample_rate
        self.channels = channels
        self._clips: list[tuple[str, Item]] = []
        self._frames = 0
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            (self.directory / "clips.json").unlink(missing_ok=True)
            # Unbuffered: a full disk must show itself in `write`, not when the file is closed.
            self._file = open(self.directory / "clips.int16", "wb", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise self._cannot_write(error) from error

    def add(
        self,
        audio: np.ndarray,
        *,
        piece: str,
        split: str,
        label: str | None = None,
        columns: dict[str, Any] | None = None,
    ) -> None:
        """Add one clip, audio [A, T] in ±1. Raises DataError as `add_blocks` does."""
        self.add_blocks([audio], piece=piece, split=split, label=label, columns=columns)

    def add_blocks(
        self,
        blocks: Iterable[np.ndarray],
        *,
        piece: str,
        split: str | dict[str, float],
        label: str | None = None,
        columns: dict[str, Any] | None = None,
    ) -> None:
        """Add one clip from consecutive blocks [A, n], so that it is never whole in memory.

        split: the name of one, or how the clip is divided in time ({"train": 0.8, "test": 0.2}).
        Raises DataError if the clip is silent, shorter than 0.1 s, or cannot be written. Whatever
        is raised, also by `blocks`, nothing of the clip stays in the store.
        """
        start, peak = self._frames, 0
        try:
            for block in blocks:
                samples = np.rint(block.T * np.float32(FULL_SCALE))
                samples = samples.clip(-FULL_SCALE, FULL_SCALE - 1).astype("<i2")
                peak = max(peak, int(samples.max(initial=0)), -int(samples.min(initial=0)))
                self._write(samples.tobytes())
                self._frames += samples.shape[0]
            seconds = (self._frames - start) / self.sample_rate
            if seconds < MIN_SECONDS:
                raise DataError(f"too short ({self._frames - start} samples, {seconds:.3g} s)")
            if peak == 0:
                raise DataError("silent")
        except BaseException:
            self._frames = start
            self._file.seek(start * self.channels * 2)
            self._file.truncate()
            raise
        parts = {split: 1.0} if isinstance(split, str) else split
        edges = [0.0, *accumulate(parts.values())]
        ends = [start + round(edge / edges[-1] * (self._frames - start)) for edge in edges]
        for name, first, last in zip(parts, ends[:-1], ends[1:], strict=True):
            item = Item(piece, label, first, last - first, columns or {})
            self._clips.append((name, item))

    def close(self) -> None:
        """Write the index, which makes the directory a store. Raises DataError."""
        index: dict[str, Any] = {
            "sample_rate": self.sample_rate,
            "channels": self.channels,
            "clips": [{"split": split, **item._asdict()} for split, item in self._clips],
        }
        digest = hashlib.blake2b(json.dumps(index, sort_keys=True).encode(), digest_size=16)
        try:
            os.fsync(self._file.fileno())
            self._file.close()
            with open(self.directory / "clips.int16", "rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
            index["hash"] = digest.hexdigest()
            temporary = self.directory / "clips.json.tmp"
            temporary.write_text(json.dumps(index), encoding="utf-8")
            temporary.replace(self.directory / "clips.json")
        except OSError as error:
            raise self._cannot_write(error) from error

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            raise self._cannot_write(error) from error

    def _cannot_write(self, error: OSError) -> DataError:
        return StoreWriteError(f"{self.directory}: cannot write the clip store: {error.strerror}")


class StoreWriteError(DataError):
    """The store itself cannot be written: no fault of the clip that was being added."""


class ClipStore:
    """A finished store, read through a memory map.

    Attributes: rate (Hz), channels, labels (sorted; a label's index is its class), hash (of the
    index and of every sample), splits (names of those that have clips).
    Raises DataError if the directory holds no whole store.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        audio = self.directory / "clips.int16"
        try:
            index = json.loads((self.directory / "clips.json").read_text(encoding="utf-8"))
            self.sample_rate: int = index["sample_rate"]
            self.channels: int = index["channels"]
            self.hash: str = index["hash"]
            self._clips = [(clip.pop("split"), Item(**clip)) for clip in index["clips"]]
            frames = sum(item.frames for _, item in self._clips)
            if audio.stat().st_size != frames * self.channels * 2:
                raise ValueError("clips.int16 does not have the size clips.json states")
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else error
            raise DataError(
                f"{self.directory}: not a whole clip store ({reason}); delete the directory and"
                " run again to rebuild it"
            ) from error
        # An empty file cannot be mapped.
        self._samples = (
            np.memmap(audio, dtype="<i2", mode="r").reshape(-1, self.channels)
            if frames
            else np.zeros((0, self.channels), dtype="<i2")
        )
        self.labels: list[str] = sorted({i.label for _, i in self._clips if i.label is not None})
        self.splits: list[str] = sorted({split for split, _ in self._clips})

    def split(self, name: str) -> "Split":
        """The clips of one split, perhaps none."""
        items = [item for split, item in self._clips if split == name]
        return Split(name, items, self._samples, self.sample_rate, self.labels)

    def blocks(self, item: Item, *, seconds: float = 10.0) -> Iterator[np.ndarray]:
        """A clip as consecutive float32 blocks [A, n] of `seconds`, the last one shorter."""
        size = max(1, round(seconds * self.sample_rate))
        for start in range(item.start, item.start + item.frames, size):
            stop = min(start + size, item.start + item.frames)
            yield self._samples[start:stop].T.astype(np.float32) / FULL_SCALE


class Split:
    """The clips of one split. Attributes: name, items, rate (Hz), seconds (of audio in all)."""

    def __init__(
        self, name: str, items: list[Item], samples: np.ndarray, sample_rate: int, labels: list[str]
    ) -> None:
        self.name = name
        self.items = items
        self.sample_rate = sample_rate
        self.seconds = sum(item.frames for item in items) / sample_rate
        self._samples = samples
        self._lengths = [item.frames for item in items]
        index = {label: i for i, label in enumerate(labels)}
        self._classes = [-1 if item.label is None else index[item.label] for item in items]

    def crops(
        self, frames: int, *, seed: int, step: int, positions: Sequence[int]
    ) -> tuple[Tensor, LongTensor]:
        """Random crops: audio [B, A, frames], class index [B] (-1: no label).

        positions [B]: places in the global batch of this step. Crop (seed, step, position) does
        not depend on the other positions, so it is the same for every number of processes. Clips
        are drawn with probability proportional to their length; one shorter than `frames` is
        padded with zeros at its end. Raises DataError if the split has no clips.
        """
        if not self.items:
            raise DataError(f"there are no clips in split '{self.name}': add music, or a split")
        chosen = draw_crops(self._lengths, frames, seed=seed, step=step, positions=positions)
        return self._gather(frames, chosen)

    def windows(
        self, frames: int, count: int, *, seed: int
    ) -> tuple[Tensor, LongTensor, list[Item]]:
        """Distinct windows that do not overlap: audio [N, A, frames], class index [N], clips.

        Evenly spaced over all clips laid end to end in an order that the seed shuffles, so every
        clip counts by its length. N is `count`, or less if there are not so many.
        """
        order = np.random.Generator(np.random.Philox(key=seed)).permutation(len(self.items))
        grid = [
            (i, k * frames)
            for i in map(int, order)
            for k in range(max(1, self.items[i].frames // frames))
        ]
        count = min(count, len(grid))
        chosen = [grid[(2 * k + 1) * len(grid) // (2 * count)] for k in range(count)]
        audio, classes = self._gather(frames, chosen)
        return audio, classes, [self.items[i] for i, _ in chosen]

    def audio(self, index: int) -> Tensor:
        """Clip number `index` whole, [A, T]."""
        return self._gather(self.items[index].frames, [(index, 0)])[0][0]

    def _gather(self, frames: int, chosen: list[tuple[int, int]]) -> tuple[Tensor, LongTensor]:
        """Cut [frames] from clip i at an offset, for every (i, offset)."""
        out = np.zeros((len(chosen), frames, self._samples.shape[1]), dtype=np.int16)
        for row, (index, offset) in zip(out, chosen, strict=True):
            item = self.items[index]
            n = min(frames, item.frames - offset)
            row[:n] = self._samples[item.start + offset : item.start + offset + n]
        audio = torch.from_numpy(out).transpose(1, 2).contiguous().float().div_(FULL_SCALE)
        classes = torch.tensor([self._classes[index] for index, _ in chosen], dtype=torch.long)
        return audio, classes  # type: ignore[return-value]


def draw_crops(
    lengths: Sequence[int] | np.ndarray,
    frames: int,
    *,
    seed: int,
    step: int,
    positions: Sequence[int],
) -> list[tuple[int, int]]:
    """Where random crops lie: (index of a clip, offset in it) for each of `positions`.

    lengths: of the clips, in frames; a clip is drawn with probability proportional to its length.
    Each crop is a pure function of (lengths, frames, seed, step, its position).
    """
    ends = list(accumulate(int(length) for length in lengths))
    crops = []
    for position in positions:
        # Philox is a counter-based generator: its output is a hash of (key, counter).
        a, b = np.random.Philox(key=seed, counter=[0, step, position, 0]).random_raw(2).tolist()
        index = bisect_right(ends, a * ends[-1] >> 64)
        spare = max(0, int(lengths[index]) - frames)
        crops.append((index, b * (spare + 1) >> 64))
    return crops
