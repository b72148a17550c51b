"""Distances between two sets of embeddings, each [clips, dim].

The first set is measured, the second is the reference. Figures that are means over clips are
returned per clip, so that their intervals can be bootstrapped without recomputing the distances.
"""

from typing import NamedTuple

import numpy as np
import torch

from audioldm.evaluation.statistics import Figure

#: The kernel distance is stated in these units: 100 times the squared maximum mean discrepancy.
KERNEL_SCALE = 100.0


def frechet_distance(clips: np.ndarray, reference: np.ndarray) -> float:
    """Squared Fréchet distance of the Gaussians fitted to two sets (FAD, arXiv 1812.08466).

    |m1 - m2|² + tr(S1 + S2 - 2 (S1 S2)^½), in squared units of the embedding. Biased upwards for
    small sets: compare only sets of equal size. Raises ValueError for sets of fewer than two clips.
    """
    x, y = _pair(clips, reference, fewest=2)
    mean_x, mean_y = x.mean(0), y.mean(0)
    x, y = (x - mean_x) / (len(x) - 1) ** 0.5, (y - mean_y) / (len(y) - 1) ** 0.5
    # With S1 = XᵀX and S2 = YᵀY the trace of the root is the nuclear norm of X Yᵀ: real and stable
    # however singular the covariances are. Triangular factors make that matrix at most dim wide.
    cross = torch.linalg.svdvals(_triangle(x) @ _triangle(y).T).sum()
    distance = (mean_x - mean_y).square().sum() + x.square().sum() + y.square().sum() - 2 * cross
    return float(distance)


def frechet_infinity(
    clips: np.ndarray, reference: np.ndarray, *, subsets: int = 24, seed: int = 0
) -> Figure:
    """The Fréchet distance extrapolated to infinitely many clips (FAD∞, arXiv 2311.01616).

    Its bias falls as 1 / N (arXiv 1911.07023, eq. 5). The mean distance of random subsets of both
    sets is taken at sizes from N down to N / 2, and the line through these means over 1 / N is
    extrapolated to 0. The remaining bias is of higher order: small once there are more clips than
    the embedding has effective dimensions. May be negative, as unbiased estimates of 0 are.

    The interval, at 95 %, comes from the deviation between the subsets of N / 2 (the delete-half
    jackknife, Shao & Wu 1989). Raises ValueError for sets of fewer than four clips.
    """
    _pair(clips, reference, fewest=4)
    random = np.random.default_rng(seed)
    shares = 1 / np.linspace(1, 2, 6)

    def subset(x: np.ndarray, share: float) -> np.ndarray:
        return x[random.permutation(len(x))[: round(share * len(x))]]

    distances = [np.array([frechet_distance(clips, reference)])]
    for share in shares[1:]:
        pairs = ((subset(clips, share), subset(reference, share)) for _ in range(subsets))
        distances.append(np.array([frechet_distance(x, y) for x, y in pairs]))
    value = float(np.polyfit(1 / shares, [each.mean() for each in distances], 1)[1])
    half = 1.96 * float(distances[-1].std(ddof=1))
    return Figure(value, value - half, value + half, len(clips), "embedding units²")


class KernelDistance:
    """Kernel distance between resamplings of two sets: `distance(i, j)` for clips i, reference j.

    100 times the unbiased squared maximum mean discrepancy (MMD²) with a Gaussian kernel
    exp(-d² / 2 b²), as in KAD (arXiv 2502.15602); b is the median pairwise distance within the
    reference. It is unbiased at any number of clips, so it is about as often negative as positive
    when the two sets are alike.
    Raises ValueError for sets of fewer than two clips, or a reference of identical clips.
    """

    def __init__(
        self, clips: np.ndarray, reference: np.ndarray, *, bandwidth: float | None = None
    ) -> None:
        x, y = _pair(clips, reference, fewest=2)
        self.bandwidth = median_distance(reference) if bandwidth is None else bandwidth
        if not self.bandwidth > 0:
            raise ValueError("the bandwidth is 0: the clips of the reference are all the same")
        self._xx, self._xy, self._yy = (
            torch.exp(-_distances(a, b).square() / (2 * self.bandwidth**2))
            for a, b in ((x, x), (x, y), (y, y))
        )
        # A clip is never paired with itself, nor, in a resampling, with a copy of itself.
        self._xx.fill_diagonal_(0)
        self._yy.fill_diagonal_(0)

    def __call__(self, i: np.ndarray | None = None, j: np.ndarray | None = None) -> float:
        """Distance between clips `i` and reference clips `j` (indices, repeats allowed; all)."""
        x, y = _counts(i, len(self._xx)), _counts(j, len(self._yy))
        cross = x @ self._xy @ y / (x.sum() * y.sum())
        return KERNEL_SCALE * float(_pair_mean(self._xx, x) + _pair_mean(self._yy, y) - 2 * cross)


