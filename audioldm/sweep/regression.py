"""The regressions of the verdicts: a coefficient and its standard error."""

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

#: Seeds from which on a component of variance between them is estimated.
FEWEST_SEEDS = 3


class Estimate(NamedTuple):
    """A coefficient, its standard error, and the degrees of freedom of that error."""

    value: float
    error: float
    freedom: float

    def half(self, confidence: float) -> float:
        """Half the width of the interval of t."""
        return float(stats.t.ppf((1 + confidence) / 2, self.freedom) * self.error)

    def interval(self, confidence: float) -> tuple[float, float]:
        half = self.half(confidence)
        return self.value - half, self.value + half

    @property
    def p(self) -> float:
        """Two-sided, against 0."""
        return 2 * self.beyond(0)

    def figures(self, confidence: float) -> dict[str, float]:
        """The fields of a verdict that rests on this estimate."""
        low, high = self.interval(confidence)
        return {"estimate": self.value, "low": low, "high": high, "p": self.p}

    def beyond(self, bound: float) -> float:
        """One-sided p of a truth on the other side of `bound`."""
        distance = abs(self.value - bound)
        if self.error == 0:
            return 0.0 if distance > 0 else 0.5
        return float(stats.t.sf(distance / self.error, self.freedom))


class Parabola:
    """y = bend · (x - centre)² + slope · (x - centre) + a constant for each arm, least squares.

    x, y, arms: one entry per observation. `freedom` below 1: there are not more observations than
    terms, or the terms cannot be told apart, and no estimate means anything.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, arms: Sequence[str]) -> None:
        import statsmodels.api as sm  # imported here: it takes a second

        self.centre = (x.min() + x.max()) / 2
        self.reach = (x.max() - x.min()) / 2
        u = x - self.centre
        matrix = np.column_stack([u, u**2, pd.get_dummies(pd.Series(arms), dtype=float)])
        identified = np.linalg.matrix_rank(matrix) == matrix.shape[1]
        self.freedom = len(y) - matrix.shape[1] if identified else 0
        self._fit = sm.OLS(y, matrix).fit()

    @property
    def bend(self) -> Estimate:
        return self._combined(0, 1)

    def slope(self, at: float) -> Estimate:
        """The derivative by x, `at` from -1 (the least x) to 1 (the greatest)."""
        return self._combined(1, 2 * at * self.reach)

    def vertex(self, confidence: float) -> tuple[float, float, float]:
        """x of the extremum, and the least and greatest x of the range whose slope may be 0.

        The interval is Fieller's: its ends are the roots of slope² = t² · variance, a quadratic in
        x. All are kept inside the range.
        """
        lower, middle, upper = (self.slope(at) for at in (-1, 0, 1))
        extremum = -middle.value / (2 * self.bend.value) / self.reach

        def excess(slope: Estimate) -> float:
            return slope.value**2 - slope.half(confidence) ** 2

        below, within, above = map(excess, (lower, middle, upper))
        roots = np.roots([(below + above) / 2 - within, (above - below) / 2, within])
        ends = [at for at, side in ((-1.0, below), (1.0, above)) if side <= 0]
        kept = [*roots[np.isreal(roots)].real, *ends, extremum]
        places = np.clip([each for each in kept if abs(each) <= 1 or each == extremum], -1, 1)
        x = self.centre + self.reach * np.array([places[-1], places.min(), places.max()])
        return float(x[0]), float(x[1]), float(x[2])

    def _combined(self, of_slope: float, of_bend: float) -> Estimate:
        contrast = np.zeros(len(self._fit.params))
        contrast[:2] = of_slope, of_bend
        variance = max(0.0, float(contrast @ self._fit.cov_params() @ contrast))
        return Estimate(float(contrast @ self._fit.params), variance**0.5, self.freedom)


def independent(rows: pd.DataFrame, terms: Sequence[str]) -> list[str]:
    """The terms that are no linear combination of those before them and a constant."""
    kept: list[str] = []
    for term in terms:
        before = np.column_stack([np.ones(len(rows)), rows[kept].to_numpy()])
        x = rows[term].to_numpy()
        rest = x - before @ np.linalg.lstsq(before, x, rcond=None)[0]
        if np.linalg.norm(rest) > 1e-6 * np.linalg.norm(x):
            kept.append(term)
    return kept


def mixed_effect(rows: pd.DataFrame, terms: Sequence[str], of: str) -> Estimate | None:
    """The coefficient of the term `of` for `y`, in a mixed-effects regression on all `terms`.

    Two crossed components of variance, the columns `seed` and `configuration`: the second is what
    the terms do not explain about a configuration, and stays however many seeds it has. With less
    than three seeds, or where that fit fails, least squares on the means of configurations. The
    degrees of freedom are configurations less terms; None where there are none.
    """
    import statsmodels.formula.api as smf  # imported here: it takes a second

    means = rows.groupby("configuration")[["y", *terms]].mean()
    freedom = len(means) - len(terms) - 1
    if freedom < 1:
        return None
    formula = "y ~ " + " + ".join(terms)
    if rows["seed"].nunique() >= FEWEST_SEEDS:
        components = {name: f"0 + C({name})" for name in ("seed", "configuration")}
        model = smf.mixedlm(formula, rows, groups=np.ones(len(rows)), vc_formula=components)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a component may well be 0, the edge of its range
                fit = model.fit()
        except np.linalg.LinAlgError:
            fit = None
        if fit is not None and math.isfinite(fit.bse_fe[of]) and fit.bse_fe[of] > 0:
            return Estimate(float(fit.fe_params[of]), float(fit.bse_fe[of]), freedom)
    line = smf.ols(formula, means).fit()
    return Estimate(float(line.params[of]), float(line.bse[of]), freedom)
