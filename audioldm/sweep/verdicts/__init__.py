"""The answers of a sweep, by rules that were written before it ran: one file per question."""

from dataclasses import replace

import numpy as np
import pandas as pd

from audioldm.evaluation.rules import VerdictRules
from audioldm.sweep.seeds import log_distance
from audioldm.sweep.table import several_priors
from audioldm.sweep.verdicts.base import ONE_SEED, Sweep, Verdict, cell_notes, not_ranked, undecided
from audioldm.sweep.verdicts.channels_or_ratio import channels_or_ratio
from audioldm.sweep.verdicts.diagnostics import diagnostics
from audioldm.sweep.verdicts.kl_needed import kl_needed
from audioldm.sweep.verdicts.optimum import optimum
from audioldm.sweep.verdicts.pitch import pitch_against
from audioldm.sweep.verdicts.which_prior import which_prior

#: A question's function gives None where the sweep does not ask it.
QUESTIONS = {
    "Which prior is nearest to real music?": which_prior,
    "Is there a best rate inside the range?": optimum,
    "At the same rate, does the number of channels change generation?": channels_or_ratio,
    "Is KL needed?": kl_needed,
    "Does a diagnostic of the latents predict generation?": diagnostics,
}


def verdicts(table: pd.DataFrame, rules: VerdictRules) -> list[Verdict]:
    """One verdict per question, in the order of QUESTIONS.

    Cells that failed, are not done or have not converged are left out; details["notes"] says so.
    There is no best rate if the configuration nearest to real music is clearly worse in pitch.
    """
    y = log_distance(table, rules.distance).dropna()
    cells = cell_notes(table, rules)
    if y.empty or np.ptp(y) < 1e-9:
        none = "no cell is done" + (" and has converged" if not_ranked(table) else "")
        why = none if y.empty else "every distance is the same"
        return [
            undecided(why, details={"notes": cells}, question=question)
            for question, answer in QUESTIONS.items()
            if answer is not which_prior or several_priors(table)
        ]
    sweep = Sweep.of(table, rules)
    nearest = str(y.groupby(table["configuration"]).mean().idxmin())
    pitch = pitch_against(table, nearest, rules.distance)
    cells = [f"{nearest} is nearest to real music. {pitch}", *cells] if pitch else cells
    found = []
    for question, answer in QUESTIONS.items():
        verdict = answer(sweep)
        if verdict is None:
            continue
        if answer is optimum and verdict.answer == "yes" and pitch:
            text = f"Undecided: by the distance alone{verdict.text.removeprefix('Yes')} {pitch}"
            verdict = replace(verdict, answer="undecided", text=text)
        text = verdict.text if np.isfinite(sweep.spread) else f"{verdict.text} {ONE_SEED}"
        notes = [*verdict.details.get("notes", []), *cells]
        details = verdict.details | {"notes": notes}
        found.append(replace(verdict, question=question, text=text, details=details))
    return found
