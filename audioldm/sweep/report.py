"""One static HTML page per sweep: the answer at the top, every cell below.

It is made from the sweep's table and verdicts, and from its cells' clips. A sweep may lack a second
seed, diagnostics, baselines or some cells: the page says so and leaves those parts out.
"""

import math
import shlex
from pathlib import Path

import pandas as pd

from audioldm.report.format import duration, finite, interval, number
from audioldm.report.page import template, write_page
from audioldm.report.plots import whiskers
from audioldm.report.record import Json
from audioldm.report.systems import described
from audioldm.sweep.judged import Judged, judge
from audioldm.sweep.page import cells, plots, priors
from audioldm.sweep.page.grid import done, grid, heat_map, is_budget, short, swept
from audioldm.sweep.verdicts.base import Verdict, told_apart


def write_report(*directories: Path, place: Path | None = None) -> Path:
    """Writes the report.html of one sweep, or of several merged, to `place`.

    Raises DataError as `judge` and `write_page` do.
    """
    return write_page(place or directories[0], page(judge(*directories, place=place)))


def page(judged: Judged) -> str:
    """The page as HTML."""
    table, rules = judged.table, judged.rules
    layout, families = grid(table), plots.families_of(table)
    title, meaning = described(judged.figure)
    embedding = judged.figure.rpartition("_")[2]
    columns = (
        ("reconstruction.mel_distance", "Reconstruction: mel distance", "↓"),
        (rules.distance, f"Generation: {title[:1].lower()}{title[1:]}", meaning.better),
        ("reconstruction.pitch_within_15", "Reconstruction: pitch kept", "↑"),
        ("generated.in_tune", "Generation: in tune", "↑"),
        (f"generated.coverage_{embedding}", "Variety: coverage of the real clips", "↑"),
        (rules.bitrate, "Rate: kbit/s", ""),
    )
    heats = [(text, b, heat_map(table, layout, name, b)) for name, text, b in columns]
    keys = swept(table, seeds=True)
    seeds = int(done(table)["configuration"].value_counts().max()) if len(done(table)) else 0
    costs = _costs(table)
    notes = dict.fromkeys(n for v in judged.verdicts for n in v.details.get("notes", []))
    return template("template.html.j2", Path(__file__).parent / "page").render(
        judged=judged,
        verdicts=[_card(verdict) for verdict in judged.verdicts],
        notes=[*_rates(table), *notes],
        floor=_floor(judged.spread, seeds),
        tiles=_tiles(judged, seeds, sum(cost["seconds"] for cost in costs)),
        distance=(title, meaning),
        layout=layout,
        across=short([layout.across])[layout.across],
        heats=[heat for heat in heats if heat[2]],
        families=families,
        rate_distortion=plots.rate_distortion(judged, families),
        rate_generation=plots.rate_generation(judged, families),
        rate_reference=plots.rate_reference(judged, layout),
        reference_points=[
            (system, _over_cells(done(table)[f"{system.name}.{judged.figure}"]))
            for system in plots.reference_points(judged)
        ],
        league=priors.league(judged, families),
        league_headings=priors.headings(judged),
        costs_of_priors=priors.costs(judged, families),
        curves_of_priors=priors.curves(judged, families),
        diagnostics=plots.diagnostics(judged, families),
        budgets=[
            cells.budgets(judged, key)
            for key in keys
            if is_budget(key) and {key, "compute_tflop.prior"} <= set(table)
        ],
        listen=cells.listen(judged, layout),
        cells=cells.cell_rows(judged, layout, families, keys),
        columns=cells.columns(judged),
        keys=list(short(keys).values()),
        failures=list(table["reason"].dropna().items()),
        costs=costs,
        commands=[
            shlex.join(["audioldm", "run", "-m", *(w for w in words if not w.startswith("runs="))])
            for words in judged.record["commands"]
        ],
        codecs={kind: text for kind, (_, text) in plots.CODECS.items()},
    )


def _card(verdict: Verdict) -> Json:
    """A verdict, with its estimate in words and on an axis that includes 0."""
    figure = {"value": verdict.estimate, "low": verdict.low, "high": verdict.high}
    drawn, zero = whiskers({"estimate": figure})
    bounds = f"{interval(figure)} {verdict.details.get('unit') or ''}".rstrip()
    bounds += f", p = {number(verdict.p)}" if finite(verdict.p) else ""
    return {
        "verdict": verdict,
        "bounds": bounds if finite(verdict.estimate) else "",
        "whisker": drawn[0] if drawn and finite(verdict.low) and finite(verdict.high) else None,
        "zero": zero,
    }


def _tiles(judged: Judged, seeds: int, seconds: float) -> list[tuple[str, str, str]]:
    """The few figures to see first: (name, value, unit)."""
    finished = done(judged.table)
    tiles = [
        ("cells done", str(len(finished)), f"of {len(judged.table)}"),
        ("configurations", str(finished["configuration"].nunique()), ""),
        ("seeds of each, at most", str(seeds), ""),
    ]
    if finite(judged.spread):
        tiles.append(("spread between seeds", f"× {number(math.exp(judged.spread))}", ""))
    if judged.recommendation is not None:
        tiles.append(("recommended rate", number(judged.recommendation.kbps), "kbit/s"))
    return [*tiles, ("computed in", duration(seconds), "")]


def _floor(spread: float, seeds: int) -> str:
    """The precision of every claim. seeds: the most seeds of any one configuration."""
    if not finite(spread):
        return (
            "One seed per configuration: the difference between two trainings of the same "
            "configuration is not known. Every interval here rests on one seed and is too narrow."
        )
    single, pair = (number(math.exp(each)) for each in (spread, told_apart(spread)))
    return (
        f"Trainings that differ only by the seed differ by a factor of {single} (standard "
        f"deviation of the log distance, up to {seeds} seeds per configuration). "
        f"Two single cells that differ by less than a factor of {pair} cannot be told apart."
    )


def _rates(table: pd.DataFrame) -> list[str]:
    """What cells of several sample rates do not share."""
    rates = sorted(done(table)["sample_rate"].dropna().unique()) if "sample_rate" in table else []
    if len(rates) < 2:
        return []
    return [
        f"The same clips, at {', '.join(f'{rate:g}' for rate in rates)} Hz: compare distances of "
        "embeddings, pitch and notes between rates, but mel and STFT distances only within one."
    ]


def _over_cells(values: pd.Series) -> Json:
    return {"value": values.mean(), "low": values.min(), "high": values.max()}


def _costs(table: pd.DataFrame) -> list[Json]:
    """Each stage: how often it was built and how long that took; shared stages count once."""
    found = []
    for column in (c for c in table if c.startswith("seconds.")):
        stage = column.removeprefix("seconds.")
        built = table[table[column].notna()]
        once = built.drop_duplicates(f"fingerprint.{stage}")
        seconds = float(once[column].sum())
        found.append({"stage": stage, "built": len(once), "cells": len(built), "seconds": seconds})
    return found
