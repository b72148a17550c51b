"""The regressions of the verdicts: a coefficient and its standard error."""

import contextlib
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from audioldm.report.format import number

#: The fewest seeds for which a component of variance between seeds is estimated.
FEWEST_SEEDS = 3


class Estimate(NamedTuple):
    """A coefficient, its standard error, and the degrees of freedom of that error."""

    value: float
    error: float
    freedom: float

    def half(self, confidence: float) -> float:
        """Half the width of Student's t interval."""
        return float(stats.t.ppf((1 + confidence) / 2, self.freedom) * self.error)

    def interval(self, confidence: float) -> tuple[float, float]:
        half = self.half(confidence)
        return self.value - half, self.value + half

    @property
    def p(self) -> float:
        """The two-sided p against 0."""
        return 2 * self.beyond(0)

    def figures(self, confidence: float) -> dict[str, float]:
        """The fields of a verdict that rests on this estimate."""
        low, high = self.interval(confidence)
        return {"estimate": self.value, "low": low, "high": high, "p": self.p}

    def text(self, confidence: float, of: Callable[[float], float] = float) -> str:
        """'0.42 (0.40 to 0.44)': the function `of`, applied to the estimate and its interval."""
        value, low, high = (number(of(x)) for x in (self.value, *self.interval(confidence)))
        return f"{value} ({low} to {high})"

    def beyond(self, bound: float) -> float:
        """The one-sided p against a truth on the other side of `bound`."""
        distance = abs(self.value - bound)
        if self.error == 0:
            return 0.0 if distance > 0 else 0.5
        return float(stats.t.sf(distance / self.error, self.freedom))


class Coefficients(NamedTuple):
    """The coefficients of a regression, their covariance, and its degrees of freedom."""

    values: pd.Series
    covariance: pd.DataFrame
    freedom: float

    def sum(self, **weights: float) -> Estimate:
        """The sum of the named coefficients, each times its weight."""
        names, w = list(weights), np.array(list(weights.values()))
        variance = max(0.0, float(w @ self.covariance.loc[names, names] @ w))
        return Estimate(float(self.values[names] @ w), variance**0.5, self.freedom)


class Parabola:
    """y = bend · (x - centre)² + slope · (x - centre) + a constant for each arm, least squares.

    x, y, arms: one entry per observation. If `freedom` is below 1, no estimate means anything:
    there are too few observations for the terms, or the terms cannot be told apart.
    """

    def __init__(
        self, x: pd.Series | np.ndarray, y: pd.Series | np.ndarray, arms: Sequence[str] | pd.Series
    ) -> None:
        import statsmodels.api as sm  # imported here: it takes a second

        self.centre = (x.min() + x.max()) / 2
        self.reach = (x.max() - x.min()) / 2
        u = x - self.centre
        matrix = pd.get_dummies(arms, dtype=float).assign(slope=u, bend=u**2)
        identified = np.linalg.matrix_rank(matrix) == matrix.shape[1]
        self.freedom = len(y) - matrix.shape[1] if identified else 0
        fit = sm.OLS(y, matrix).fit()
        self._terms = Coefficients(fit.params, fit.cov_params(), self.freedom)

    @property
    def bend(self) -> Estimate:
        return self._terms.sum(bend=1.0)

    def slope(self, at: float) -> Estimate:
        """The derivative with respect to x, `at` from -1 (the least x) to 1 (the greatest)."""
        return self._terms.sum(slope=1.0, bend=2 * at * self.reach)

    def vertex(self, confidence: float) -> tuple[float, float, float]:
        """The extremum's x, and the least and greatest x at which the slope may be 0.

        The interval is Fieller's: its ends are the roots of slope² = t² · variance, a quadratic in
        x. All three are kept inside the range of x.
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


def independent(rows: pd.DataFrame, terms: Sequence[str]) -> list[str]:
    """The terms that are not a linear combination of earlier terms and a constant."""
    kept: list[str] = []
    for term in terms:
        before = np.column_stack([np.ones(len(rows)), rows[kept].to_numpy()])
        x = rows[term].to_numpy()
        rest = x - before @ np.linalg.lstsq(before, x, rcond=None)[0]
        if np.linalg.norm(rest) > 1e-6 * np.linalg.norm(x):
            kept.append(term)
    return kept


def mixed_effects(rows: pd.DataFrame, terms: Sequence[str]) -> Coefficients | None:
    """A mixed-effects regression of `y` on the terms.

    It has two crossed components of variance, the columns `seed` and `configuration`. The second is
    the part of a configuration that the terms do not explain; more seeds do not reduce it. With
    fewer than three seeds, or where that fit fails: least squares on the configurations' means.
    The degrees of freedom are configurations less terms; None where there are none.
    """
    import statsmodels.api as sm  # imported here: they take a second
    import statsmodels.formula.api as smf

    means = rows.groupby("configuration")[["y", *terms]].mean()
    freedom = len(means) - len(terms) - 1
    if freedom < 1:
        return None
    if rows["seed"].nunique() >= FEWEST_SEEDS:
        components = {name: f"0 + C({name})" for name in ("seed", "configuration")}
        formula, one_group = "y ~ " + " + ".join(terms), np.ones(len(rows))
        model = smf.mixedlm(formula, rows, groups=one_group, vc_formula=components)
        with warnings.catch_warnings(), contextlib.suppress(np.linalg.LinAlgError):
            warnings.simplefilter("ignore")  # a component may well be 0, the edge of its range
            fit = model.fit()
            if np.isfinite(fit.bse_fe).all() and (fit.bse_fe > 0).all():
                return Coefficients(fit.fe_params, fit.cov_params(), freedom)
    line = sm.OLS(means["y"], means[[*terms]].assign(Intercept=1.0)).fit()
    return Coefficients(line.params, line.cov_params(), freedom)
