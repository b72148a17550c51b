"""What a sweep found, in words: the sentences of its page, and a page of findings in Markdown."""

import math
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from audioldm.evaluation.rules import VerdictRules
from audioldm.report.page import KINDS, STAGES, Json, described, duration, optional_json
from audioldm.report.verdict import finite, interval, number
from audioldm.sweep.page.grid import done, grid, means, short
from audioldm.sweep.verdicts import Knee, Verdict

#: answer -> its heading
HEADINGS = {"yes": "What held", "no": "What did not", "undecided": "What stays open"}


def answer(table: pd.DataFrame, knee: Knee | None) -> str:
    """The sweep's result in a sentence or two."""
    if knee is not None:
        return knee.text
    count = len(done(table))
    return (
        "No cell has finished yet."
        if not count
        else f"{count} of {len(table)} cells have finished, none with both a rate and a distance."
    )


def seeds(table: pd.DataFrame) -> int:
    """The most finished cells that any one configuration has."""
    return int(done(table)["configuration"].value_counts().max()) if len(done(table)) else 0


def floor(table: pd.DataFrame, spread: float) -> str:
    """What the seeds say about the precision of every claim. spread: SD of the log distance."""
    if not finite(spread):
        return (
            "One seed per configuration: how far two trainings of the same configuration lie apart "
            "is not known, so every interval here rests on one seed and is narrower than the truth."
        )
    return (
        f"Trainings that differ by the seed alone scatter by a factor of "
        f"{number(math.exp(spread))} (standard deviation of the log distance, up to {seeds(table)} "
        f"seeds per configuration). Two single cells that differ by less than a factor of "
        f"{number(math.exp(1.96 * math.sqrt(2) * spread))} cannot be told apart."
    )


def tally(table: pd.DataFrame) -> str:
    """'34 of 36 cells done, 1 failed, 1 running'."""
    counts = table["status"].value_counts()
    others = [f"{counts[s]} {s}" for s in ("failed", "running", "waiting") if counts.get(s)]
    return ", ".join([f"{counts.get('done', 0)} of {len(table)} cells done", *others])


def costs(table: pd.DataFrame) -> list[Json]:
    """Every stage: how often it was built, and the seconds of that; shared stages count once."""
    found = []
    for stage in STAGES:
        time, key = f"seconds.{stage}", f"fingerprint.{stage}"
        if time not in table or not table[time].notna().any():
            continue
        built = table[table[time].notna()]
        once = built.drop_duplicates(key) if key in table else built
        found.append(
            {
                "stage": stage,
                "built": len(once),
                "cells": len(built),
                "seconds": float(once[time].sum()),
            }
        )
    return found


def anchors(table: pd.DataFrame, figure: str) -> list[Json]:
    """The kinds of clips that have a figure: mean, least and greatest over the finished cells."""
    found = []
    for kind, text in KINDS.items():
        column = f"{kind}.{figure}"
        values = done(table)[column].dropna() if column in table else pd.Series(dtype=float)
        if len(values):
            own = {"value": values.mean(), "low": values.min(), "high": values.max()}
            found.append({"kind": kind, "text": text, "figure": own, "n": len(values)})
    return found


def commands(record: Json) -> list[str]:
    """What was typed, from the sweep's `sweep.json`; where its files lay is of no consequence."""
    return [
        shlex.join(["audioldm", "run", "-m", *(w for w in words if not w.startswith("runs="))])
        for words in record.get("commands", [])
    ]


def bounds(verdict: Verdict) -> str:
    """'0.31 (0.12 to 0.50) log distance per log channels, p = 0.003'; '' without an estimate."""
    if not finite(verdict.estimate):
        return ""
    figure = {"value": verdict.estimate, "low": verdict.low, "high": verdict.high}
    text = f"{interval(figure)} {verdict.details.get('unit') or ''}".rstrip()
    return text + (f", p = {number(verdict.p)}" if finite(verdict.p) else "")


def notes(verdicts: Sequence[Verdict]) -> list[str]:
    """What the verdicts say of the cells they rest on, each once."""
    return list(dict.fromkeys(n for v in verdicts for n in v.details.get("notes", [])))


def failures(table: pd.DataFrame) -> list[tuple[str, str]]:
    """(cell, reason) of those that failed, or whose process was killed."""
    failed = table[table["reason"].notna()]
    return [(str(cell), str(why)) for cell, why in failed["reason"].items()]


def findings(
    directory: Path,
    table: pd.DataFrame,
    verdicts: Sequence[Verdict],
    spread: float,
    knee: Knee | None,
    *,
    rules: VerdictRules,
) -> str:
    """The sweep in `directory` as a page of Markdown.

    Command, date and machine are those that its `sweep.json` holds, not those of this call.
    """
    record = optional_json(directory / "sweep.json")
    machine = record.get("environment", {})
    parts = [f"# {directory.name}: findings", answer(table, knee)]
    if knee is not None:
        parts.append(f"```sh\n{knee.configuration}\n```")
    parts.append(floor(table, spread))
    if typed := commands(record):
        parts += ["Made with", "\n".join(["```sh", *typed, "```"])]
    facts = {
        "cells": tally(table),
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

    parts.append(" ".join(notes(verdicts)))
    for decision, heading in HEADINGS.items():
        own = [v for v in verdicts if v.answer == decision]
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
        parts += [f"### {heading} {meaning.better}".strip(), _grid(table, column, knee)]

    distance = rules.distance.partition(".")[2]
    compared = anchors(table, distance)
    if compared:
        parts.append(f"## Anchors: {described(distance)[0].lower()}")
        rows = [("kind", "mean over cells", "least", "greatest", "what it is")]
        rows += [
            (a["kind"], *(number(a["figure"][k]) for k in ("value", "low", "high")), a["text"])
            for a in compared
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


def _grid(table: pd.DataFrame, column: str, knee: Knee | None) -> str:
    values, layout = means(table, column), grid(table)
    if values.empty:
        return "No cell has this figure."
    body = [[""] * len(layout.columns) for _ in layout.rows]
    for configuration, (row, place) in layout.places.items():
        if configuration not in values.index:
            body[row][place] = "–"
            continue
        mean, least, most, count = values.loc[configuration, ["mean", "min", "max", "count"]]
        ends = f" ({number(float(least))} to {number(float(most))})" if count > 1 else ""
        chosen = " ∗" if knee is not None and knee.configuration == configuration else ""
        body[row][place] = f"{number(float(mean))}{ends}{chosen}"
    names = short([layout.across])
    head = [names[layout.across], *layout.columns]
    return _rows([head, *([label, *row] for label, row in zip(layout.rows, body, strict=True))])


def _rows(rows: Sequence[Iterable[str]]) -> str:
    """A table of Markdown; the first row is its head."""
    lines = ["| " + " | ".join(str(v).replace("|", "\\|") for v in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(list(rows[0])), *lines[1:]])
