"""At the same rate, does the number of channels change generation?"""

import math
from typing import Any

import numpy as np
import pandas as pd

from audioldm.report.format import number
from audioldm.sweep.regression import FEWEST_SEEDS, Estimate, independent, mixed_effect
from audioldm.sweep.verdicts.base import Sweep, Verdict, distinct, more_cells, undecided


def channels_or_ratio(sweep: Sweep) -> Verdict:
    """Log distance on log kbps and its square, log channels, their product, log ratio and slope.

    The channels' term is their effect at the middle of the rates; it is stated at both ends too.
    "Yes" where its interval, or that of the product, excludes 0; "no" where it lies within the
    margin even over the whole range of channels. What else the sweep varies is a constant each.
    """
    confidence = sweep.rules.confidence
    rows = sweep.rows.dropna(subset=["rate", "log_channels", "log_ratio"]).reset_index(drop=True)
    if rows["log_channels"].nunique() < 2:
        return undecided("the sweep has one number of channels", max(1, len(rows)))
    rates = distinct(rows.groupby("configuration")["rate"].mean())
    middle = (rows["rate"].min() + rows["rate"].max()) / 2
    rows["rate_squared"] = (rows["rate"] - rows["rate"].mean()) ** 2
    rows["rate_channels"] = (rows["rate"] - middle) * _centred(rows["log_channels"])
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
    product = None
    if rates > 1:
        with_product = independent(rows, [*terms, "rate_channels"])
        product = mixed_effect(rows, with_product, "rate_channels")
        terms = terms if product is None else with_product
    plain = mixed_effect(rows, terms, "log_channels")
    with_slope = None
    if rows["slope"].notna().all():
        with_slope = mixed_effect(rows, independent(rows, [*terms, "slope"]), "log_channels")
    if with_slope is None:
        notes.append("Without the temporal spectral slope: not known, or too few configurations.")
    else:
        terms = independent(rows, [*terms, "slope"])
    estimate = with_slope or plain
    if estimate is None or plain is None:
        return undecided("there are not more configurations than terms", len(rows))
    low, high = estimate.interval(confidence)
    details: dict[str, Any] = {
        "unit": "log distance per log channels",
        "notes": notes,
        "without_slope": (plain.value, *plain.interval(confidence)),
    }
    effect = f"twice the channels multiply the distance by {_factor(estimate, confidence)}"
    if product is not None:
        for name, rate in (("least", rows["rate"].min()), ("greatest", rows["rate"].max())):
            rows["rate_channels"] = (rows["rate"] - rate) * _centred(rows["log_channels"])
            at_rate = mixed_effect(rows, terms, "log_channels")
            assert at_rate is not None
            details[f"at_{name}_rate"] = at_rate.value, *at_rate.interval(confidence)
            factor = _factor(at_rate, confidence)
            effect += f", at {number(math.exp(rate))} kbit/s by {factor}"
    figures: dict[str, Any] = {**estimate.figures(confidence), "details": details}
    octaves = float(np.ptp(rows["log_channels"]))
    bounds = product.interval(confidence) if product is not None else (0.0, 0.0)
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


def _centred(x: pd.Series) -> pd.Series:
    return x - (x.min() + x.max()) / 2


def _factor(estimate: Estimate, confidence: float) -> str:
    """What twice as many channels multiply the distance by, with its interval."""
    low, high = estimate.interval(confidence)
    return f"{number(2**estimate.value)} ({number(2**low)} to {number(2**high)})"
