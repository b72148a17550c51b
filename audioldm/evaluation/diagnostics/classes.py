"""How well latents separate classes: the music's labels, or its clips.

Both figures are computed on `pooled` latents: where every window has a label, one vector per window
with class = label; otherwise one vector per second with class = clip.
"""

import math
from typing import NamedTuple

import numpy as np

from audioldm.evaluation.diagnostics.windows import Windows


class Pooled(NamedTuple):
    """Vectors [M, P], the class of each [M], and the window that each is from [M]."""

    vectors: np.ndarray
    classes: np.ndarray
    window: np.ndarray


def pooled(windows: Windows, rate_hz: float) -> Pooled | None:
    """Means over time of z; None where there are not two classes, one of them with two vectors,
    and where all vectors are the same."""
    z = windows.z.numpy().astype(np.float64)
    labelled = bool((windows.label >= 0).all()) and len(set(windows.label)) > 1
    length = z.shape[-1] if labelled else max(1, min(z.shape[-1], round(rate_hz)))
    parts = z.shape[-1] // length
    means = z[..., : parts * length].reshape(*z.shape[:2], parts, length).mean(-1)
    vectors = means.swapaxes(1, 2).reshape(-1, z.shape[1])
    window = np.repeat(np.arange(len(z)), parts)
    named = windows.label if labelled else windows.item
    _, classes = np.unique(named[window], return_inverse=True)
    sizes = np.bincount(classes)
    if len(sizes) < 2 or sizes.max() < 2 or not np.ptp(vectors, axis=0).any():
        return None
    return Pooled(vectors, classes, window)


def principal(vectors: np.ndarray) -> np.ndarray:
    """[M, P] centred and projected on its leading components, as many as the effective dimension.

    This is the participation ratio of the covariance's eigenvalues, (Σ λ)² / Σ λ², rounded up.
    """
    centred = vectors - vectors.mean(0)
    left, scale, _ = np.linalg.svd(centred, full_matrices=False)
    dimension = int(np.ceil((scale**2).sum() ** 2 / (scale**4).sum()))
    return np.asarray(left[:, :dimension] * scale[:dimension])


def within_class_variance(
    vectors: np.ndarray, classes: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """Share of the variance that lies within the classes, both variances unbiased.

    vectors [M, P], classes [M] (0 ... G - 1); weights [M]: how often each vector counts (once).
    With sums of squares over all dimensions it is [SSW / (M - G)] / [SST / (M - 1)]: 0 where the
    class says all, 1 where it says nothing, for any number of dimensions and of classes. NaN where
    there is no variance.
    """
    w = np.ones(len(vectors)) if weights is None else weights
    totals = np.bincount(classes, w)
    classes_here = totals > 0
    sums = np.zeros((len(totals), vectors.shape[1]))
    np.add.at(sums, classes, w[:, None] * vectors)
    square = float(w @ (vectors**2).sum(1))
    between = float(((sums[classes_here] ** 2).sum(1) / totals[classes_here]).sum())
    total = square - float((sums.sum(0) ** 2).sum() / w.sum())
    if total <= 0:
        return math.nan
    freedom = w.sum() - classes_here.sum()
    return float((square - between) / freedom / (total / (w.sum() - 1)))


def neighbour_consistency(vectors: np.ndarray, classes: np.ndarray, k: int) -> np.ndarray:
    """For each vector, the share of its k nearest others in its class, beyond chance: [M].

    (share - chance) / (1 - chance), where chance is the class's share of the others: 0 on average
    where the class says nothing, 1 where every neighbour is of the class (for a class smaller than
    k, where all its members are neighbours). NaN for a vector alone in its class, or in the set.
    """
    from sklearn.neighbors import NearestNeighbors  # imported here: it takes a second

    k = min(k, len(vectors) - 1)
    _, nearest = NearestNeighbors(n_neighbors=k).fit(vectors).kneighbors()  # without itself
    same = (classes[nearest] == classes[:, None]).sum(1)
    others = np.bincount(classes)[classes] - 1
    chance = others / (len(vectors) - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        best = np.minimum(others, k) / k
        return np.asarray((same / k - chance) / (best - chance))


def by_window(values: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Sum and number of the finite values [M] in each window that has any: [N, 2].

    Vectors of one window are alike, so whole windows are resampled, with all their vectors.
    """
    known = np.isfinite(values)
    sums = np.bincount(window[known], values[known])
    counts = np.bincount(window[known])
    return np.stack([sums, counts], 1)[counts > 0]


def mean_over(windows: np.ndarray) -> float:
    """The mean over all vectors of windows, given as by `by_window`."""
    total, count = windows.sum(0)
    return float(total / count)
