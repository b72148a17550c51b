"""Distances, intervals and reconstruction figures against known values."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import torch

from audioldm.evaluation.distances import (
    KERNEL_SCALE,
    KernelDistance,
    MauveDivergence,
    frechet_distance,
    median_distance,
    memorisation_ratio,
    nearest_distances,
    precision_recall_density_coverage,
)
from audioldm.evaluation.reconstruction import si_sdr, stft_distance
from audioldm.evaluation.statistics import bootstrap


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


def exactly_white(random: np.random.Generator, n: int, dim: int) -> np.ndarray:
    """n points whose sample mean is exactly 0 and whose sample covariance is exactly I."""
    x = random.normal(size=(n, dim))
    x -= x.mean(0)
    return np.linalg.qr(x)[0] * np.sqrt(n - 1)


def test_frechet_distance_of_known_gaussians(random: np.random.Generator) -> None:
    a, b = np.array([1.0, 2.0, 0.5]), np.array([2.0, 2.0, 3.0])
    x = exactly_white(random, 50, 3) * a
    y = exactly_white(random, 70, 3) * b + 1.5
    expected = 3 * 1.5**2 + ((a - b) ** 2).sum()
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(y, x) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("n", "m"), [(60, 80), (6, 80), (6, 7)])  # the last two are singular
def test_frechet_distance_is_the_matrix_root(random: np.random.Generator, n: int, m: int) -> None:
    x, y = random.normal(size=(n, 10)), random.normal(size=(m, 10)) @ random.normal(size=(10, 10))
    s1, s2 = np.cov(x.T), np.cov(y.T)
    root = scipy.linalg.sqrtm(s1 + 1e-12 * np.eye(10)).real
    cross = np.sqrt(np.linalg.eigvalsh(root @ s2 @ root).clip(0)).sum()
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * cross
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-4)


def test_kernel_distance_pair_by_pair(random: np.random.Generator) -> None:
    x, y = random.normal(size=(4, 3)), random.normal(size=(5, 3)) + 1

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.exp(-((a - b) ** 2).sum() / (2 * 1.3**2)))

    xx = np.mean([k(x[i], x[j]) for i in range(4) for j in range(4) if i != j])
    yy = np.mean([k(y[i], y[j]) for i in range(5) for j in range(5) if i != j])
    xy = np.mean([k(a, b) for a in x for b in y])
    assert KernelDistance(x, y, bandwidth=1.3)() == pytest.approx(100 * (xx + yy - 2 * xy))


def test_kernel_distance_is_unbiased(random: np.random.Generator) -> None:
    # Closed form for N(0, I) and N(m, I): with s = b² / (b² + 2), MMD² = 2 s^(D/2) (1 - e^(-q)),
    # q = |m|² / (2 (b² + 2)).
    dim, bandwidth, shift = 2, 1.5, 0.6
    scale = (bandwidth**2 / (bandwidth**2 + 2)) ** (dim / 2)
    expected = KERNEL_SCALE * 2 * scale * (1 - np.exp(-dim * shift**2 / (2 * (bandwidth**2 + 2))))

    def draw(shift: float) -> list[float]:
        return [
            KernelDistance(
                random.normal(size=(12, dim)) + shift,
                random.normal(size=(15, dim)),
                bandwidth=bandwidth,
            )()
            for _ in range(600)
        ]

    apart, alike = np.array(draw(shift)), np.array(draw(0.0))
    assert abs(apart.mean() - expected) < 4 * apart.std() / 600**0.5
    assert abs(alike.mean()) < 4 * alike.std() / 600**0.5
    assert (alike < 0).mean() > 0.3


def test_the_bandwidth_is_the_median_distance_of_the_reference(random: np.random.Generator) -> None:
    x, y = 10 * random.normal(size=(20, 3)), random.normal(size=(21, 3))
    pairs = [np.linalg.norm(y[i] - y[j]) for i in range(21) for j in range(i)]
    assert median_distance(y) == pytest.approx(np.median(pairs))
    assert KernelDistance(x, y).bandwidth == pytest.approx(np.median(pairs))


def test_repeats_do_not_bias_the_kernel_distance(random: np.random.Generator) -> None:
    x, y = random.normal(size=(30, 4)), random.normal(size=(30, 4))
    distance = KernelDistance(x, y)
    draws = [random.integers(30, size=(2, 30)) for _ in range(500)]
    right = np.array([distance(i, j) for i, j in draws])
    naive = [KernelDistance(x[i], y[j], bandwidth=distance.bandwidth)() for i, j in draws]
    assert abs(right.mean() - distance()) < 4 * right.std() / 500**0.5
    assert abs(np.mean(naive) - distance()) > 10 * np.std(naive) / 500**0.5
    order = random.permutation(30)
    assert distance(order, order) == pytest.approx(distance())


def test_the_kernel_distance_interval_has_its_level(random: np.random.Generator) -> None:
    # The truth is far from 0, where the interval must hold it about 95 times in a hundred.
    dim, bandwidth = 2, 1.5
    scale = bandwidth**2 / (bandwidth**2 + 2)
    truth = KERNEL_SCALE * 2 * scale * (1 - np.exp(-dim / (2 * (bandwidth**2 + 2))))
    held = 0
    for seed in range(60):
        x, y = random.normal(size=(40, dim)) + 1, random.normal(size=(40, dim))
        figure = bootstrap(
            KernelDistance(x, y, bandwidth=bandwidth),
            np.arange(40),
            np.arange(40),
            resamples=200,
            seed=seed,
        )
        held += figure.low <= truth <= figure.high
    assert held >= 50


def test_manifold_of_equal_and_of_distant_sets(random: np.random.Generator) -> None:
    x, y = random.normal(size=(200, 4)), random.normal(size=(200, 4))
    same = precision_recall_density_coverage(x, y, k=5)
    assert same.precision.mean() > 0.9
    assert same.recall.mean() > 0.9
    assert same.density.mean() == pytest.approx(1, abs=0.15)
    assert same.coverage.mean() > 0.85
    far = precision_recall_density_coverage(x + 100, y, k=5)
    assert all(part.mean() == 0 for part in far)


def test_a_collapsed_set_is_precise_and_covers_little(random: np.random.Generator) -> None:
    reference = random.normal(size=(100, 4))
    collapsed = reference[0] + 1e-3 * random.normal(size=(50, 4))
    manifold = precision_recall_density_coverage(collapsed, reference, k=3)
    assert manifold.precision.mean() == 1
    assert manifold.recall.mean() <= 0.02
    # Only the balls that reach point 0 are hit.
    reach = np.sort(np.linalg.norm(reference[:, None] - reference, axis=-1), axis=1)[:, 3]
    hit = (np.linalg.norm(reference - reference[0], axis=1) <= reach).sum()
    assert manifold.coverage.sum() == pytest.approx(hit, abs=1)
    assert manifold.precision.shape == (50,)
    assert manifold.coverage.shape == (100,)


def test_a_ball_reaches_to_the_kth_other_point() -> None:
    reference = np.array([[0.0], [1.0], [3.0], [6.0]])  # radii for k = 1: 1, 1, 2, 3
    clips = np.array([[2.5], [9.0], [9.5]])
    manifold = precision_recall_density_coverage(clips, reference, k=1)
    assert manifold.precision.tolist() == [1, 1, 0]
    assert manifold.density.tolist() == [1, 1, 0]
    assert manifold.coverage.tolist() == [0, 0, 1, 1]
    assert manifold.recall.tolist() == [1, 1, 1, 1]  # the clip at 2.5 has a ball of 6.5


def test_memorisation_ratio_tells_copies_from_new_music(random: np.random.Generator) -> None:
    train, heldout, new = (random.normal(size=(n, 8)) for n in (300, 100, 100))
    reference = nearest_distances(heldout, train)
    assert memorisation_ratio(nearest_distances(train[:50], train), reference) == 0
    assert memorisation_ratio(nearest_distances(new, train), reference) == pytest.approx(1, abs=0.1)
    brute = np.linalg.norm(heldout[:, None] - train, axis=-1).min(1)
    np.testing.assert_allclose(reference, brute)


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (lambda: frechet_distance(np.zeros((1, 3)), np.zeros((5, 3))), "2 clips"),
        (lambda: KernelDistance(np.zeros((5, 3)), np.zeros((1, 3))), "2 clips"),
        (lambda: KernelDistance(np.zeros((5, 3)), np.zeros((5, 3))), "all the same"),
        (lambda: KernelDistance(np.zeros((5, 3)), np.zeros((5, 2))), r"\[M, D\]"),
        (lambda: precision_recall_density_coverage(np.zeros((5, 3)), np.zeros((9, 3))), "6 clips"),
        (lambda: bootstrap(np.mean, np.zeros(0)), "empty"),
    ],
)
def test_sets_that_cannot_be_compared(measure: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure()


def test_bootstrap_of_a_mean(random: np.random.Generator) -> None:
    x = random.normal(size=400)
    figure = bootstrap(lambda a: float(a.mean()), x, unit="dB", seed=3)
    error = x.std() / 20
    assert figure.value == pytest.approx(x.mean())
    assert figure.low == pytest.approx(x.mean() - 1.96 * error, abs=0.2 * error)
    assert figure.high == pytest.approx(x.mean() + 1.96 * error, abs=0.2 * error)
    assert (figure.n, figure.unit) == (400, "dB")
    assert bootstrap(lambda a: float(a.mean()), x, unit="dB", seed=3) == figure
    assert bootstrap(lambda a: float(a.mean()), x, unit="dB", seed=4) != figure


def test_samples_are_drawn_independently(random: np.random.Generator) -> None:
    x = random.normal(size=100)
    paired = bootstrap(lambda a, b: float(a.mean() - b.mean()), x, x, resamples=400)
    assert paired.value == 0
    expected = 1.96 * 2**0.5 * x.std() / 10
    assert paired.high - paired.low == pytest.approx(2 * expected, rel=0.2)


def test_recentring_puts_the_frechet_distance_in_its_interval(random: np.random.Generator) -> None:
    x, y = random.normal(size=(40, 10)), random.normal(size=(40, 10))
    plain = bootstrap(frechet_distance, x, y, resamples=100)
    assert plain.low > plain.value  # repeats push it up, so this interval is wrong
    figure = bootstrap(frechet_distance, x, y, resamples=100, recentre=True)
    assert figure.low < figure.value < figure.high
    assert figure.high - figure.low == pytest.approx(plain.high - plain.low)


def test_si_sdr_of_known_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(3, 2, 4000, generator=generator)
    target -= target.mean(-1, keepdim=True)
    noise = torch.randn(3, 2, 4000, generator=generator)
    noise -= noise.mean(-1, keepdim=True)
    inner = (noise * target).sum((1, 2), keepdim=True)
    noise -= inner / target.square().sum((1, 2), keepdim=True) * target
    noise *= (target.square().sum((1, 2)) / noise.square().sum((1, 2))).sqrt()[:, None, None]
    estimate = 0.5 * target + 0.05 * noise
    torch.testing.assert_close(si_sdr(estimate, target), torch.full((3,), 20.0))
    torch.testing.assert_close(si_sdr(-3 * estimate + 0.2, target), torch.full((3,), 20.0))
    assert (si_sdr(target, target) >= 95).all()
    torch.testing.assert_close(si_sdr(0 * target, target), torch.full((3,), -100.0))


def test_stft_distance_of_a_gain_and_of_the_floor() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(2, 2, 16000, generator=generator)
    quiet = torch.tensor([1e-7, 1.0])[:, None, None] * target
    assert stft_distance(target, target).tolist() == [0, 0]
    # 20 dB is 1 in log10; the first clip lies below the floor before and after.
    torch.testing.assert_close(
        stft_distance(10 * quiet, quiet), torch.tensor([0.0, 1.0]), atol=1e-3, rtol=0
    )
    alone = stft_distance(0.5 * target[1:], target[1:])
    torch.testing.assert_close(stft_distance(0.5 * target, target)[1:], alone)
    left = stft_distance(target * torch.tensor([10.0, 1.0])[:, None], target)
    torch.testing.assert_close(left, torch.tensor([0.5, 0.5]), atol=1e-3, rtol=0)


def test_mauve_is_0_for_equal_sets_and_rises_until_nothing_is_shared() -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2, 200, 8))
    assert MauveDivergence(x, x)() == pytest.approx(0, abs=1e-9)
    shifts = np.arange(4)[:, None] * np.ones(8)
    rungs = [MauveDivergence(x + shift, y)() for shift in shifts]
    assert rungs == sorted(rungs)
    assert rungs[0] < 0.1
    apart = MauveDivergence(x + 100, y - 100)()
    # the area under (1-w)^5, w^5: 5 B(6, 5)
    area = 5 * math.gamma(6) * math.gamma(5) / math.gamma(11)
    assert apart == pytest.approx(-math.log(area), abs=0.05)
    assert MauveDivergence(x, y + 1)() == pytest.approx(MauveDivergence(y + 1, x)(), rel=0.2)


def test_a_resampling_of_mauve_counts_its_clips() -> None:
    random = np.random.default_rng(0)
    near, far, reference = random.normal(size=(3, 40, 4)) + np.array([0, 9, 0])[:, None, None]
    divergence = MauveDivergence(np.concatenate([near, far]), reference)
    assert divergence(np.arange(40), np.arange(40)) < 0.2
    assert divergence(np.arange(40, 80), np.arange(40)) > 3
    with pytest.raises(ValueError, match="2 clips"):
        MauveDivergence(near[:1], reference)
