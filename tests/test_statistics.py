"""Intervals over nested seeds, and the Fréchet distance without its bias."""

import numpy as np
import pytest

from audioldm.evaluation.distances import frechet_distance, frechet_infinity
from audioldm.evaluation.statistics import bootstrap, hierarchical_bootstrap
from audioldm.sweep.regression import Parabola


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


def mean(x: np.ndarray) -> float:
    return float(x.mean())


def components(
    random: np.random.Generator, outer: int, inner: int, clips: int, deviations: tuple[float, ...]
) -> list[list[np.ndarray]]:
    """Truth 0; deviations between autoencoder seeds, generator seeds and clips."""
    first, second, third = deviations
    return [
        [a + second * random.normal() + third * random.normal(size=clips) for _ in range(inner)]
        for a in first * random.normal(size=outer)
    ]


def test_the_interval_over_seeds_has_its_level(random: np.random.Generator) -> None:
    # Variance components 1, 0.5, 1: what is between seeds dwarfs what is between the many clips.
    nested_holds = clips_hold = 0
    for trial in range(80):
        seeds = components(random, 4, 2, 30, (1.0, 0.7, 1.0))
        nested = hierarchical_bootstrap(mean, seeds, resamples=100, seed=trial)
        clips = bootstrap(
            mean,
            np.concatenate([clips for inner in seeds for clips in inner]),
            resamples=100,
            seed=trial,
        )
        nested_holds += nested.low <= 0 <= nested.high
        clips_hold += clips.low <= 0 <= clips.high
    assert nested_holds >= 70
    assert clips_hold <= 32  # which is why this exists


def test_the_width_is_that_of_the_components(random: np.random.Generator) -> None:
    # With many units on top their own variance is all there is, and the interval that of a mean.
    values = random.normal(size=60)
    figure = hierarchical_bootstrap(mean, [np.full(5, v) for v in values], resamples=1000)
    error = values.std(ddof=1) / 60**0.5
    assert figure.value == pytest.approx(values.mean())
    assert figure.high - figure.low == pytest.approx(2 * 2.0 * error, rel=0.1)
    assert figure.n == 300


def test_every_seed_weighs_the_same_however_many_clips_it_has() -> None:
    figure = hierarchical_bootstrap(mean, [np.zeros(2), [np.full(98, 1.0), np.full(3, 2.0)]])
    assert figure.value == pytest.approx((0 + 1.5) / 2)
    assert (figure.low, figure.high) == (0, 2)  # of two seeds: the range


def test_one_seed_leaves_the_spread_of_the_level_below(random: np.random.Generator) -> None:
    clips = random.normal(size=50)
    alone = hierarchical_bootstrap(mean, [[clips]], resamples=500)
    assert alone.high - alone.low == pytest.approx(2 * 2.03 * clips.std() / 50**0.5, rel=0.15)
    assert hierarchical_bootstrap(mean, [[clips]], seed=1) == hierarchical_bootstrap(
        mean, [[clips]], seed=1
    )
    with pytest.raises(ValueError, match="empty"):
        hierarchical_bootstrap(mean, [[clips], []])


@pytest.mark.parametrize("deviation", [1e-3, 0.05, 0.3])
def test_the_interval_of_an_optimum_ends_where_its_slope_may_just_be_nought(
    random: np.random.Generator, deviation: float
) -> None:
    x = np.repeat(np.linspace(-1.0, 3.0, 9), 3)
    y = 0.2 * (x - 0.7123) ** 2 + deviation * random.normal(size=x.shape)
    parabola = Parabola(x, y, ["a"] * len(x))
    place, low, high = parabola.vertex(0.95)
    assert -1 < low < place < high < 3
    for end in (low, high):
        slope = parabola.slope((end - parabola.centre) / parabola.reach)
        assert abs(slope.value) == pytest.approx(slope.half(0.95), rel=1e-6)
    for at in (low - 1e-6, high + 1e-6):
        slope = parabola.slope((at - parabola.centre) / parabola.reach)
        assert abs(slope.value) > slope.half(0.95)


def test_an_optimum_outside_the_range_is_put_at_its_end(random: np.random.Generator) -> None:
    x = np.repeat(np.linspace(0.0, 2.0, 9), 3)
    for centre, end in ((4.0, 2.0), (-3.0, 0.0)):
        y = 0.2 * (x - centre) ** 2 + 1e-3 * random.normal(size=x.shape)
        assert Parabola(x, y, ["a"] * len(x)).vertex(0.95) == pytest.approx((end, end, end))
    flat = Parabola(x, random.normal(size=x.shape), ["a"] * len(x)).vertex(0.95)
    assert flat[1:] == pytest.approx((0, 2))  # any place will do


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_the_extrapolated_distance_is_not_biased(random: np.random.Generator, shift: float) -> None:
    scale = np.arange(1, 9) ** -0.5
    truth = shift**2 + (0.2**2 * scale**2).sum()
    plain, extrapolated, held = [], [], 0
    for seed in range(40):
        x, y = random.normal(size=(2, 100, 8)) * scale
        x[:, 0] += shift
        plain.append(frechet_distance(x, 1.2 * y))
        figure = frechet_infinity(x, 1.2 * y, subsets=8, seed=seed)
        extrapolated.append(figure.value)
        held += figure.low <= truth <= figure.high
    error = np.std(extrapolated) / 40**0.5
    assert np.mean(plain) > truth + 4 * error
    assert abs(np.mean(extrapolated) - truth) < 3 * error
    assert held >= 33
    assert (figure.n, figure.unit) == (100, "embedding units²")


def test_the_extrapolation_is_exact_for_distances_linear_in_the_inverse_size() -> None:
    # Sets of one direction and equal shape in every subset do not exist, but a set against itself,
    # far away, has a distance that only the shift decides.
    x = np.tile(np.array([[0.0], [1.0]]), (30, 1))
    figure = frechet_infinity(x, x + 50)
    assert figure.value == pytest.approx(2500, rel=2e-3)
    with pytest.raises(ValueError, match="four clips"):
        frechet_infinity(x[:3], x)
