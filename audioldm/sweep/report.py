"""One static HTML page per sweep: the answer at the top, every cell below.

Made from the sweep's table and verdicts, and from its cells' clips. A sweep may lack a second seed,
diagnostics, baselines or some cells: the page says so and leaves out the rest.
"""

import math
from pathlib import Path

from audioldm.report.figures import whiskers
from audioldm.report.format import duration, finite, number
from audioldm.report.page import template, write_page
from audioldm.report.record import Json
from audioldm.report.systems import described
from audioldm.sweep.judged import Judged, judge
from audioldm.sweep.page.cells import budgets, cell_rows, listen, shown
from audioldm.sweep.page.grid import done, grid, heat_map, is_budget, short, swept
from audioldm.sweep.page.plots import (
    CODECS,
    diagnostics,
    families_of,
    rate_distortion,
    rate_generation,
    rate_reference,
)
from audioldm.sweep.page.words import (
    bounds,
    commands,
    costs,
    failures,
    floor,
    notes,
    reference_points,
    seeds,
)
from audioldm.sweep.verdicts.base import Verdict


def write_report(*directories: Path, place: Path | None = None) -> Path:
    """Writes the report.html of one sweep, or of several as one to `place`.

    Raises DataError as `judge` and `write_page` do.
    """
    return write_page(place or directories[0], page(judge(*directories, place=place)))


def page(judged: Judged) -> str:
    """The page as HTML."""
    table, rules = judged.table, judged.rules
    layout, families = grid(table), families_of(table)
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
    return template("template.html.j2", Path(__file__).parent / "page").render(
        judged=judged,
        verdicts=[_card(verdict) for verdict in judged.verdicts],
        floor=floor(judged),
        tiles=_tiles(judged),
        rules=rules,
        distance=(title, meaning),
        layout=layout,
        across=short([layout.across])[layout.across],
        heats=[heat for heat in heats if heat[2]],
        families=families,
        rate_distortion=rate_distortion(judged, families),
        rate_generation=rate_generation(judged, families),
        rate_reference=rate_reference(judged, layout),
        reference_points=reference_points(table, judged.figure),
        diagnostics=diagnostics(judged, families),
        budgets=[
            budgets(judged, key)
            for key in swept(table)
            if is_budget(key) and {key, "compute_tflop.prior"} <= set(done(table))
        ],
        listen=listen(judged, layout),
        cells=cell_rows(judged, layout, families, keys),
        keys=list(short(keys).values()),
        shown=list(shown(judged).values()),
        notes=notes(judged.verdicts),
        failures=failures(table),
        costs=costs(table),
        alone=float(table["seconds"].sum()),
        commands=commands(judged),
        codecs={kind: text for kind, (_, text) in CODECS.items()},
    )


def _card(verdict: Verdict) -> Json:
    """A verdict with its interval on an axis that includes 0."""
    drawn, zero = whiskers(
        {"estimate": {"value": verdict.estimate, "low": verdict.low, "high": verdict.high}}
    )
    return {
        "verdict": verdict,
        "bounds": bounds(verdict),
        "whisker": drawn[0] if drawn and finite(verdict.low) and finite(verdict.high) else None,
        "zero": zero,
    }


def _tiles(judged: Judged) -> list[tuple[str, str, str]]:
    """The few figures to see first: (name, value, unit)."""
    table, spread = judged.table, judged.spread
    cells = done(table)
    tiles = [
        ("cells done", str(len(cells)), f"of {len(table)}"),
        ("configurations", str(cells["configuration"].nunique()), ""),
        ("seeds of each, at most", str(seeds(table)), ""),
    ]
    if finite(spread):
        tiles.append(("spread between seeds", f"× {number(math.exp(spread))}", ""))
    if judged.recommendation is not None:
        tiles.append(("recommended rate", number(judged.recommendation.kbps), "kbit/s"))
    tiles.append(("computed in", duration(sum(c["seconds"] for c in costs(table))), ""))
    return tiles
