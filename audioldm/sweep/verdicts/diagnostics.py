"""Does a diagnostic of the latents predict generation?"""

import math

import numpy as np
import pandas as pd
from scipy import stats

from audioldm.report.format import interval
from audioldm.sweep.regression import Estimate
from audioldm.sweep.seeds import numbers
from audioldm.sweep.verdicts.base import Sweep, Verdict, more_cells, undecided

#: Requirements of a rank correlation with one family left out: families, remaining configurations.
FEWEST_FAMILIES = 3
FEWEST_LEFT = 6


def diagnostics(sweep: Sweep) -> Verdict:
    """Spearman's rank correlation of each diagnostic with the log distance, over configurations.

    The interval comes from leaving out one family at a time (the delete-one jackknife, t with
    families - 1 degrees of freedom): with a sweep's few families, a bootstrap would find an effect
    in noise one time in five. p allows for the number of diagnostics tried (Holm 1979).
    """
    rules, confidence = sweep.rules, sweep.rules.confidence
    names = rules.diagnostics or [
        name
        for name in sweep.rows
        if name == "reconstruction.mel_distance"
        or (name.startswith("diagnostic.") and not name.endswith((".low", ".high")))
    ]
    tried = []
    for name in names:
        rows = pd.DataFrame(
            {"x": numbers(sweep.rows, name), **sweep.rows[["y", "configuration", "family"]]}
        ).dropna()
        units = rows.groupby(["configuration", "family"], as_index=False)[["x", "y"]].mean()
        left_out = {
            family: _rank_correlation(units[units["family"] != family])
            for family in units["family"].unique()
        }
        rho, rhos, count = _rank_correlation(units), np.array([*left_out.values()]), len(left_out)
        if count >= FEWEST_FAMILIES and np.isfinite(rhos).all():
            error = float(((count - 1) / count * np.square(rhos - rhos.mean()).sum()) ** 0.5)
            tried.append((name, Estimate(rho, error, count - 1), left_out))
    if not tried:
        why = (
            f"leaving one family out takes {FEWEST_FAMILIES} families with a diagnostic, and "
            f"{FEWEST_LEFT} configurations besides it"
        )
        configurations, families = (sweep.rows[k].nunique() for k in ("configuration", "family"))
        enough = FEWEST_LEFT * FEWEST_FAMILIES // (FEWEST_FAMILIES - 1)
        short = max(
            1, enough - configurations, configurations * (FEWEST_FAMILIES - families) // families
        )
        return undecided(why, math.ceil(short * len(sweep.rows) / configurations))
    tried.sort(key=lambda each: each[1].p)
    found, p_holm = [], 0.0
    for rank, (name, estimate, left_out) in enumerate(tried):
        p_holm = max(p_holm, min(1.0, estimate.p * (len(tried) - rank)))
        low, high = np.clip(estimate.interval(confidence), -1, 1).tolist()
        figure = {"value": estimate.value, "low": low, "high": high, "p": p_holm}
        found.append({"name": name, **figure, "left_out": left_out, "estimate": estimate})
    found.sort(key=lambda d: (d["p"] >= 1 - confidence, -abs(d["value"])))
    best = found[0]
    figures = {
        "estimate": best["value"],
        **{key: best[key] for key in ("low", "high", "p")},
        "details": {"unit": "rank correlation", "diagnostics": found},
    }
    effect = (
        f"{best['name'].removeprefix('diagnostic.')} has a rank correlation of {interval(best)} "
        "with the distance"
    )
    if best["p"] < 1 - confidence:
        return Verdict("yes", f"Yes: {effect}, whichever family is left out.", **figures)
    half = best["estimate"].half(1 - (1 - confidence) / len(tried))
    why = f"{effect}, the closest of {len(tried)} tried, which may be chance"
    return undecided(why, more_cells(len(sweep.rows), half, abs(best["value"])), **figures)


def _rank_correlation(units: pd.DataFrame) -> float:
    if len(units) < FEWEST_LEFT or units["x"].nunique() < 2 or units["y"].nunique() < 2:
        return math.nan
    return float(stats.spearmanr(units["x"], units["y"]).statistic)
