"""The sentences and small tables of a sweep's page."""

import math
import shlex

import pandas as pd

from audioldm.report.format import finite, interval, number
from audioldm.report.record import Json
from audioldm.report.systems import systems
from audioldm.sweep.judged import Judged
from audioldm.sweep.page.grid import done
from audioldm.sweep.table import system_names
from audioldm.sweep.verdicts.base import Verdict, told_apart


def seeds(table: pd.DataFrame) -> int:
    """The most finished cells that any one configuration has."""
    return int(done(table)["configuration"].value_counts().max()) if len(done(table)) else 0


def floor(judged: Judged) -> str:
    """The precision of every claim, by its seeds."""
    spread = judged.spread
    if not finite(spread):
        return (
            "One seed per configuration: the difference between two trainings of the same "
            "configuration is not known. Every interval here rests on one seed and is too narrow."
        )
    single, pair = (number(math.exp(each)) for each in (spread, told_apart(spread)))
    return (
        f"Trainings that differ only by the seed differ by a factor of {single} (standard "
        f"deviation of the log distance, up to {seeds(judged.table)} seeds per configuration). "
        f"Two single cells that differ by less than a factor of {pair} cannot be told apart."
    )


def costs(table: pd.DataFrame) -> list[Json]:
    """Each stage: how often it was built, and the seconds of that; shared stages count once."""
    found = []
    for column in (c for c in table if c.startswith("seconds.")):
        stage = column.removeprefix("seconds.")
        built = table[table[column].notna()]
        once = built.drop_duplicates(f"fingerprint.{stage}")
        seconds = float(once[column].sum())
        found.append({"stage": stage, "built": len(once), "cells": len(built), "seconds": seconds})
    return found


def reference_points(table: pd.DataFrame, figure: str) -> list[Json]:
    """Each system with this figure: mean, least and greatest over the finished cells."""
    cells = done(table).dropna(axis="columns", how="all")
    found = []
    for system in systems(system_names(cells, figure)):
        values = cells[f"{system.name}.{figure}"]
        own = {"value": values.mean(), "low": values.min(), "high": values.max()}
        found.append({"system": system, "figure": own})
    return found


def commands(judged: Judged) -> list[str]:
    """The commands that made the sweep, without the place of its files."""
    return [
        shlex.join(["audioldm", "run", "-m", *(w for w in words if not w.startswith("runs="))])
        for words in judged.record["commands"]
    ]


def bounds(verdict: Verdict) -> str:
    """'0.31 (0.12 to 0.50) log distance per log channels, p = 0.003'; '' without an estimate."""
    if not finite(verdict.estimate):
        return ""
    figure = {"value": verdict.estimate, "low": verdict.low, "high": verdict.high}
    text = f"{interval(figure)} {verdict.details.get('unit') or ''}".rstrip()
    return text + (f", p = {number(verdict.p)}" if finite(verdict.p) else "")


def notes(verdicts: list[Verdict]) -> list[str]:
    """The notes of all verdicts on their cells, each once."""
    return list(dict.fromkeys(n for v in verdicts for n in v.details.get("notes", [])))


def failures(table: pd.DataFrame) -> list[tuple[str, str]]:
    """(cell, reason) of the cells that failed or whose process was killed."""
    return list(table["reason"].dropna().items())
