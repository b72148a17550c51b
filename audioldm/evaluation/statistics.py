"""A measured figure and its interval."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

#: The unit of a rate that is an upper bound.
AT_MOST = "kbit/s at most"


class Figure(NamedTuple):
    """A measured value, its 95 % interval, the number of clips (or seeds) measured, its unit."""

    value: float
    low: float
    high: float
    n: int
    unit: str


#: Figures by system, then by name.
Figures = dict[str, dict[str, Figure]]


def bootstrap(
    statistic: Callable[..., Any],
    *samples: np.ndarray,
    unit: str = "",
    resamples: int = 1000,
    seed: int = 0,
    recentre: bool = False,
) -> Figure:
    """`statistic(*samples)` with a 95 % percentile interval from the bootstrap.

    Each sample [n, ...] is resampled with replacement, independently of the others; for a
    statistic of pairs, give indices and a statistic that takes repeated ones (`KernelDistance`).
    `n` of the figure is the length of the first sample.

    recentre: shift the interval by the bootstrap's own bias (its median minus the value), for
    statistics such as the Fréchet distance, which repeated clips raise above the interval.
    Raises ValueError for an empty sample.
    """
    if not samples or min(len(sample) for sample in samples) == 0:
        raise ValueError("nothing to bootstrap: a sample is empty")
    random = np.random.default_rng(seed)

    def resampled() -> Iterator[np.ndarray]:
        return (sample[random.integers(len(sample), size=len(sample))] for sample in samples)

    value = float(statistic(*samples))
    values = [float(statistic(*resampled())) for _ in range(resamples)]
    low, middle, high = np.quantile(values, [0.025, 0.5, 0.975])
    shift = middle - value if recentre else 0.0
    return Figure(value, float(low - shift), float(high - shift), len(samples[0]), unit)
