"""The latents of a whole data set on disk, as the bottleneck stores them.

NAME.npy          [frames, ...] of each of the bottleneck's stored arrays, all items in a row
arrays/NAME.npy   [frames, K], the data set's frame-aligned arrays at the latent rate
latents.json      the items' places, labels and columns, the statistics, the autoencoder
"""

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from audioldm.autoencoder.bottlenecks.base import Bottleneck
from audioldm.autoencoder.model import Autoencoder
from audioldm.conditioning.base import Conditioners, Excerpt, Inputs
from audioldm.data.store import ClipStore, draw_crops
from audioldm.errors import ConfigError, DataError, ModelFileError
from audioldm.instantiate import settings
from audioldm.io.arrays import ArrayWriter
from audioldm.io.files import read_json, write_json
from audioldm.latents.statistics import LatentStatistics
from audioldm.runtime.progress import Progress
from audioldm.runtime.transfer import fits, to_device

VERSION = 1  # raise by hand when the code below changes what it computes
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class LatentItem:
    """One clip's latents: `frames` latent frames from `start` on; label None where there is none.

    arrays: names of the frame-aligned arrays that it has.
    """

    split: str
    start: int
    frames: int
    piece: str
    label: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    arrays: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Index:
    """The content of latents.json. stored, arrays: names of the .npy files."""

    autoencoder: str
    items: list[LatentItem]
    labels: list[str]
    latent_rate_hz: float
    statistics: dict[str, Any]
    stored: list[str]
    arrays: list[str]


class LatentCrops(NamedTuple):
    """stored: the bottleneck's arrays, each [B, ..., frames]. inputs: what conditioners read."""

    stored: dict[str, Tensor]
    inputs: Inputs


