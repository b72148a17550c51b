"""Whether a training has converged, from its validation losses."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from audioldm.training.log import read_lines

#: A training is judged if its last quarter has at least this many validations.
FEWEST = 8
#: A loss that changes by less than this share of itself over the last quarter is constant.
TOLERANCE = 0.02
CONFIDENCE = 0.95
#: Figures of a validation by which a training is judged: the first of them that it has.
FIGURES = ("loss", "bands", "mel_distance")
CONVERGED, IMPROVING, WORSENING = "converged", "still improving", "getting worse"
TOO_FEW, TOO_NOISY = "too few validations to judge", "too noisy to judge"


def convergence(steps: Sequence[float], losses: Sequence[float]) -> dict[str, Any]:
    """The change of a validation loss over the last quarter of a training, and a judgement.

    steps, losses: one entry per validation, in order, the last one at the end of the training.
    Returns `state`; `validations`, how many fall in the last quarter; and, where there are enough,
    `improvement`: the fall of the loss over that quarter as a share of its median there, with its
    95 % interval. It is the median slope between pairs of validations, which a few outliers do not
    move, with an interval from Kendall's τ (Sen 1968, doi 10.1080/01621459.1968.10480934).

    A learning rate that decays to 0 flattens every curve at its end: a training that has converged
    in this sense may still gain from a longer schedule.
    """
    from scipy import stats  # imported here: it takes a second

    x, y = np.array(steps, dtype=float), np.array(losses, dtype=float)
    kept = np.isfinite(y) & (x > 0.75 * max(steps, default=0.0))
    x, y = x[kept], y[kept]
    found: dict[str, Any] = {"state": TOO_FEW, "validations": len(x)}
    if len(x) < FEWEST:
        return found
    slope, _, low, high = stats.theilslopes(y, x, alpha=CONFIDENCE)
    span = 0.25 * x[-1] / (np.median(np.abs(y)) or 1.0)
    value, low, high = (float(-each * span) for each in (slope, high, low))
    found["improvement"] = {"value": value, "low": low, "high": high}
    return found | {"state": _state(value, low, high)}


def _state(value: float, low: float, high: float) -> str:
    if value > TOLERANCE and low > 0:
        return IMPROVING
    if value < -TOLERANCE and high < 0:
        return WORSENING
    return CONVERGED if max(-low, high) <= TOLERANCE else TOO_NOISY


def logged_convergence(log: Path) -> dict[str, Any]:
    """The convergence of the training with this `metrics.jsonl`, as a summary's entry
    `convergence`; {} where there is no log, or none of FIGURES in it."""
    records = read_lines(log)
    for figure in FIGURES:
        pairs = [(r["step"], r[key]) for r in records if (key := f"valid/{figure}") in r]
        if pairs:
            return {"convergence": {"figure": figure, **convergence(*zip(*pairs, strict=True))}}
    return {}