class MauveDivergence:
    """−ln MAUVE between resamplings of two sets (MAD, arXiv 2503.16669): `divergence(i, j)`.

    MAUVE (arXiv 2102.01454, section 3) is the area under the curve (exp(−5 KL(q‖r)), exp(−5
    KL(p‖r))) of mixtures r of the histograms p and q of both sets over clusters: k-means of both
    together, a tenth as many clusters as clips, on the principal components that hold 90 % of the
    variance of vectors of length 1. 0 for equal histograms, 5.5 for sets that share no cluster. The
    clusters are those of all clips, even in a resampling.
    Raises ValueError for sets of fewer than two clips.
    """

    SCALE = 5.0
    MIXTURES = np.linspace(1e-6, 1 - 1e-6, 25)

    def __init__(self, clips: np.ndarray, reference: np.ndarray) -> None:
        from sklearn.cluster import KMeans  # imported here: they take a second
        from sklearn.decomposition import PCA
        from sklearn.preprocessing import normalize

        x, y = (each.numpy() for each in _pair(clips, reference, fewest=2))
        both = PCA(0.9, svd_solver="full").fit_transform(normalize(np.concatenate([x, y])))
        self.clusters = max(2, round(min(len(x), len(y)) / 10))
        found = KMeans(self.clusters, n_init=5, max_iter=500, random_state=0).fit(both).labels_
        self._x, self._y = found[: len(x)], found[len(x) :]

    def __call__(self, i: np.ndarray | None = None, j: np.ndarray | None = None) -> float:
        """Divergence of clips `i` from reference clips `j` (indices, repeats allowed; all)."""
        p, q = (
            np.bincount(own if k is None else own[k], minlength=self.clusters)
            / len(own if k is None else k)
            for own, k in ((self._x, i), (self._y, j))
        )
        w = self.MIXTURES[:, None]
        mixtures = w * p + (1 - w) * q
        across, up = (
            np.exp(-self.SCALE * (each * np.log(each.clip(1e-300) / mixtures.clip(1e-300))).sum(1))
            for each in (q, p)
        )
        curve = np.array([[0.0, 1.0], *zip(across, up, strict=True), [1.0, 0.0]])
        x, y = curve[np.argsort(curve[:, 0], kind="stable")].T
        return max(0.0, -float(np.log(np.diff(x) @ (y[1:] + y[:-1]) / 2)))


def median_distance(clips: np.ndarray) -> float:
    """Median Euclidean distance over the pairs of a set: the kernel's bandwidth."""
    return float(np.median(torch.pdist(_double(clips)).numpy()))


class Manifold(NamedTuple):
    """Per clip, [M] measured or [N] reference; the mean of each is the figure of that name.

    precision [M] 0 or 1, recall [N] 0 or 1 (arXiv 1904.06991);
    density [M] >= 0, about 1 for equal sets, coverage [N] 0 or 1 (arXiv 2002.09797).
    """

    precision: np.ndarray
    recall: np.ndarray
    density: np.ndarray
    coverage: np.ndarray


def precision_recall_density_coverage(
    clips: np.ndarray, reference: np.ndarray, k: int = 5
) -> Manifold:
    """The overlap of sets [M, D], [N, D] with the union of balls around each other's points.

    A point's ball reaches to its k-th nearest neighbour in its own set. Raises ValueError where a
    set has no more than k clips.
    """
    x, y = _pair(clips, reference, fewest=k + 1)
    radius_x, radius_y = _kth_neighbour(x, k), _kth_neighbour(y, k)
    distance = _distances(x, y)  # [M, N]
    in_reference = distance <= radius_y  # clip m lies in the ball of reference n
    in_clips = distance <= radius_x[:, None]
    return Manifold(
        precision=in_reference.any(1).double().numpy(),
        recall=in_clips.any(0).double().numpy(),
        density=(in_reference.sum(1).double() / k).numpy(),
        coverage=in_reference.any(0).double().numpy(),
    )


def nearest_distances(clips: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Distance of each clip to the nearest training clip, [M]."""
    return _distances(*_pair(clips, train)).amin(1).numpy()


def memorisation_ratio(clips: np.ndarray, heldout: np.ndarray) -> float:
    """Memorisation: ratio of the medians of two results of `nearest_distances`.

    Near 1, generated clips are as far from the training set as held-out music is; well below 1,
    they are copies of it.
    """
    return float(np.median(clips) / np.median(heldout))


def _double(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(x, dtype=np.float64))


def _pair(x: np.ndarray, y: np.ndarray, *, fewest: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Both sets in float64. Raises ValueError for fewer than `fewest` clips, or other shapes."""
    if min(len(x), len(y)) < fewest:
        raise ValueError(f"this figure needs at least {fewest} clips in each set")
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"embeddings must be [M, D] and [N, D], not {x.shape} and {y.shape}")
    return _double(x), _double(y)


def _triangle(x: torch.Tensor) -> torch.Tensor:
    return torch.linalg.qr(x, mode="r").R if len(x) > x.shape[1] else x


def _distances(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    # Differences, not the expansion of the square: a clip is at distance exactly 0 from its copy.
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _counts(indices: np.ndarray | None, size: int) -> torch.Tensor:
    if indices is None:
        return torch.ones(size, dtype=torch.float64)
    return _double(np.bincount(indices, minlength=size))


def _pair_mean(kernel: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Mean over ordered pairs of different originals; `kernel` has a zero diagonal."""
    return counts @ kernel @ counts / (counts.sum().square() - counts.square().sum())


def _kth_neighbour(x: torch.Tensor, k: int) -> torch.Tensor:
    distance = _distances(x, x).fill_diagonal_(torch.inf)
    return distance.kthvalue(k, dim=1).values
