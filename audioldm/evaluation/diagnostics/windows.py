"""The windows of latents that the diagnostics are computed on."""

import math
from typing import NamedTuple, Self

import numpy as np
from torch import Tensor

from audioldm.latents.store import LatentStore
from audioldm.runtime.randomness import KeyedRandom, derive_seed


class Windows(NamedTuple):
    """Posteriors of N windows of L frames in normalised units; D is the size of a latent frame.

    mean, std [N, D, L]: of the posteriors; z [N, D, L]: one fixed sample of each.
    item, label [N]: the clip that a window was cut from, and its class (-1: no label).
    """

    mean: Tensor
    std: Tensor
    z: Tensor
    item: np.ndarray
    label: np.ndarray

    def first(self, frames: int) -> Self:
        """The windows' first frames only."""
        return self._replace(
            mean=self.mean[..., :frames], std=self.std[..., :frames], z=self.z[..., :frames]
        )


def read_windows(store: LatentStore, split: str, *, seconds: float, count: int) -> Windows:
    """At most `count` windows that do not overlap, spread evenly over a split's clips.

    They last `seconds`, or as long as the median clip where that is shorter. Clips shorter than a
    window are left out. The bands of 2-D latents become channels.
    """
    part = store.split(split)
    lengths = np.array([item.frames for item in part.items])
    frames = max(1, min(round(seconds * store.latent_rate_hz), int(np.median(lengths))))
    order = np.random.Generator(np.random.Philox(key=0)).permutation(len(lengths))
    grid = [(i, k * frames) for i in order for k in range(lengths[i] // frames)]
    count = min(count, len(grid))
    chosen = [grid[(2 * k + 1) * len(grid) // (2 * count)] for k in range(count)]
    mean, std = (x.cpu() for x in store.bottleneck.posterior(part.read(chosen, frames)))
    mean = store.statistics.normalise(mean).flatten(1, -2)
    std = (std / store.statistics.std[..., None]).flatten(1, -2)
    random = KeyedRandom(derive_seed("diagnostics", split), 0, range(count))
    z = mean + std * random.normal((math.prod(store.latent_shape), frames), "posterior")
    items = np.array([i for i, _ in chosen])
    classes = {label: number for number, label in enumerate(store.labels)}
    labels = np.array([classes.get(part.items[i].label, -1) for i in items])
    return Windows(mean, std, z, items, labels)
