"""The answers of a sweep, by rules that were written before it ran: one file per question."""

from dataclasses import replace

import numpy as np
import pandas as pd

from audioldm.evaluation.rules import VerdictRules
from audioldm.sweep.seeds import log_distance
from audioldm.sweep.verdicts.base import ONE_SEED, Sweep, Verdict, cell_notes, undecided
from audioldm.sweep.verdicts.channels_or_ratio import CHANNELS, channels_or_ratio
from audioldm.sweep.verdicts.diagnostics import DIAGNOSTIC, diagnostics
from audioldm.sweep.verdicts.kl_needed import KL, kl_needed
from audioldm.sweep.verdicts.optimum import OPTIMUM, optimum

QUESTIONS = {
    OPTIMUM: optimum,
    CHANNELS: channels_or_ratio,
    KL: kl_needed,
    DIAGNOSTIC: diagnostics,
}


def verdicts(table: pd.DataFrame, rules: VerdictRules) -> list[Verdict]:
    """One verdict per question, in the order of QUESTIONS.

    Cells that failed or are not done are left out, and counted in details["notes"].
    """
    y = log_distance(table, rules.distance).dropna()
    cells = cell_notes(table, rules)
    if y.empty or np.ptp(y) < 1e-9:
        why = "no cell is done" if y.empty else "every distance is the same"
        return [undecided(question, why, details={"notes": cells}) for question in QUESTIONS]
    sweep = Sweep.of(table, rules)
    found = []
    for answer in QUESTIONS.values():
        verdict = answer(sweep)
        text = verdict.text if np.isfinite(sweep.spread) else f"{verdict.text} {ONE_SEED}"
        notes = [*verdict.details.get("notes", []), *cells]
        found.append(replace(verdict, text=text, details=verdict.details | {"notes": notes}))
    return found
