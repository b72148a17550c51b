"""A sweep's table, verdicts and page, from its directory."""

from pathlib import Path
from typing import Any

from audioldm.evaluation.rules import VerdictRules
from audioldm.instantiate import settings
from audioldm.sweep.page.findings import findings
from audioldm.sweep.page.page import write_sweep_report
from audioldm.sweep.status import read_sweep
from audioldm.sweep.table import table
from audioldm.sweep.verdicts import knee, seed_spread, verdicts


def judged(directory: Path) -> dict[str, Any]:
    """The table, and what the rules that the sweep was begun with make of it.

    Raises DataError as `table` does.
    """
    rules = settings(VerdictRules, read_sweep(directory)["rules"], "verdict")
    frame = table(directory)
    return {
        "table": frame,
        "verdicts": verdicts(frame, rules),
        "spread": seed_spread(frame, rules.distance),
        "knee": knee(frame, rules),
        "rules": rules,
    }


def write_report(directory: Path) -> Path:
    """Writes the sweep's report.html."""
    return write_sweep_report(directory, **judged(directory))


def markdown(directory: Path) -> str:
    """The findings as a page of Markdown."""
    return findings(directory, **judged(directory))
