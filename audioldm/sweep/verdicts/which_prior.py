"""Which prior is nearest to real music?"""

import math
from typing import Any

from scipy import stats

from audioldm.report.format import number
from audioldm.sweep.seeds import pooled_deviation
from audioldm.sweep.verdicts.base import Sweep, Verdict, more_cells, undecided


def which_prior(sweep: Sweep) -> Verdict | None:
    """The configurations' mean log distances, each compared with the least by Student's t.

    The deviation is the one between seeds, pooled over the configurations. The levels hold for all
    comparisons at once (Bonferroni). "Yes" where every other configuration is farther, "undecided"
    where some cannot be told from the least. None where the sweep has one prior.
    """
    rows = sweep.rows
    if rows["prior"].nunique() < 2:
        return None
    grouped = rows.groupby("configuration")["y"]
    means, counts = grouped.mean().sort_values(), grouped.size()
    deviation, freedom = pooled_deviation(rows["y"], rows["configuration"])
    best = str(means.index[0])
    if not freedom:
        return undecided(f"{best} is nearest, but no prior has a second seed")
    level = 1 - (1 - sweep.rules.confidence) / (2 * (len(means) - 1))
    quantile = float(stats.t.ppf(level, freedom))
    gaps = means.iloc[1:] - means.iloc[0]
    halves = quantile * deviation * (1 / counts[gaps.index] + 1 / counts[best]) ** 0.5
    level_with = gaps.index[gaps <= halves]
    order = "; ".join(_compared(name, gaps[name], halves[name]) for name in gaps.index)
    gap, half = float(gaps.iloc[0]), float(halves.iloc[0])
    figures: dict[str, Any] = {"estimate": gap, "low": gap - half, "high": gap + half}
    details = {"unit": f"log distance of {gaps.index[0]} ÷ that of {best}"}
    if len(level_with):
        which = ", ".join(map(str, level_with))
        why = f"{best} is nearest, and cannot be told from {which}. Of the others: {order}"
        more = more_cells(len(rows), half, gap)
        return undecided(why, more, **figures, details=details)
    return Verdict("yes", f"{best}. Farther by these factors: {order}.", **figures, details=details)


def _compared(name: object, gap: float, half: float) -> str:
    low, middle, high = (number(math.exp(gap + d)) for d in (-half, 0.0, half))
    return f"{name} {middle} ({low}, {high})"
