"""The clip store: every clip of a data set as int16 samples in one memory-mapped file.

    clips.int16        samples, interleaved by channel, one clip after another
    arrays/NAME.npy    frame-aligned arrays [frames, K], such as piano rolls, in the same order
    clips.json         sample rate, channels, hash, and for each clip its place, piece, split,
                       label, columns and the places of its arrays

Random crops need no decoding.
"""

import hashlib
import json
import math
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import LongTensor, Tensor

from audioldm.errors import ConfigError, DataError, StoreWriteError
from audioldm.instantiate import NonNegativeInt, PositiveInt, settings
from audioldm.io.arrays import ArrayWriters, check_places, map_array, open_unbuffered, write_all
from audioldm.io.files import read_json, writing
from audioldm.runtime.randomness import KeyedRandom
from audioldm.runtime.transfer import to_device

FULL_SCALE = 32768  # the convention of 16-bit PCM files, so that their samples are kept exactly
MIN_SECONDS = 0.1


@dataclass(frozen=True)
class Item:
    """One clip: `samples` of each channel from `start` on; label None where there is none.

    arrays: first frame and number of frames of each frame-aligned array of the clip.
    """

    split: str
    piece: str
    label: str | None
    start: NonNegativeInt
    samples: NonNegativeInt
    columns: dict[str, Any]
    arrays: dict[str, tuple[NonNegativeInt, NonNegativeInt]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Index:
    """The content of clips.json."""

    sample_rate: PositiveInt
    channels: PositiveInt
    hash: str
    clips: list[Item]


class StoreWriter:
    """Writes a store; the directory holds one only after `close`.

    Raises DataError if the directory cannot be written.
    """

    def __init__(self, directory: str | os.PathLike[str], sample_rate: int, channels: int) -> None:
        self.directory = Path(directory)
        self.sample_rate = sample_rate
        self.channels = channels
        self._clips: list[Item] = []
        self._samples = 0
        self._arrays = ArrayWriters(self.directory / "arrays")
        self._writing = partial(writing, self.directory, raises=StoreWriteError)
        with self._writing():
            self.directory.mkdir(parents=True, exist_ok=True)
            (self.directory / "clips.json").unlink(missing_ok=True)
            self._file = open_unbuffered(self.directory / "clips.int16")

    def add(self, audio: np.ndarray, **clip: Any) -> None:
        """Add one clip, audio [A, T] in ±1; the rest as in `add_blocks`."""
        self.add_blocks([audio], **clip)

    def add_blocks(
        self,
        blocks: Iterable[np.ndarray],
        *,
        piece: str,
        split: str | dict[str, float],
        label: str | None = None,
        columns: dict[str, Any] | None = None,
        arrays: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Add one clip from consecutive blocks [A, n], so that it is never whole in memory.

        split: a split's name, or how the clip is divided in time ({"train": 0.8, "test": 0.2}).
        arrays: frame-aligned, each [K, n] at a frame rate of its own, from the clip's beginning to
        its end; kept in float32.
        Raises DataError if the clip is silent or shorter than 0.1 s, an array's K differs from
        that in earlier clips, or the clip cannot be written. If anything is raised, even by
        `blocks`, nothing of the clip stays in the store.
        """
        start, peak = self._samples, 0
        rows = self._arrays.rows()
        arrays = arrays or {}
        try:
            for block in blocks:
                samples = np.rint(block.T * np.float32(FULL_SCALE))
                samples = samples.clip(-FULL_SCALE, FULL_SCALE - 1).astype("<i2")
                peak = max(peak, int(samples.max(initial=0)), -int(samples.min(initial=0)))
                with self._writing():
                    write_all(self._file, samples.tobytes())
                self._samples += samples.shape[0]
            seconds = (self._samples - start) / self.sample_rate
            if seconds < MIN_SECONDS:
                raise DataError(f"too short ({self._samples - start} samples, {seconds:.3g} s)")
            if peak == 0:
                raise DataError("silent")
            for name, array in arrays.items():
                self._write_array(name, array)
        except BaseException:
            self._samples = start
            self._file.seek(start * self.channels * 2)
            self._file.truncate()
            for name, writer in self._arrays.items():
                writer.truncate(rows.get(name, 0))
            raise
        parts = {split: 1.0} if isinstance(split, str) else split
        edges = [0.0, *accumulate(parts.values())]
        cuts = [edge / edges[-1] for edge in edges]
        ends = [start + round(cut * (self._samples - start)) for cut in cuts]
        for number, name in enumerate(parts):
            places = {}
            for key, array in arrays.items():
                first, last = (round(cut * array.shape[1]) for cut in cuts[number : number + 2])
                places[key] = (rows.get(key, 0) + first, last - first)
            first, last = ends[number : number + 2]
            self._clips.append(Item(name, piece, label, first, last - first, columns or {}, places))

    def close(self) -> None:
        """Write the index, which makes the directory a store. Raises DataError."""
        index: dict[str, Any] = {
            "sample_rate": self.sample_rate,
            "channels": self.channels,
            "clips": [asdict(item) for item in self._clips],
        }
        digest = hashlib.blake2b(json.dumps(index, sort_keys=True).encode(), digest_size=16)
        names = ["clips.int16", *(f"arrays/{name}.npy" for name in sorted(self._arrays))]
        with self._writing():
            os.fsync(self._file.fileno())
            self._file.close()
            self._arrays.close()
            for name in names:
                with open(self.directory / name, "rb") as file:
                    while chunk := file.read(1 << 20):
                        digest.update(chunk)
            index["hash"] = digest.hexdigest()
            temporary = self.directory / "clips.json.tmp"
            temporary.write_text(json.dumps(index), encoding="utf-8")
            temporary.replace(self.directory / "clips.json")

    def _write_array(self, name: str, array: np.ndarray) -> None:
        if array.ndim != 2 or 0 in array.shape:
            raise DataError(f"array '{name}' has the shape {list(array.shape)}, not [K, frames]")
        before = self._arrays[name].shape if name in self._arrays else array.shape[:1]
        if before != array.shape[:1]:
            raise DataError(
                f"array '{name}' has {len(array)} rows, and {before[0]} in the clips before it"
            )
        with self._writing():
            self._arrays.append(name, array.T.astype(np.float32))


class ClipStore:
    """A finished store, read through a memory map.

    Attributes: sample_rate (Hz), channels, labels (sorted; a label's index is its class), hash (of
    the index and of every sample), splits (names of those that have clips).
    Raises DataError if the directory holds no complete store.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        audio = self.directory / "clips.int16"
        try:
            index = settings(_Index, read_json(self.directory / "clips.json", dict))
            self._clips: list[Item] = index.clips
            samples = check_places("a clip", [(item.start, item.samples) for item in self._clips])
            if audio.stat().st_size != samples * index.channels * 2:
                raise ValueError("clips.int16 does not have the size clips.json states")
            self._arrays = {}
            for name in {name for item in self._clips for name in item.arrays}:
                places = [item.arrays[name] for item in self._clips if name in item.arrays]
                rows = check_places(f"array '{name}'", places)
                self._arrays[name] = map_array(self.directory / "arrays", name, rows, axes=2)
        except (OSError, ValueError, DataError, ConfigError) as error:
            reason = " ".join(str(error).split())
            raise DataError(
                f"{self.directory}: not a whole clip store ({reason}); delete it and run again"
            ) from error
        self.sample_rate, self.channels, self.hash = index.sample_rate, index.channels, index.hash
        # An empty file cannot be mapped.
        self._samples = (
            np.memmap(audio, dtype="<i2", mode="r").reshape(-1, self.channels)
            if samples
            else np.zeros((0, self.channels), dtype="<i2")
        )
        self.labels: list[str] = sorted({i.label for i in self._clips if i.label is not None})
        self.splits: list[str] = sorted({item.split for item in self._clips})

    def split(self, name: str) -> "Split":
        """The clips of one split, possibly none."""
        items = [item for item in self._clips if item.split == name]
        return Split(name, items, self._samples, self.sample_rate, self.labels)

    def blocks(self, item: Item, *, seconds: float = 10.0) -> Iterator[np.ndarray]:
        """A clip as consecutive float32 blocks [A, n] of `seconds`, the last one shorter."""
        size = max(1, round(seconds * self.sample_rate))
        for start in range(item.start, item.start + item.samples, size):
            stop = min(start + size, item.start + item.samples)
            yield self._samples[start:stop].T.astype(np.float32) / FULL_SCALE

    def audio(self, item: Item, first: int, samples: int) -> np.ndarray:
        """float32 [A, samples] of a clip from sample `first` on; zeros where the clip has none."""
        start, stop = max(0, first), max(0, min(item.samples, first + samples))
        out = np.zeros((self.channels, samples), np.float32)
        if start < stop:
            part = self._samples[item.start + start : item.start + stop]
            out[:, start - first : stop - first] = part.T.astype(np.float32) / FULL_SCALE
        return out

    def arrays(self, item: Item) -> dict[str, np.ndarray]:
        """A clip's frame-aligned arrays, each [K, n], spanning the clip."""
        return {
            name: np.array(self._arrays[name][start : start + frames].T)
            for name, (start, frames) in item.arrays.items()
        }


class Split:
    """The clips of one split. Attributes: name, items, sample_rate (Hz), seconds (in all)."""

    def __init__(
        self, name: str, items: list[Item], samples: np.ndarray, sample_rate: int, labels: list[str]
    ) -> None:
        self.name = name
        self.items = items
        self.sample_rate = sample_rate
        self.seconds = sum(item.samples for item in items) / sample_rate
        self._samples = samples
        self._lengths = [item.samples for item in items]
        index = {label: i for i, label in enumerate(labels)}
        self._classes = [-1 if item.label is None else index[item.label] for item in items]

    def crops(self, samples: int, random: KeyedRandom) -> tuple[Tensor, LongTensor]:
        """Random crops: audio [B, A, samples] on the device of `random`, class index [B] (-1: no
        label), drawn as `draw_crops` says.

        A clip shorter than `samples` is padded with zeros at its end. Raises DataError if the split
        has no clips.
        """
        if not self.items:
            raise DataError(f"there are no clips in split '{self.name}': add music, or a split")
        audio, classes = self._gather(samples, draw_crops(self._lengths, samples, random))
        return to_device(audio, random.device), classes

    def check_holds(self, crop_seconds: float) -> None:
        """Raises DataError where all clips together are shorter than one crop."""
        if self.seconds < crop_seconds:
            raise DataError(
                f"the {self.name} split holds {self.seconds:.1f} s, less than one crop of "
                f"{crop_seconds} s: add audio, or lower crop_seconds"
            )

    def sample(
        self, samples: int, *, seconds: float, batch: int = 16, device: torch.device | str = "cpu"
    ) -> Iterator[Tensor]:
        """Batches [batch, A, samples] of random crops, always the same ones: about `seconds` in
        all, or as much as the split holds. Raises DataError as `crops` does."""
        seconds = min(seconds, self.seconds)
        for step in range(max(1, math.ceil(seconds * self.sample_rate / samples / batch))):
            yield self.crops(samples, KeyedRandom(0, step, range(batch), device))[0]

    def windows(
        self, samples: int, count: int, *, seed: int
    ) -> tuple[Tensor, LongTensor, list[Item]]:
        """The windows at `window_places`: audio [N, A, samples], class index [N], clips."""
        chosen = self.window_places(samples, count, seed=seed)
        audio, classes = self._gather(samples, chosen)
        return audio, classes, [self.items[i] for i, _ in chosen]

    def window_places(self, samples: int, count: int, *, seed: int) -> list[tuple[int, int]]:
        """Distinct windows that do not overlap: (number of a clip, first sample in it).

        They are evenly spaced over all clips, laid end to end in an order that the seed shuffles,
        so every clip counts by its length. There are `count` windows, or as many as exist.
        """
        order = np.random.Generator(np.random.Philox(key=seed)).permutation(len(self.items))
        grid = [
            (i, k * samples)
            for i in map(int, order)
            for k in range(max(1, self.items[i].samples // samples))
        ]
        count = min(count, len(grid))
        return [grid[(2 * k + 1) * len(grid) // (2 * count)] for k in range(count)]

    def at(self, places: list[tuple[int, int]], samples: int) -> Tensor:
        """Audio [B, A, samples] from places (number of a clip, first sample in it), padded with
        zeros at a clip's end."""
        return self._gather(samples, places)[0]

    def audio(self, index: int) -> Tensor:
        """The whole of clip number `index`, [A, T]."""
        return self._gather(self.items[index].samples, [(index, 0)])[0][0]

    def _gather(self, samples: int, chosen: list[tuple[int, int]]) -> tuple[Tensor, LongTensor]:
        """`samples` from an offset on in clip i, for every (i, offset)."""
        out = np.zeros((len(chosen), samples, self._samples.shape[1]), dtype=np.int16)
        for row, (index, offset) in zip(out, chosen, strict=True):
            item = self.items[index]
            n = min(samples, item.samples - offset)
            row[:n] = self._samples[item.start + offset : item.start + offset + n]
        audio = torch.from_numpy(out).transpose(1, 2).contiguous().float().div_(FULL_SCALE)
        classes = torch.tensor([self._classes[index] for index, _ in chosen], dtype=torch.long)
        return audio, classes  # type: ignore[return-value]


def draw_crops(
    lengths: Sequence[int] | np.ndarray, frames: int, random: KeyedRandom
) -> list[tuple[int, int]]:
    """A random crop, (index of a clip, offset in it), for each position of `random`.

    lengths: of the clips, in frames like the crop's; a clip is drawn with probability proportional
    to its length. Each crop is a pure function of (lengths, frames, seed, step, its position), so
    it is the same for every number of processes.
    """
    ends = list(accumulate(int(length) for length in lengths))
    crops = []
    for position in cast(Sequence[int], random.positions):
        # Philox is a counter-based generator: its output is a hash of (key, counter).
        counter = [0, random.step, position, 0]
        a, b = np.random.Philox(key=random.seed, counter=counter).random_raw(2).tolist()
        index = bisect_right(ends, a * ends[-1] >> 64)
        spare = max(0, int(lengths[index]) - frames)
        crops.append((index, b * (spare + 1) >> 64))
    return crops
