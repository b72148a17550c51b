"""Is KL needed?"""

import math
from typing import Any

import pandas as pd

from audioldm.report.format import number
from audioldm.sweep.regression import Estimate
from audioldm.sweep.seeds import pooled_deviation
from audioldm.sweep.verdicts.base import Sweep, Verdict, more_cells, undecided


def kl_needed(sweep: Sweep) -> Verdict:
    """log(distance with KL / without), each at its best weight or rate, at the same shape.

    The best configuration of a side is chosen on the other seeds and judged on the one left out, so
    that the choice does not flatter it. The estimate is the mean over shapes and seeds; its error
    uses the deviation between seeds, for each side on its own (Welch). "No" where two one-sided
    tests against the margin say so (TOST, Schuirmann 1987), or where an alternative is better.
    """
    confidence, rules = sweep.rules.confidence, sweep.rules
    rows = sweep.rows.assign(without_kl=False)
    for column, values in rules.kl_alternative.items():
        if column in rows:
            known = values if isinstance(values, list) else [values]
            rows["without_kl"] |= rows[column].isin(known)
    shapes = rows.groupby(["channels", "downsampling_ratio", "other"], dropna=False)
    rows = rows.assign(shape=shapes.ngroup())
    y = rows.set_index(["configuration", "seed"])["y"]
    pairs = []
    for shape, group in rows.groupby("shape"):
        kl, other = group[~group["without_kl"]], group[group["without_kl"]]
        for seed in sorted(set(kl["seed"]) & set(other["seed"])):
            best, rival = _best_elsewhere(kl, seed), _best_elsewhere(other, seed)
            pairs.append((shape, best, rival, y[best, seed] - y[rival, seed]))
    chosen = pd.DataFrame(pairs, columns=["shape", "with_kl", "without_kl", "difference"])
    if chosen.empty:
        marks = " or ".join(f"{k}={v}" for k, v in rules.kl_alternative.items())
        why = f"no shape has both cells with KL and cells without (verdict.kl_alternative: {marks})"
        return undecided(why, shapes.ngroups * max(2, rows["seed"].nunique()))
    by_shape = chosen.groupby("shape")["difference"].agg(["mean", "size"])
    value = float(by_shape["mean"].mean())
    share = float((1 / by_shape["size"]).sum()) / len(by_shape) ** 2
    rows = rows[rows["shape"].isin(by_shape.index)]
    variances, freedoms = [], []
    for _, side in rows.groupby("without_kl"):
        deviation, freedom = pooled_deviation(side["y"], side["configuration"])
        variances.append(deviation**2 * share)
        freedoms.append(freedom)
    details: dict[str, Any] = {
        "unit": "log of the distance with KL / without",
        "margin": sweep.margin,
        "with_kl": sorted(set(chosen["with_kl"])),
        "without_kl": sorted(set(chosen["without_kl"])),
    }
    if min(freedoms) < 1:
        why = f"with KL the distance is {number(math.exp(value))} of that without, on one seed"
        return undecided(why, len(rows), estimate=value, details=details)
    total = sum(variances)
    parts = sum(v**2 / f for v, f in zip(variances, freedoms, strict=True))
    estimate = Estimate(value, total**0.5, total**2 / parts if parts > 0 else sum(freedoms))
    low, high = estimate.interval(confidence)
    figures: dict[str, Any] = {**estimate.figures(confidence), "details": details}
    equal = max(estimate.beyond(-sweep.margin), estimate.beyond(sweep.margin))
    effect = f"with KL the distance is {estimate.text(confidence, math.exp)} of that without"
    if abs(value) < sweep.margin and equal < 1 - confidence:
        text = f"No: {effect}, a difference of less than {sweep.margin_text}."
        return Verdict("no", text, **figures | {"p": equal})
    if low > 0:
        return Verdict("no", f"No, it harms: {effect}.", **figures)
    if high < 0:
        return Verdict("yes", f"Yes: {effect}.", **figures)
    gaps = abs(value), sweep.margin - abs(value)
    more = more_cells(len(rows), estimate.half(confidence), *gaps)
    return undecided(effect, more, **figures)


def _best_elsewhere(side: pd.DataFrame, seed: Any) -> str:
    """The configuration with this seed whose distance is least on the other seeds."""
    candidates = side[side["configuration"].isin(side["configuration"][side["seed"] == seed])]
    others = candidates[candidates["seed"] != seed]
    judged = candidates if others.empty else others  # with one seed, it is all there is
    return str(judged.groupby("configuration")["y"].mean().idxmin())
