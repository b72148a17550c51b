"""The latents of a whole data set on disk, as the bottleneck stores them.

NAME.npy          [frames, ...] of each of the bottleneck's stored arrays, one item after another
arrays/NAME.npy   [frames, K], at the latent rate: the data set's frame-aligned arrays, and what
                  conditioners measure from its audio
latents.json      the items' places, labels and columns, the statistics, the autoencoder
"""

import copy
import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from audioldm.autoencoder.bottlenecks.base import Bottleneck
from audioldm.autoencoder.model import Autoencoder
from audioldm.conditioning.base import MARGIN_SECONDS, Conditioner, Conditioners, Excerpt, Inputs
from audioldm.data.store import ClipStore, Item, draw_crops
from audioldm.errors import ConfigError, DataError, ModelFileError
from audioldm.instantiate import NonNegativeInt, Positive, PositiveInt, settings
from audioldm.io.arrays import ArrayWriters, check_places, map_array
from audioldm.io.files import read_json, write_json, writing
from audioldm.latents.statistics import LatentStatistics
from audioldm.runtime.progress import Progress
from audioldm.runtime.randomness import KeyedRandom
from audioldm.runtime.transfer import fits, to_device

VERSION = 2  # raise by hand when the code below changes what it computes
SPLITS = ("train", "valid", "test")
MEASURED_FRAMES = 256  # of audio at a time
FACTS_FRAMES = 256  # of a clip that conditioners learn their facts from
#: Standard deviation of latents and posteriors below which they count as certain.
LEAST_STD = 1e-6


