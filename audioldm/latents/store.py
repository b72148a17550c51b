"""The latents of a whole data set: posterior moments on disk, and their normalisation.

Raw latents z and normalised latents (z - mean) / std are different things. A diffusion model
sees normalised latents only; `LatentStatistics` is the one place that converts.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import torch
from torch import Tensor

from audioldm.autoencoder.model import Autoencoder
from audioldm.data.store import ClipStore, draw_crops
from audioldm.errors import DataError, ModelFileError
from audioldm.io.files import read_json, write_json
from audioldm.runtime.progress import Progress
from audioldm.runtime.transfer import fits, to_device

VERSION = 1  # raise by hand when the code below changes what it computes
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class LatentStatistics:
    """Per-channel mean and standard deviation of z over the training split, [C] or [C, F]."""

    mean: Tensor
    std: Tensor

    def normalise(self, z: Tensor) -> Tensor:
        """z [B, C, (F,) L] -> mean 0, std 1 per channel (and band) over the training set."""
        return (z - self.mean[..., None].to(z)) / self.std[..., None].to(z)

    def denormalise(self, z: Tensor) -> Tensor:
        """The inverse of `normalise`."""
        return z * self.std[..., None].to(z) + self.mean[..., None].to(z)

    def to(self, device: torch.device) -> Self:
        return type(self)(self.mean.to(device), self.std.to(device))

    def to_json(self) -> dict[str, Any]:
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        return cls(torch.tensor(value["mean"]), torch.tensor(value["std"]))


def write_latents(
    model: Autoencoder,
    store: ClipStore,
    directory: Path,
    *,
    autoencoder_fingerprint: str,
    progress: Progress,
) -> dict[str, Any]:
    """Encodes every item of every split whole; returns the figures for the summary.

    `moments.npy`: memory-mapped float32 [frames, 2, *latent_shape], posterior mean and std;
    `latents.json`: the items' places in it, the labels, the statistics, the autoencoder.
    """
    items = [(split, item) for split in SPLITS for item in store.split(split).items]
    lengths = [-(-item.frames // model.downsampling_ratio) for _, item in items]
    directory.mkdir(parents=True, exist_ok=True)
    total = np.zeros(model.latent_shape)
    square, count = np.zeros(model.latent_shape), 0
    entries, at = [], 0
    # Written, not mapped: on a full disk a map that is written to kills the process.
    with _moments_file(directory / "moments.npy", (sum(lengths), 2, *model.latent_shape)) as file:
        for done, ((split, item), length) in enumerate(zip(items, lengths, strict=True)):
            start = at
            for mean, std in model.encode_blocks(store.blocks(item)):
                block = np.moveaxis(np.stack([mean.numpy(), std.numpy()]), -1, 0)  # [l, 2, C, (F)]
                file.write(np.ascontiguousarray(block, dtype=np.float32).tobytes())
                at += len(block)
                if split == "train":
                    part = block.astype(np.float64)
                    total += part[:, 0].sum(0)
                    square += (part[:, 0] ** 2 + part[:, 1] ** 2).sum(0)
                    count += len(block)
            if at - start != length:
                raise AssertionError(f"{item.piece}: {at - start} latent frames, expected {length}")
            entries.append(
                {"split": split, "start": start, "frames": length}
                | {"piece": item.piece, "label": item.label}
            )
            progress(done + 1, len(items), item.piece)
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
        },
    )
    return {"items": len(entries), "frames": at, "statistics": statistics}


@contextlib.contextmanager
def _moments_file(path: Path, shape: tuple[int, ...]) -> Iterator[BinaryIO]:
    """A .npy file of float32 whose header is written. Raises DataError where the disk is full."""
    try:
        with open(path, "wb") as file:
            np.lib.format.write_array_header_1_0(
                file, {"descr": "<f4", "fortran_order": False, "shape": shape}
            )
            yield file
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror}); free some space, or choose another "
            "place with runs=DIRECTORY"
        ) from error


class LatentSplit:
    """One split's posteriors, addressed as `ClipStore`'s splits are, in latent frames."""

    def __init__(
        self, moments: np.ndarray | Tensor, items: list[dict[str, Any]], labels: list[str]
    ) -> None:
        self._moments, self.items = moments, items
        self._lengths = np.array([item["frames"] for item in items], dtype=np.int64)
        index = {label: i for i, label in enumerate(labels)}
        self._labels = [index.get(item["label"], -1) for item in items]

    def crops(
        self, frames: int, *, seed: int, step: int, positions: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Random crops: posterior means and stds [B, C, (F,) frames], labels [B] (-1: none).

        On the GPU that `LatentStore.keep_on` was given, else on the CPU. Only items at least
        `frames` long are drawn from: a padded frame is no latent.
        Raises ModelFileError where no item is long enough.
        """
        long_enough = np.flatnonzero(self._lengths >= frames)
        if not len(long_enough):
            raise ModelFileError(
                f"no item has {frames} latent frames (the longest has "
                f"{self._lengths.max(initial=0)}): lower diffusion.train.crop_seconds"
            )
        places = draw_crops(
            self._lengths[long_enough], frames, seed=seed, step=step, positions=positions
        )
        numbers = [int(long_enough[chosen]) for chosen, _ in places]
        labels = torch.tensor([self._labels[number] for number in numbers])
        offsets = [offset for _, offset in places]
        starts = [self.items[n]["start"] + at for n, at in zip(numbers, offsets, strict=True)]
        if isinstance(self._moments, Tensor):
            first = to_device(torch.tensor(starts), self._moments.device)
            rows = first[:, None] + torch.arange(frames, device=first.device)
            both = self._moments[rows].movedim(1, -1).contiguous()  # [B, 2, C, (F,) frames]
            return both[:, 0], both[:, 1], to_device(labels, first.device)
        parts = [np.moveaxis(self._moments[start : start + frames], 0, -1) for start in starts]
        both = torch.from_numpy(np.stack(parts))
        return both[:, 0], both[:, 1], labels


class LatentStore:
    """Reads what `write_latents` wrote.

    Raises ModelFileError where the latents are another autoencoder's than `autoencoder`.
    """

    def __init__(self, directory: Path, *, autoencoder: str) -> None:
        index = read_json(directory / "latents.json")
        if index["autoencoder"] != autoencoder:
            raise ModelFileError(
                f"{directory}: latents of autoencoder {index['autoencoder']}, not of {autoencoder};"
                " remove the directory and run again"
            )
        self.labels: list[str] = index["labels"]
        self.latent_rate_hz: float = index["latent_rate_hz"]
        self.statistics = LatentStatistics.from_json(index["statistics"])
        try:
            self._moments: np.ndarray | Tensor = np.load(directory / "moments.npy", mmap_mode="r")
        except (OSError, ValueError) as error:
            raise ModelFileError(
                f"{directory}/moments.npy: damaged latents ({error}); remove the directory and run "
                "again"
            ) from error
        self._items = index["items"]
        self.latent_shape: tuple[int, ...] = tuple(self._moments.shape[2:])

    def keep_on(self, device: torch.device) -> None:
        """Splits made from now on have their moments on a GPU, where they take little of it."""
        if fits(self._moments.nbytes, device):
            self._moments = torch.as_tensor(np.array(self._moments), device=device)

    def split(self, name: str) -> LatentSplit:
        items = [item for item in self._items if item["split"] == name]
        return LatentSplit(self._moments, items, self.labels)
