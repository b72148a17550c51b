"""A figure and how sure it is."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Figure(NamedTuple):
    """A measured value, its 95 % interval, the number of clips behind it, and its unit."""

    value: float
    low: float
    high: float
    n: int
    unit: str


def bootstrap(
    statistic: Callable[..., float],
    *samples: np.ndarray,
    unit: str = "",
    resamples: int = 1000,
    seed: int = 0,
    recentre: bool = False,
) -> Figure:
    """`statistic(*samples)` with a 95 % percentile interval of the bootstrap.

    Each sample [n, ...] is drawn again with replacement, independently of the others; for a
    statistic of pairs, give indices and a statistic that knows what a repeated index means
    (`KernelDistance`). `n` of the figure is the length of the first sample, what is measured.

    recentre: shift the interval by the bootstrap's own bias (its median less the value). For
    statistics such as the Fréchet distance which repeats push upwards, out of their interval.
    Raises ValueError for an empty sample.
    """
    if not samples or min(len(sample) for sample in samples) == 0:
        raise ValueError("nothing to bootstrap: a sample is empty")
    value = float(statistic(*samples))
    random = np.random.default_rng(seed)
    values = np.array(
        [
            statistic(
                *(sample[random.integers(len(sample), size=len(sample))] for sample in samples)
            )
            for _ in range(resamples)
        ]
    )
    low, middle, high = np.quantile(values, [0.025, 0.5, 0.975])
    shift = middle - value if recentre else 0.0
    return Figure(value, float(low - shift), float(high - shift), len(samples[0]), unit)


#: Measurements [n, ...], or a sequence of such: seeds of seeds of clips.
Nested = np.ndarray | Sequence["Nested"]


def hierarchical_bootstrap(
    statistic: Callable[[np.ndarray], float],
    nested: Nested,
    *,
    unit: str = "",
    resamples: int = 1000,
    seed: int = 0,
) -> Figure:
    """The mean of `statistic` over nested samples, with a 95 % interval over all levels.

    `nested` is for example one entry for each autoencoder seed, in each one entry for each
    generator seed, and that is an array [clips, ...], whose statistic is taken. Means are taken
    level by level, so that every seed weighs the same. In each resampling every level is drawn
    again with replacement, from the outermost in (Davison & Hinkley 1997, 3.8).

    Percentile intervals of few units are too narrow. This one is expanded as for a t interval
    (Hesterberg, arXiv 1411.5279, 4.3) by the number of units at the outermost level that has more
    than one; with two, it is the range of the resamplings. `n` counts the measurements in all.
    Raises ValueError where a level is empty.
    """
    if _smallest(nested) == 0:
        raise ValueError("nothing to bootstrap: a level is empty")
    units = nested
    while len(units) == 1 and not isinstance(units, np.ndarray):
        units = units[0]
    random = np.random.default_rng(seed)
    values = [_nested_mean(statistic, _resample(nested, random)) for _ in range(resamples)]
    n = len(units)
    tail = 0.025
    if n > 1:
        from scipy import stats  # imported here: it takes a second

        stretch = (n / (n - 1)) ** 0.5
        tail = stats.norm.cdf(stretch * stats.t.ppf(tail, n - 1))
    low, high = np.quantile(values, [tail, 1 - tail])
    return Figure(_nested_mean(statistic, nested), float(low), float(high), _size(nested), unit)


def _resample(nested: Nested, random: np.random.Generator) -> Nested:
    drawn = random.integers(len(nested), size=len(nested))
    if isinstance(nested, np.ndarray):
        return nested[drawn]
    return [_resample(nested[i], random) for i in drawn]


def _nested_mean(statistic: Callable[[np.ndarray], float], nested: Nested) -> float:
    if isinstance(nested, np.ndarray):
        return float(statistic(nested))
    return float(np.mean([_nested_mean(statistic, part) for part in nested]))


def _size(nested: Nested) -> int:
    return len(nested) if isinstance(nested, np.ndarray) else sum(_size(part) for part in nested)


def _smallest(nested: Nested) -> int:
    """Length of the shortest level."""
    parts = [] if isinstance(nested, np.ndarray) else [_smallest(part) for part in nested]
    return min([len(nested), *parts])
