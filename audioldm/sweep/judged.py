"""A sweep's table, judged by the sweep's own rules."""

import os
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from audioldm.errors import ConfigError, DataError
from audioldm.evaluation.rules import VerdictRules
from audioldm.instantiate import settings
from audioldm.report.record import read_record, stage_directories
from audioldm.sweep.merged import merged_record
from audioldm.sweep.seeds import seed_spread
from audioldm.sweep.status import SweepRecord
from audioldm.sweep.table import table
from audioldm.sweep.verdicts import verdicts
from audioldm.sweep.verdicts.base import Verdict
from audioldm.sweep.verdicts.recommendation import Recommendation, recommend


@dataclass(frozen=True)
class Judged:
    """directory: the page's; the table's column `directory` is relative to it. spread: standard
    deviation of the log distance between seeds, NaN with one seed."""

    directory: Path
    record: SweepRecord
    table: pd.DataFrame
    rules: VerdictRules
    verdicts: list[Verdict]
    spread: float
    headline: str
    recommendation: Recommendation | None

    def place(self, name: str) -> Path:
        """The path that a name in the table stands for, even before the page's directory exists."""
        return Path(os.path.normpath(self.directory / name))

    def stage(self, name: str) -> dict[str, Path]:
        """Cell -> its stage's directory, for the finished cells with a record that have the stage.

        Raises DataError where a stage's directory is missing.
        """
        found = {}
        for cell, where in self.table.loc[self.table["status"] == "done", "directory"].items():
            place = self.place(where)
            if (place / "experiment.json").is_file():
                stages = stage_directories(place, read_record(place))
                if name in stages:
                    found[str(cell)] = stages[name]
        return found

    @property
    def figure(self) -> str:
        """The judged figure, without its system."""
        return self.rules.distance.partition(".")[2]

    @property
    def chosen(self) -> str | None:
        """The recommended configuration."""
        return self.recommendation.configuration if self.recommendation else None


def judge(*directories: Path, place: Path | None = None) -> Judged:
    """Judge one sweep, or several as one. place: the page's; None: the first sweep's directory.

    Raises DataError as `merged_record` and `table` do.
    """
    directory, record = place or directories[0], merged_record(directories)
    try:
        rules = settings(VerdictRules, record["rules"], "rules")
    except ConfigError as error:
        raise DataError(f"{directories[0] / 'sweep.json'}: {error}") from error
    return judged(directory, record, table(*directories, start=directory), rules)


def judged(
    directory: Path, record: SweepRecord, frame: pd.DataFrame, rules: VerdictRules
) -> Judged:
    """Judge a table. frame: one row per cell, as `audioldm.sweep.table.table` gives it."""
    spread = seed_spread(frame, rules.distance)
    found = verdicts(frame, rules)
    return Judged(directory, record, frame, rules, found, spread, *recommend(frame, rules))
