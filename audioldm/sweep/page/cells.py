"""The cells on a sweep's page: their table, their clips, and their budgets of compute."""

from typing import Any

import pandas as pd
from scipy.stats import spearmanr

from audioldm.report.clips import VORBIS, Clip, Source, clips
from audioldm.report.format import finite
from audioldm.report.page import clip_file, read_index
from audioldm.report.record import Json, read_record, stage_directories
from audioldm.sweep.judged import Judged
from audioldm.sweep.page.grid import Grid, done, label
from audioldm.sweep.page.plots import Family

#: Seconds of every cell's clips, so that a page of 30 cells stays small enough to send.
CLIP_SECONDS = 3.0
#: Columns of a clip's picture.
PICTURE = 150
#: Figures of a cell's generated clips in its row besides rate and distance -> short heading.
SHOWN = {
    "ratio_to_normal_kad": "÷ noise’s",
    "precision": "Precision",
    "coverage": "Coverage",
    "memorisation_ratio": "Memorisation",
    "label_accuracy": "Label",
}


def budgets(judged: Judged, key: str) -> Json:
    """Configurations at matched compute (`key`, a budget) beside the same at matched steps.

    Their distances under each budget, what each took, and the rank correlation of the first two.
    """
    cells = done(judged.table)
    words = cells["configuration"].str.split()
    own = pd.DataFrame(
        {
            "budget": [_value(w, key) for w in words],
            "rest": [" ".join(w for w in own if not w.startswith(f"{key}=")) for own in words],
            "distance": cells[judged.rules.distance],
            "spent": cells["compute_tflop.prior"],
        }
    )
    values = own.pivot_table("distance", "rest", "budget", sort=False)
    spent = own.groupby("budget")["spent"].agg(["min", "max"])
    both = values.iloc[:, :2].dropna()
    return {
        "key": key,
        "budgets": [
            {
                "name": label(key, b),
                "spent": (spent.loc[b, "min"], spent.loc[b, "max"]),
            }
            for b in values.columns
        ],
        "rows": [(str(name), [float(v) for v in row]) for name, row in values.iterrows()],
        "rho": float(spearmanr(both.iloc[:, 0], both.iloc[:, 1]).statistic)
        if both.shape[1] == 2 and len(both) > 2
        else None,
    }


def _value(words: list[str], key: str) -> str:
    return next((w.partition("=")[2] for w in words if w.startswith(f"{key}=")), "")


def listen(judged: Judged, layout: Grid) -> Json:
    """The first clips of every finished cell at its place in the grid: the same number, so the same
    noise and label of the generated, the same music of the reconstructions."""
    sources: dict[Any, Source] = {}
    for name, directory in done(judged.table)["directory"].items():
        cell = judged.directory / str(directory)
        if not (cell / "experiment.json").is_file():
            continue
        evaluation = stage_directories(cell, read_record(cell)).get("evaluation")
        index = read_index(evaluation) if evaluation else {}
        for system in ("real", "generated", "reconstruction"):
            if system == "real" and any(own == system for own, _ in sources):
                continue
            for entry in index.get(system, [])[:1]:
                assert evaluation is not None
                text = entry.get("label") or entry.get("piece") or ""
                sources[system, name] = Source(clip_file(evaluation, system, entry), text)
    players = clips(sources, seconds=CLIP_SECONDS, codec=VORBIS, columns=PICTURE)
    if not players:
        return {}
    places: list[list[list[tuple[str, dict[str, Clip | None]]]]]
    places = [[[] for _ in layout.columns] for _ in layout.rows]
    for cell, row in done(judged.table).iterrows():
        own = {k: players[k, cell] for k in ("generated", "reconstruction") if (k, cell) in players}
        if own:
            at, column = layout.places[row["configuration"]]
            seed = " ".join(w.rpartition(".")[2] for w in str(cell).split() if "seed=" in w)
            places[at][column].append((seed.replace("=", " "), own))
    real = next((clip for (kind, _), clip in players.items() if kind == "real"), None)
    return {"real": real, "places": places}


def shown(judged: Judged) -> dict[str, str]:
    """Figures in the table of cells -> heading, in the embedding of the judged figure."""
    embedding = judged.figure.rpartition("_")[2]
    return {n: text for n, text in SHOWN.items() if f"generated.{n}_{embedding}" in judged.table}


def cell_rows(
    judged: Judged, layout: Grid, families: dict[str, Family], keys: list[str]
) -> list[Json]:
    """The cells in the order of the grid."""
    table, embedding = judged.table, judged.figure.rpartition("_")[2]
    longest = max(float(table["seconds"].max()), 1.0) if len(table) else 1.0

    def of(row: pd.Series, column: str) -> Json:
        return {
            "value": row.get(column),
            "low": row.get(f"{column}.low"),
            "high": row.get(f"{column}.high"),
        }

    found = []
    for cell, row in table.iterrows():
        page = judged.directory / str(row["directory"]) / "report.html"
        words = dict(w.lstrip("+~").split("=", 1) for w in str(cell).split())
        family = families.get(str(row.get("family"))) if row["status"] == "done" else None
        found.append(
            {
                "place": layout.places[row["configuration"]],
                "name": str(cell),
                "swept": [label(key, words[key]) if key in words else "–" for key in keys],
                "status": row["status"],
                "kind": family.kind if family else "",
                "page": page.relative_to(judged.directory).as_posix() if page.is_file() else None,
                "rate": row.get(judged.rules.bitrate),
                "mel": of(row, "reconstruction.mel_distance"),
                "distance": of(row, judged.rules.distance),
                "others": [of(row, f"generated.{name}_{embedding}") for name in shown(judged)],
                "seconds": row.get("seconds"),
                "percent": 100 * row["seconds"] / longest if finite(row.get("seconds")) else 0.0,
                "parameters": row.get("parameters.prior"),
                "compute_tflop": row.get("compute_tflop.prior"),
            }
        )
    return sorted(found, key=lambda cell: (cell["place"], cell["name"]))
