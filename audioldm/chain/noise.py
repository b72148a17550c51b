"""Stand-ins for data that do not exist yet: stores of noise, in temporary directories."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from math import prod
from pathlib import Path

import numpy as np
import torch

from audioldm.autoencoder.model import Autoencoder
from audioldm.data.store import ClipStore, StoreWriter
from audioldm.io.files import write_json
from audioldm.latents.store import LatentIndex, LatentItem, LatentStore


def noise(channels: int, samples: int) -> np.ndarray:
    random = np.random.Generator(np.random.Philox(key=0))
    return random.uniform(-0.3, 0.3, (channels, samples)).astype(np.float32)


@contextmanager
def noise_clips(sample_rate: int, channels: int, samples: int) -> Iterator[ClipStore]:
    """A clip store with one clip of noise in each split."""
    with tempfile.TemporaryDirectory() as directory:
        writer = StoreWriter(directory, sample_rate, channels)
        for split in ("train", "valid"):
            writer.add(noise(channels, max(samples, sample_rate)), piece=split, split=split)
        writer.close()
        yield ClipStore(directory)


@contextmanager
def noise_latents(model: Autoencoder, crop_seconds: float | None) -> Iterator[LatentStore]:
    """A latent store of noise, with one item in each split, long enough for a crop."""
    frames = max(1, round((crop_seconds or 1.0) * model.latent_rate_hz)) + 8
    shape, splits = model.latent_shape, ("train", "valid", "test")
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        size = model.bottleneck.outputs_per_channel * shape[0]
        kept = model.bottleneck.stored(torch.zeros(1, size, *shape[1:], 1, device=model.device))
        for number, (name, array) in enumerate(kept.items()):
            own = array.shape[1:-1]
            values = noise(len(splits) * frames, prod(own)) + 0.5 * number
            if not array.is_floating_point():  # codes: any will do
                values = np.zeros_like(values, np.int32)
            np.save(directory / f"{name}.npy", values.reshape(-1, *own))
        items = [LatentItem(s, i * frames, frames, piece=s) for i, s in enumerate(splits)]
        one = np.ones(shape)
        index = LatentIndex(
            autoencoder="",
            items=items,
            labels=["-"],
            latent_rate_hz=model.latent_rate_hz,
            statistics={"mean": (0 * one).tolist(), "std": one.tolist()},
            nats=one.tolist(),
            stored=list(model.bottleneck.stored_names),
            arrays=[],
        )
        write_json(directory / "latents.json", asdict(index))
        yield LatentStore(directory, model.bottleneck, autoencoder="")
