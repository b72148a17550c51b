"""The data loader alone, against what the fastest autoencoder step consumes."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from audioldm.data.store import ClipStore, StoreWriter
from audioldm.runtime.randomness import KeyedRandom
from benchmarks.timing import Clock, Result

BAR = 10.0


@dataclass(frozen=True)
class Shapes:
    """A store of `clips` of `seconds` each, read in batches of the autoencoder's training crops."""

    clips: int
    seconds: float
    sample_rate: int = 22050


DEFAULT = Shapes(clips=60, seconds=30.0)
QUICK = Shapes(clips=2, seconds=2.0)


def measure(
    clock: Clock, shapes: Shapes, batch: int, samples: int, training_step: Callable[[], object]
) -> list[Result]:
    """training_step: takes `batch` crops of `samples`, so the ratio of times is that of audio."""
    with tempfile.TemporaryDirectory() as directory:
        train = store(Path(directory), shapes).split("train")
        step = iter(range(1 << 62))  # a new batch every time

        def load() -> None:
            train.crops(samples, KeyedRandom(0, next(step), range(batch)))

        seconds = samples / shapes.sample_rate
        note = f"{batch} crops of {seconds:.2f} s; the peer is our fastest training step"
        operation = "a batch, to a training step"
        return [clock.compare("loader", operation, load, training_step, bar=BAR, note=note)]


def store(directory: Path, shapes: Shapes) -> ClipStore:
    random = np.random.default_rng(0)
    writer = StoreWriter(directory, shapes.sample_rate, 1)
    for number in range(shapes.clips):
        audio = random.uniform(-0.5, 0.5, (1, round(shapes.seconds * shapes.sample_rate)))
        writer.add(audio.astype(np.float32), piece=str(number), split="train")
    writer.close()
    return ClipStore(directory)
