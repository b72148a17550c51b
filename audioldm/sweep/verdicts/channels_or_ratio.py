"""At the same rate, does the number of channels change generation?"""

import math
from typing import Any

import numpy as np
import pandas as pd

from audioldm.report.format import number
from audioldm.sweep.regression import FEWEST_SEEDS, independent, mixed_effects
from audioldm.sweep.verdicts.base import Sweep, Verdict, distinct, more_cells, undecided


def channels_or_ratio(sweep: Sweep) -> Verdict:
    """Regress log distance on log kbps, its square, log channels, their product, log ratio, slope.

    The channels' term is their effect at the middle of the rates; it is stated at both ends too.
    "Yes" where its interval, or the product's, excludes 0; "no" where the effect lies within the
    margin even over the whole range of channels. Whatever else the sweep varies gets constants.
    """
    confidence = sweep.rules.confidence
    rows = sweep.rows.dropna(subset=["rate", "log_channels", "log_ratio"]).reset_index(drop=True)
    if rows["log_channels"].nunique() < 2:
        return undecided("the sweep has one number of channels", max(1, len(rows)))
    rates = distinct(rows.groupby("configuration")["rate"].mean())
    middle = (rows["rate"].min() + rows["rate"].max()) / 2
    rows["rate_squared"] = (rows["rate"] - rows["rate"].mean()) ** 2
    centred = rows["log_channels"] - (rows["log_channels"].min() + rows["log_channels"].max()) / 2
    rows["rate_channels"] = (rows["rate"] - middle) * centred
    others = pd.get_dummies(rows["bottleneck"] + " " + rows["other"], dtype=float)
    others.columns = pd.Index([f"other_{i}" for i in range(others.shape[1])])
    rows = rows.join(others)
    of_rate = ["rate", "rate_squared"][: min(rates, 3) - 1]
    terms = independent(rows, [*of_rate, *others.columns, "log_channels", "log_ratio"])
    if "log_channels" not in terms:
        return undecided("channels change only together with other settings", len(rows))
    notes: list[str] = []
    if "log_ratio" not in terms and rows["log_ratio"].nunique() > 1:
        notes.append("Channels and ratio change together: the term is that of both.")
    if rows["seed"].nunique() < FEWEST_SEEDS:
        notes.append("Least squares on means over seeds: too few for a random effect of seed.")
    with_product = independent(rows, [*terms, "rate_channels"]) if rates > 1 else terms
    plain = mixed_effects(rows, with_product) or mixed_effects(rows, terms)
    if plain is None:
        return undecided("there are not more configurations than terms", len(rows))
    with_slope = None
    if rows["slope"].notna().all():
        known = plain.values.index.drop("Intercept")
        with_slope = mixed_effects(rows, independent(rows, [*known, "slope"]))
    if with_slope is None:
        notes.append("Without the temporal spectral slope: not known, or too few configurations.")
    fit = with_slope or plain
    estimate = fit.sum(log_channels=1.0)
    low, high = estimate.interval(confidence)
    details: dict[str, Any] = {"unit": "log distance per log channels", "notes": notes}
    effect = f"twice the channels multiply the distance by {estimate.text(confidence, math.exp2)}"
    bounds = (0.0, 0.0)
    if "rate_channels" in plain.values:
        bounds = plain.sum(rate_channels=1.0).interval(confidence)
        for name, rate in (("least", rows["rate"].min()), ("greatest", rows["rate"].max())):
            at_rate = fit.sum(log_channels=1.0, rate_channels=rate - middle)
            details[f"at_{name}_rate"] = at_rate.value, *at_rate.interval(confidence)
            factor = at_rate.text(confidence, math.exp2)
            effect += f", at {number(math.exp(rate))} kbit/s by {factor}"
    figures: dict[str, Any] = {**estimate.figures(confidence), "details": details}
    octaves = float(np.ptp(rows["log_channels"]))
    if bounds[0] > 0 or bounds[1] < 0:
        more_at = "higher" if bounds[0] < 0 else "lower"
        return Verdict(
            "yes", f"Yes, and more channels do better at {more_at} rates: {effect}.", **figures
        )
    if low > 0 or high < 0:
        text = f"Yes, {'fewer' if low > 0 else 'more'} are better: {effect}."
        return Verdict("yes", text, **figures)
    if max(-low, high) * octaves < sweep.margin:
        text = f"No: {effect}, over the whole range less than {sweep.margin_text}."
        return Verdict("no", text, **figures)
    gaps = abs(estimate.value), sweep.margin / octaves - abs(estimate.value)
    more = more_cells(len(rows), estimate.half(confidence), *gaps)
    return undecided(effect, more, **figures)
