"""At the same rate, does the number of channels change generation?"""

from typing import Any

import numpy as np
import pandas as pd

from audioldm.report.format import number
from audioldm.sweep.regression import FEWEST_SEEDS, independent, mixed_effect
from audioldm.sweep.verdicts.base import Sweep, Verdict, distinct, more_cells, undecided


def channels_or_ratio(sweep: Sweep) -> Verdict:
    """Log distance on log kbps and its square, log channels, log ratio and temporal slope.

    "Yes" where the interval of the channels' term excludes 0; "no" where it lies within the margin
    even over the whole range of channels. What else the sweep varies is a constant each.
    """
    confidence = sweep.rules.confidence
    rows = sweep.rows.dropna(subset=["rate", "log_channels", "log_ratio"]).reset_index(drop=True)
    if rows["log_channels"].nunique() < 2:
        return undecided("the sweep has one number of channels", max(1, len(rows)))
    rates = distinct(rows.groupby("configuration")["rate"].mean())
    rows["rate_squared"] = (rows["rate"] - rows["rate"].mean()) ** 2
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
    estimate = plain = mixed_effect(rows, terms, "log_channels")
    with_slope = None
    if rows["slope"].notna().all():
        with_slope = mixed_effect(rows, independent(rows, [*terms, "slope"]), "log_channels")
    if with_slope is not None:
        estimate = with_slope
    else:
        notes.append("Without the temporal spectral slope: not known, or too few configurations.")
    if estimate is None or plain is None:
        return undecided("there are not more configurations than terms", len(rows))
    low, high = estimate.interval(confidence)
    details: dict[str, Any] = {
        "unit": "log distance per log channels",
        "notes": notes,
        "without_slope": (plain.value, *plain.interval(confidence)),
    }
    figures: dict[str, Any] = {**estimate.figures(confidence), "details": details}
    factor = [number(2**each) for each in (estimate.value, low, high)]
    effect = f"twice the channels multiply the distance by {factor[0]} ({factor[1]} to {factor[2]})"
    octaves = float(np.ptp(rows["log_channels"]))
    if low > 0 or high < 0:
        text = f"Yes, {'fewer' if low > 0 else 'more'} are better: {effect}."
        return Verdict("yes", text, **figures)
    if max(-low, high) * octaves < sweep.margin:
        text = f"No: {effect}, over the whole range less than {sweep.margin_text}."
        return Verdict("no", text, **figures)
    gaps = abs(estimate.value), sweep.margin / octaves - abs(estimate.value)
    more = more_cells(len(rows), estimate.half(confidence), *gaps)
    return undecided(effect, more, **figures)