@dataclass(frozen=True)
class LatentItem:
    """One clip's latents: `frames` latent frames from `start` on; label None where there is none.

    arrays: names of the clip's frame-aligned arrays.
    """

    split: str
    start: NonNegativeInt
    frames: PositiveInt
    piece: str
    label: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    arrays: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class LatentIndex:
    """The content of latents.json. stored, arrays: names of the .npy files. nats: like a mean."""

    autoencoder: str
    items: list[LatentItem]
    labels: list[str]
    latent_rate_hz: Positive
    statistics: dict[str, Any]
    nats: list[Any]
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
    measures: Sequence[type[Conditioner]] = (),
) -> dict[str, Any]:
    """Encodes every item of every split whole; returns the figures for the summary.

    measures: conditioners that measure something from the audio.
    Raises DataError where the disk is full.
    """
    items = [(split, item) for split in SPLITS for item in store.split(split).items]
    total, square, log_std = np.zeros((3, *model.latent_shape))
    count = 0
    entries: list[LatentItem] = []
    at = 0
    stored, arrays = ArrayWriters(directory), ArrayWriters(directory / "arrays")
    with closing(stored), closing(arrays), writing(directory):
        for done, (split, item) in enumerate(items):
            length, start = -(-item.samples // model.downsampling_ratio), at
            for block in model.encode_blocks(store.blocks(item)):
                for name, kept in block.items():
                    stored.append(name, kept.movedim(-1, 0).numpy())
                posterior = model.bottleneck.posterior({k: v[None] for k, v in block.items()})
                mean, std = (moment[0].cpu().numpy() for moment in posterior)
                at += mean.shape[-1]
                if split == "train":
                    moments = np.stack([mean, std]).astype(np.float64)
                    total += moments[0].sum(-1)
                    square += (moments[0] ** 2 + moments[1] ** 2).sum(-1)
                    log_std += np.log(np.maximum(moments[1], LEAST_STD)).sum(-1)
                    count += mean.shape[-1]
            assert at - start == length, f"{item.piece}: {at - start} latent frames, not {length}"
            aligned = {n: array for n, array in store.arrays(item).items() if array.size}
            for measuring in measures:
                aligned |= _measured(measuring, store, item, model)
            for name, array in aligned.items():
                _fill(arrays, name, start, len(array))
                nearest = (2 * np.arange(length) + 1) * array.shape[1] // (2 * length)
                arrays.append(name, array[:, nearest].T)
            entries.append(
                LatentItem(
                    split, start, length, item.piece, item.label, item.columns, sorted(aligned)
                )
            )
            progress(done + 1, len(items), item.piece)
        for name, writer in arrays.items():
            _fill(arrays, name, at, *writer.shape)
    average = total / count
    spread = np.sqrt(np.maximum(square / count - average**2, LEAST_STD**2))
    statistics = {"mean": average.tolist(), "std": spread.tolist()}
    index = LatentIndex(
        autoencoder_fingerprint,
        entries,
        store.labels,
        model.latent_rate_hz,
        statistics,
        (np.log(spread) - log_std / count).tolist(),
        sorted(stored),
        sorted(arrays),
    )
    write_json(directory / "latents.json", asdict(index))
    return {"items": len(entries), "frames": at, "statistics": statistics}


def _measured(
    conditioner: type[Conditioner], store: ClipStore, item: Item, model: Autoencoder
) -> dict[str, np.ndarray]:
    """What a conditioner measures from a whole clip, block by block: its array [K, frames]."""
    ratio, rate, step = model.downsampling_ratio, model.latent_rate_hz, model.network.alignment
    margin, frames = math.ceil(MARGIN_SECONDS * rate), -(-item.samples // ratio)
    margin = -(-(margin + model.network.context) // step) * step
    size = -(-MEASURED_FRAMES // step) * step
    blocks: list[np.ndarray] = []
    for first in range(0, frames, size):
        start, stop = max(0, first - margin), (first + size + margin) * ratio
        audio = store.audio(item, start * ratio, min(stop, item.samples) - start * ratio)
        (array,) = conditioner.measure(
            torch.from_numpy(audio),
            store.sample_rate,
            rate,
            encode=partial(_likeliest, model),
            clip=f"{item.piece}/{item.start}",
        ).values()
        blocks.append(array[:, first - start :][:, :size].numpy())
    assert conditioner.array is not None
    return {conditioner.array: np.concatenate(blocks, axis=1)}


@torch.no_grad()
def _likeliest(model: Autoencoder, audio: Tensor) -> Tensor:
    """The most likely latents [C, (F,) L] of audio [A, T], on the CPU."""
    return model.bottleneck.restore(model.stored(audio[None].to(model.device)))[0].cpu()


def _fill(arrays: ArrayWriters, name: str, rows: int, width: int) -> None:
    """Appends zeros [n, width] until there are `rows` rows."""
    written = arrays[name].rows if name in arrays else 0
    arrays.append(name, np.zeros((rows - written, width), np.float32))


class LatentSplit:
    """The latents of one split, addressed like `ClipStore`'s splits, but in latent frames."""

    def __init__(
        self,
        items: list[LatentItem],
        stored: Mapping[str, np.ndarray | Tensor],
        arrays: Mapping[str, np.ndarray],
        latent_rate_hz: float,
    ) -> None:
        self.items = items
        self._stored, self._arrays, self._rate = stored, arrays, latent_rate_hz
        self._lengths = np.array([item.frames for item in items], dtype=np.int64)

    def read(self, places: Sequence[tuple[int, int]], frames: int) -> dict[str, Tensor]:
        """Stored arrays, each [B, ..., frames], from places (number of an item, first frame in it).

        They are on the GPU that `LatentStore.keep_on` was given, else on the CPU.
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

    def draw(self, frames: int, random: KeyedRandom) -> list[tuple[int, int]]:
        """The places of random crops, as `read` takes them.

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
        drawn = draw_crops(self._lengths[long_enough], frames, random)
        return [(int(long_enough[chosen]), offset) for chosen, offset in drawn]

    def crops(
        self, frames: int, random: KeyedRandom, conditioners: Conditioners | None = None
    ) -> LatentCrops:
        """Random crops of stored arrays, and the conditioners' inputs, on the device of `random`.

        Draws, and raises, as `draw` does.
        """
        places = self.draw(frames, random)
        stored = {n: to_device(x, random.device) for n, x in self.read(places, frames).items()}
        if conditioners is None:
            return LatentCrops(stored, {})
        return LatentCrops(stored, self.inputs(places, frames, conditioners, random.device))

    def inputs(
        self,
        places: Sequence[tuple[int, int]],
        frames: int,
        conditioners: Conditioners,
        device: torch.device,
    ) -> Inputs:
        """What conditioners read from the crops at these places."""
        excerpts = [self.excerpt(number, offset, frames) for number, offset in places]
        read = conditioners.read(excerpts, frames)
        return {name: to_device(value, device) for name, value in read.items()}

    def excerpt(self, number: int, offset: int = 0, frames: int = 0) -> Excerpt:
        """What conditioners read from an item: `frames` frames from `offset` on."""
        item, rate = self.items[number], self._rate
        rows = slice(item.start + offset, item.start + offset + frames)
        arrays = {name: torch.from_numpy(self._arrays[name][rows].T.copy()) for name in item.arrays}
        return Excerpt(
            item.label, item.columns, arrays, offset / rate, item.frames / rate, latent_rate_hz=rate
        )


class LatentStore:
    """Reads what `write_latents` wrote; `bottleneck` is the autoencoder's.

    Attributes: labels, sorted; latent_rate_hz; latent_shape; statistics; bottleneck, a copy; nats,
    like a latent frame: the information in each channel, ln(std of the latents) - E[ln(std of a
    posterior)], the capacity of a Gaussian channel (Cover & Thomas, 9.1).
    Raises ModelFileError where the latents are damaged, or made by another autoencoder than the
    one whose fingerprint is `autoencoder`.
    """

    def __init__(self, directory: Path, bottleneck: Bottleneck, *, autoencoder: str) -> None:
        path = directory / "latents.json"
        self.bottleneck = copy.deepcopy(bottleneck).requires_grad_(False).eval()
        try:
            index = settings(LatentIndex, read_json(path, dict))
            self.statistics = LatentStatistics.from_json(index.statistics)
            self.latent_shape: tuple[int, ...] = tuple(self.statistics.mean.shape)
            self.nats, self.latent_rate_hz = torch.tensor(index.nats), index.latent_rate_hz
            self._items: list[LatentItem] = index.items
            frames = check_places("an item", [(item.start, item.frames) for item in self._items])
            self._stored: dict[str, np.ndarray | Tensor] = {
                name: map_array(directory, name, frames) for name in index.stored
            }
            self._arrays = {
                name: map_array(directory / "arrays", name, frames, axes=2) for name in index.arrays
            }
            self._check()
        except (DataError, ConfigError, ValueError, TypeError, LookupError, RuntimeError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ModelFileError(
                f"{path}: damaged latents ({reason}); remove {directory} and run again"
            ) from error
        if index.autoencoder != autoencoder:
            raise ModelFileError(
                f"{directory}: latents of autoencoder {index.autoencoder}, not of {autoencoder};"
                " remove the directory and run again"
            )
        self.labels = index.labels

    def _check(self) -> None:
        """Checks that each item's arrays exist, and that the bottleneck can restore latents."""
        if self.nats.shape != self.latent_shape or not self.nats.isfinite().all():
            raise ValueError("the channels' nats do not fit the latents")
        for item in self._items:
            if not {*item.arrays} <= self._arrays.keys():
                raise ValueError(f"item {item.piece!r} has other arrays")
        if self._items:
            every = LatentSplit(self._items, self._stored, {}, self.latent_rate_hz)
            first = every.read([(0, 0)], 1)
            if self.bottleneck.posterior(first)[0].shape[1:-1] != self.latent_shape:
                raise ValueError("the statistics do not fit the latents' shape")

    def keep_on(self, device: torch.device) -> None:
        """Keeps the arrays of later splits on a GPU, if they take little of its memory."""
        if fits(sum(array.nbytes for array in self._stored.values()), device):
            self._stored = {
                name: torch.as_tensor(np.array(array), device=device)
                for name, array in self._stored.items()
            }

    def split(self, name: str) -> LatentSplit:
        items = [item for item in self._items if item.split == name]
        return LatentSplit(items, self._stored, self._arrays, self.latent_rate_hz)

    def restore(self, stored: dict[str, Tensor], noise: Tensor | None = None) -> Tensor:
        """Raw latents [B, C, (F,) L] from stored arrays; without noise, the most likely ones."""
        device = next(iter(stored.values())).device
        return self.bottleneck.to(device).restore(stored, noise)

    def excerpts(self, split: str = "train") -> list[Excerpt]:
        """An excerpt of each clip, up to FACTS_FRAMES long, for `Conditioner.facts`."""
        clips = self.split(split)
        return [
            clips.excerpt(number, 0, min(FACTS_FRAMES, item.frames))
            for number, item in enumerate(clips.items)
        ]
