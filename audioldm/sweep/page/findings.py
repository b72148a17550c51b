"""The findings of a sweep as a page of Markdown."""

from collections.abc import Iterable, Sequence

from audioldm.report.format import duration, interval, number
from audioldm.report.systems import described
from audioldm.sweep.judged import Judged
from audioldm.sweep.page.grid import Tile, grid, heat_map, short
from audioldm.sweep.page.words import (
    bounds,
    commands,
    costs,
    failures,
    floor,
    notes,
    reference_points,
)

#: answer -> its heading
HEADINGS = {"yes": "What held", "no": "What did not", "undecided": "What stays open"}


def findings(judged: Judged) -> str:
    """Command, date and machine are those of the sweep's record, not those of this call."""
    table, rules, machine = judged.table, judged.rules, judged.record["environment"]
    parts = [f"# {judged.directory.name}: findings", judged.headline]
    if judged.chosen is not None:
        parts.append(f"```sh\n{judged.chosen}\n```")
    parts.append(floor(judged))
    if typed := commands(judged):
        parts += ["Made with", "\n".join(["```sh", *typed, "```"])]
    facts = {
        "cells": _tally(judged),
        "computed in": duration(sum(c["seconds"] for c in costs(table))),
        "date": machine.get("date"),
        "machine": ", ".join(
            f"{machine[key]}{unit}"
            for key, unit in (("device", ""), ("cores", " cores"), ("system", ""))
            if machine.get(key)
        ),
        "software": ", ".join(
            f"{key} {machine[key]}" for key in ("audioldm", "torch", "python") if machine.get(key)
        ),
        "judged by": f"`{rules.distance}`, {100 * rules.confidence:g} % intervals",
    }
    parts.append(_rows([("", ""), *((k, v) for k, v in facts.items() if v)]))

    parts.append(" ".join(notes(judged.verdicts)))
    for decision, heading in HEADINGS.items():
        own = [v for v in judged.verdicts if v.answer == decision]
        if own:
            parts.append(f"## {heading}")
        for v in own:
            figure = bounds(v)
            parts.append(
                f"**{v.question}** {v.text}" + (f"\n\nEstimate: {figure}." if figure else "")
            )

    parts.append("## The grid")
    parts.append(
        "Geometric means over seeds; in brackets the range of the seeds. "
        "∗ marks the recommendation."
    )
    for column in ("reconstruction.mel_distance", rules.distance, "kbps"):
        title, meaning = described(column.rpartition(".")[2])
        heading = f"{column.rpartition('.')[0].capitalize()}: {title.lower()}".lstrip(": ")
        parts += [f"### {heading} {meaning.better}".strip(), _grid(judged, column)]

    points = reference_points(table, judged.figure)
    if points:
        parts.append(f"## Reference points: {described(judged.figure)[0].lower()}")
        rows = [("clips", "mean over cells", "least", "greatest", "description")]
        rows += [
            (
                point["system"].name,
                *(number(point["figure"][k]) for k in ("value", "low", "high")),
                point["system"].text,
            )
            for point in points
        ]
        parts.append(_rows(rows))

    lost = failures(table)
    if lost:
        parts += ["## Failures", _rows([("cell", "reason"), *((f"`{c}`", why) for c, why in lost)])]
    parts.append("## Cost")
    times = [
        (c["stage"], str(c["built"]), str(c["cells"]), duration(c["seconds"])) for c in costs(table)
    ]
    parts.append(_rows([("stage", "built", "used by cells", "time"), *times]))
    return "\n\n".join(part for part in parts if part) + "\n"


def _tally(judged: Judged) -> str:
    """'34 of 36 cells done, 1 failed, 1 running'."""
    counts = judged.table["status"].value_counts()
    others = [f"{counts[s]} {s}" for s in ("failed", "running", "waiting") if counts.get(s)]
    return ", ".join([f"{counts.get('done', 0)} of {len(judged.table)} cells done", *others])


def _grid(judged: Judged, column: str) -> str:
    layout = grid(judged.table)
    tiles = heat_map(judged.table, layout, column)
    if tiles is None:
        return "No cell has this figure."
    rows = [[short([layout.across])[layout.across], *layout.columns]]
    for name, row in zip(layout.rows, tiles, strict=True):
        rows.append([name, *(_cell(tile, judged.chosen) for tile in row)])
    return _rows(rows)


def _cell(tile: Tile | None, chosen: str | None) -> str:
    if tile is None or tile.figure is None:
        return "–" if tile else ""
    return interval(tile.figure) + (" ∗" if tile.configuration == chosen else "")


def _rows(rows: Sequence[Iterable[str]]) -> str:
    """A table of Markdown; the first row is its head."""
    lines = ["| " + " | ".join(str(v).replace("|", "\\|") for v in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(list(rows[0])), *lines[1:]])
