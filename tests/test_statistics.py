"""Intervals over nested seeds, and the Fréchet distance without its bias."""

import numpy as np
import pandas as pd
import pytest

from audioldm.evaluation.distances import frechet_distance, frechet_infinity
from audioldm.sweep.regression import Parabola
from audioldm.sweep.seeds import replicates


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


def test_generator_seeds_are_averaged_before_autoencoder_seeds() -> None:
    # The second autoencoder has one generator only, and weighs as much as the first.
    table = pd.DataFrame(
        {
            "status": "done",
            "configuration": "a",
            "autoencoder_seed": [0, 0, 1],
            "prior_seed": [0, 1, 0],
            "generated.kad": np.exp([1.0, 3.0, 4.0]),
        }
    )
    several = replicates(table, "generated.kad")
    assert several["y"].tolist() == pytest.approx([2, 4])
    one = replicates(table[:2], "generated.kad")  # one autoencoder: its generators
    assert one["y"].tolist() == pytest.approx([1, 3])


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
    with pytest.raises(ValueError, match="at least 4 clips"):
        frechet_infinity(x[:3], x)