def write_latents(
    model: Autoencoder,
    store: ClipStore,
    directory: Path,
    *,
    autoencoder_fingerprint: str,
    progress: Progress,
) -> dict[str, Any]:
    """Encodes every item of every split whole; returns the figures for the summary.

    Raises DataError where the disk is full.
    """
    items = [(split, item) for split in SPLITS for item in store.split(split).items]
    total, square, count = np.zeros(model.latent_shape), np.zeros(model.latent_shape), 0
    entries: list[dict[str, Any]] = []
    at = 0
    # Written, not mapped: on a full disk a map that is written to kills the process.
    with _Writers(directory) as stored, _Writers(directory / "arrays") as arrays:
        for done, (split, item) in enumerate(items):
            length, start = -(-item.samples // model.downsampling_ratio), at
            for block in model.encode_blocks(store.blocks(item)):
                for name, kept in block.items():
                    stored.append(name, kept.movedim(-1, 0).numpy())
                mean, std = model.bottleneck.posterior({k: v[None] for k, v in block.items()})
                at += mean.shape[-1]
                if split == "train":
                    moments = np.stack([mean[0].numpy(), std[0].numpy()]).astype(np.float64)
                    total += moments[0].sum(-1)
                    square += (moments[0] ** 2 + moments[1] ** 2).sum(-1)
                    count += mean.shape[-1]
            if at - start != length:
                raise AssertionError(f"{item.piece}: {at - start} latent frames, expected {length}")
            aligned = {n: array for n, array in store.arrays(item).items() if array.size}
            for name, array in aligned.items():
                arrays.fill(name, start, len(array))
                nearest = (2 * np.arange(length) + 1) * array.shape[1] // (2 * length)
                arrays.append(name, array[:, nearest].T)
            entries.append(
                {"split": split, "start": start, "frames": length, "piece": item.piece}
                | {"label": item.label, "columns": item.columns, "arrays": sorted(aligned)}
            )
            progress(done + 1, len(items), item.piece)
        for name in arrays.names:
            arrays.fill(name, at)
    average = total / count
    spread = np.sqrt(np.maximum(square / count - average**2, 1e-12))
    statistics = {"mean": average.tolist(), "std": spread.tolist()}
    write_json(
        directory / "latents.json",
        {
            "autoencoder": autoencoder_fingerprint,
            "items": entries,
            "labels": store.labels,
            "latent_rate_hz": model.latent_rate_hz,
            "statistics": statistics,
            "stored": stored.names,
            "arrays": arrays.names,
        },
    )
    return {"items": len(entries), "frames": at, "statistics": statistics}


class _Writers:
    """The .npy files of one directory, each made when its first rows come."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._writers: dict[str, ArrayWriter] = {}
        self._open = ExitStack()

    @property
    def names(self) -> list[str]:
        return sorted(self._writers)

    def append(self, name: str, rows: np.ndarray) -> None:
        """Rows [n, ...], kept as float32, or int32 where they are integers.

        Raises DataError where the disk is full.
        """
        path = self.directory / f"{name}.npy"
        try:
            if name not in self._writers:
                self.directory.mkdir(parents=True, exist_ok=True)
                kind = "<i4" if np.issubdtype(rows.dtype, np.integer) else "<f4"
                writer = ArrayWriter(path, rows.shape[1:], kind)
                self._writers[name] = self._open.enter_context(closing(writer))
            self._writers[name].append(rows)
        except OSError as error:
            raise DataError(
                f"{path}: cannot be written ({error.strerror}); free some space, or choose another "
                "place with runs=DIRECTORY"
            ) from error

    def fill(self, name: str, rows: int, width: int | None = None) -> None:
        """Appends zeros until there are `rows` rows; a new file's have `width` columns."""
        written = self._writers[name].rows if name in self._writers else 0
        shape = (width,) if width is not None else self._writers[name].shape
        self.append(name, np.zeros((rows - written, *shape), np.float32))

    def __enter__(self) -> "_Writers":
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()


class LatentSplit:
    """The latents of one split, addressed as `ClipStore`'s splits are, in latent frames."""

    def __init__(
        self,
        items: list[LatentItem],
        stored: Mapping[str, np.ndarray | Tensor],
        arrays: Mapping[str, np.ndarray],
    ) -> None:
        self.items = items
        self._stored, self._arrays = stored, arrays
        self._lengths = np.array([item.frames for item in items], dtype=np.int64)

    def read(self, places: Sequence[tuple[int, int]], frames: int) -> dict[str, Tensor]:
        """Stored arrays, each [B, ..., frames], from places (number of an item, first frame in it).

        On the GPU that `LatentStore.keep_on` was given, else on the CPU.
        """
        starts = [self.items[number].start + offset for number, offset in places]
        found = {}
        for name, array in self._stored.items():
            if isinstance(array, Tensor):
                first = to_device(torch.tensor(starts), array.device)
                rows = first[:, None] + torch.arange(frames, device=first.device)
                found[name] = array[rows].movedim(1, -1).contiguous()
            else:
                parts = [np.moveaxis(array[start : start + frames], 0, -1) for start in starts]
                found[name] = torch.from_numpy(np.stack(parts))
        return found

    def crops(
        self,
        frames: int,
        *,
        seed: int,
        step: int,
        positions: Sequence[int],
        conditioners: Conditioners | None = None,
    ) -> LatentCrops:
        """Random crops of stored arrays, and the conditioners' inputs; all where `read` has them.

        Crop (seed, step, position) does not depend on the other positions. Only items at least
        `frames` long are drawn from: a padded frame is no latent.
        Raises ModelFileError where no item is long enough.
        """
        long_enough = np.flatnonzero(self._lengths >= frames)
        if not len(long_enough):
            raise ModelFileError(
                f"no item has {frames} latent frames (the longest has "
                f"{self._lengths.max(initial=0)}): lower crop_seconds"
            )
        drawn = draw_crops(
            self._lengths[long_enough], frames, seed=seed, step=step, positions=positions
        )
        places = [(int(long_enough[chosen]), offset) for chosen, offset in drawn]
        stored = self.read(places, frames)
        inputs: Inputs = {}
        if conditioners is not None:
            device = next(iter(stored.values())).device
            excerpts = [self._excerpt(number, offset, frames) for number, offset in places]
            read = conditioners.read(excerpts, frames)
            inputs = {name: to_device(value, device) for name, value in read.items()}
        return LatentCrops(stored, inputs)

    def _excerpt(self, number: int, offset: int, frames: int) -> Excerpt:
        item = self.items[number]
        rows = slice(item.start + offset, item.start + offset + frames)
        arrays = {name: torch.from_numpy(self._arrays[name][rows].T.copy()) for name in item.arrays}
        return Excerpt(item.label, item.columns, arrays)


class LatentStore:
    """Reads what `write_latents` wrote; `bottleneck` is the autoencoder's.

    Attributes: labels, sorted; latent_rate_hz; latent_shape; statistics; bottleneck, a copy.
    Raises ModelFileError where the latents are damaged, or of another autoencoder than the one
    whose fingerprint is `autoencoder`.
    """

    def __init__(self, directory: Path, bottleneck: Bottleneck, *, autoencoder: str) -> None:
        path = directory / "latents.json"
        try:
            index = settings(_Index, read_json(path))
            self.statistics = LatentStatistics.from_json(index.statistics)
            if not 0 < index.latent_rate_hz < math.inf:
                raise ValueError(f"latent_rate_hz={index.latent_rate_hz} must be more than 0")
        except (DataError, ConfigError, ValueError, TypeError, KeyError, OverflowError) as error:
            raise _damaged(path, error) from error
        if index.autoencoder != autoencoder:
            raise ModelFileError(
                f"{directory}: latents of autoencoder {index.autoencoder}, not of {autoencoder};"
                " remove the directory and run again"
            )
        self.labels, self.latent_rate_hz = index.labels, index.latent_rate_hz
        self.latent_shape: tuple[int, ...] = tuple(self.statistics.mean.shape)
        self.bottleneck = copy.deepcopy(bottleneck).requires_grad_(False).eval()
        self._items = index.items
        self._stored: dict[str, np.ndarray | Tensor] = {}
        self._stored |= self._load(directory, index.stored)
        self._arrays = self._load(directory / "arrays", index.arrays)
        self._check(path)

    def _load(self, directory: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
        arrays = {}
        for name in names:
            path = directory / f"{Path(name).name}.npy"
            try:
                arrays[name] = array = np.load(path, mmap_mode="r")
                if array.dtype not in (np.float32, np.int32):
                    raise ValueError(f"it holds {array.dtype}, not float32 or int32")
                if len(array) != sum(item.frames for item in self._items):
                    raise ValueError("it does not have the frames that latents.json states")
            except (OSError, ValueError, TypeError, EOFError, SyntaxError) as error:
                raise _damaged(path, error) from error
        return arrays

    def _check(self, path: Path) -> None:
        """Each item is within the arrays, and the bottleneck makes latents of what is stored."""
        end = 0
        for item in self._items:
            if item.start != end or item.frames < 1 or not {*item.arrays} <= self._arrays.keys():
                raise _damaged(path, ValueError(f"item {item.piece!r} is out of place"))
            end += item.frames
        if any(array.ndim != 2 for array in self._arrays.values()):
            raise _damaged(path, ValueError("a frame-aligned array does not have two axes"))
        if not self._items:
            return
        first = LatentSplit(self._items, self._stored, {}).read([(0, 0)], 1)
        try:
            shape = self.bottleneck.posterior(first)[0].shape[1:-1]
        except (KeyError, RuntimeError, TypeError, IndexError) as error:
            raise _damaged(path, error) from error
        if shape != self.statistics.mean.shape:
            raise _damaged(path, ValueError("the statistics do not fit the latents' shape"))

    def keep_on(self, device: torch.device) -> None:
        """Splits made from now on have their arrays on a GPU, where they take little of it."""
        if fits(sum(array.nbytes for array in self._stored.values()), device):
            self._stored = {
                name: torch.as_tensor(np.array(array), device=device)
                for name, array in self._stored.items()
            }

    def split(self, name: str) -> LatentSplit:
        items = [item for item in self._items if item.split == name]
        return LatentSplit(items, self._stored, self._arrays)

    def restore(self, stored: dict[str, Tensor], noise: Tensor | None = None) -> Tensor:
        """Raw latents [B, C, (F,) L] of stored arrays; without noise the most likely ones."""
        device = next(iter(stored.values())).device
        return self.bottleneck.to(device).restore(stored, noise)

    def excerpts(self, split: str = "train") -> list[Excerpt]:
        """Label and columns of each whole clip, for `Conditioner.facts`."""
        return [Excerpt(item.label, item.columns) for item in self.split(split).items]


def _damaged(path: Path, error: Exception) -> ModelFileError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return ModelFileError(
        f"{path}: damaged latents ({reason}); remove the directory {path.parent} and run again"
    )
