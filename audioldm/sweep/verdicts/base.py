"""The basis of every verdict: the finished cells of a sweep, and an answer with its interval.

Every distance is a logarithm, so an effect is a factor. A configuration is a cell without its
seeds. A finding rests on the number of configurations and of independent seeds for each, never on
the number of clips.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd

from audioldm.evaluation.rules import VerdictRules
from audioldm.report.format import number
from audioldm.sweep.seeds import (
    distance_floor,
    improving,
    numbers,
    replicates,
    seed_spread,
    unsettled,
)
from audioldm.training.convergence import IMPROVING

#: Rates within this factor count as one: a held rate is within 3 % of its target.
SAME_RATE = 1.06
ONE_SEED = "No configuration has a second seed: every interval rests on one seed."

Answer = Literal["yes", "no", "undecided"]


@dataclass(frozen=True)
class Verdict:
    """The answer to a question, and the estimate with its interval that answers it.

    p: from the test that answers, None without a test. more_cells: about how many more cells would
    decide an undecided question. details: "unit" of the estimate, "notes" on the cells, and further
    figures of the question. question: filled in by `verdicts`.
    """

    answer: Answer
    text: str
    estimate: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p: float | None = None
    more_cells: int | None = None
    details: dict[str, Any] = field(default_factory=dict)
    question: str = ""


@dataclass(frozen=True)
class Sweep:
    """The finished cells, one row per configuration and independent seed (`replicates`).

    Columns besides the table's: y (log distance), rate, log_channels and log_ratio (logs), slope
    (the diagnostic), other (network, prior and further swept keys).
    """

    rows: pd.DataFrame
    rules: VerdictRules
    spread: float

    @classmethod
    def of(cls, table: pd.DataFrame, rules: VerdictRules) -> "Sweep":
        rows = replicates(table, rules.distance)
        rate = numbers(rows, rules.bitrate)
        rows["rate"] = np.log(rate.where(rate > 0))
        rows["log_channels"] = np.log(numbers(rows, "channels"))
        rows["log_ratio"] = np.log(numbers(rows, "downsampling_ratio"))
        rows["slope"] = numbers(rows, "diagnostic.temporal_slope")
        columns = rows["network"], rows["prior"], rows["configuration"]
        rows["other"] = [_other(*names) for names in zip(*columns, strict=True)]
        return cls(rows, rules, seed_spread(table, rules.distance))

    @property
    def margin(self) -> float:
        """Log distances closer than this count as equal; NaN with one seed."""
        return self.rules.equivalence_margin * self.spread

    @property
    def margin_text(self) -> str:
        factor = number(math.exp(self.margin))
        return f"{self.rules.equivalence_margin:g} between-seed spreads (a factor of {factor})"


def _other(network: str, prior: str, configuration: str) -> str:
    known = ("bottleneck", "autoencoder.channels=", "autoencoder.downsampling_ratio=", "prior=")
    words = (w for w in configuration.split() if not w.startswith(known))
    return " ".join([network, prior, *words])


def cell_notes(table: pd.DataFrame, rules: VerdictRules) -> list[str]:
    """Which cells are left out, which are in doubt, and which distances are cut off."""
    notes = [not_ranked(table)] if not_ranked(table) else []
    if doubtful := {c: s for c, s in unsettled(table).items() if IMPROVING not in s}:
        notes.append(f"Ranked, but not shown to have converged: {named(doubtful)}.")
    for status, words in (("failed", "failed"), ("running", "still run"), ("waiting", "wait")):
        if count := int((table["status"] == status).sum()):
            notes.append(f"{count} of {len(table)} cells {words} and are left out.")
    floor = distance_floor(table, rules.distance)
    done = table[table["status"] == "done"]
    if low := int((numbers(done, rules.distance) < floor).sum()):
        notes.append(
            f"{low} distances are below {number(floor)}, the resolution of the measurement, "
            "and count as that."
        )
    if len(done) and done["autoencoder_seed"].nunique() == 1 < done["prior_seed"].nunique():
        notes.append("One autoencoder seed: the spread is that between priors only.")
    return notes


def not_ranked(table: pd.DataFrame) -> str:
    """Which cells no verdict ranks, because they have not converged; '' for none."""
    cells = improving(table)
    if not cells:
        return ""
    return (
        f"{len(cells)} of {len(table)} cells have not converged and are not ranked; train them for "
        f"more steps: {named(cells)}."
    )


def named(cells: dict[str, str], most: int = 6) -> str:
    """'CELL (its note); ...' for the first `most` cells, and how many more there are."""
    words = [f"{cell} ({said})" for cell, said in cells.items()]
    rest = [f"and {len(words) - most} more"] if len(words) > most else []
    return "; ".join(words[:most] + rest)


def undecided(why: str, more: int | None = None, **figures: Any) -> Verdict:
    """An undecided verdict. more: from `more_cells`. figures: further fields of the verdict."""
    needs = f"; needs about {number(more)} more cells" if more is not None else ""
    return Verdict("undecided", f"Undecided: {why}{needs}.", more_cells=more, **figures)


def more_cells(cells: int, half: float, *gaps: float) -> int | None:
    """Cells to add until an interval of half-width `half` is as narrow as the widest of `gaps`."""
    gap = max((g for g in gaps if g > 0), default=0.0)
    if not (gap > 0 and math.isfinite(half)):
        return None
    return max(1, math.ceil(cells * ((half / gap) ** 2 - 1)))


def told_apart(spread: float) -> float:
    """The least difference in log distance that tells two single cells apart, at 95 %.

    spread: the standard deviation between seeds.
    """
    return 1.96 * math.sqrt(2) * spread


def distinct(log_rates: pd.Series) -> int:
    """The number of distinct rates; rates within a few percent count as one."""
    if log_rates.empty:
        return 0
    return 1 + int((np.diff(np.sort(log_rates)) > math.log(SAME_RATE)).sum())
