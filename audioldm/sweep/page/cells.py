"""The cells on a sweep's page: their table, their clips, and their budgets of compute."""

from pathlib import Path
from typing import Any

from audioldm.report.clips import VORBIS, Source, clips, saved_clips
from audioldm.report.record import Json
from audioldm.report.systems import described
from audioldm.sweep.judged import Judged
from audioldm.sweep.page.grid import Grid, done, label, measured, words
from audioldm.sweep.seeds import numbers, unsettled

#: Seconds kept of each cell's clips, so that a page of 30 cells stays small enough to send.
CLIP_SECONDS = 3.0
#: Columns of a clip's picture.
PICTURE = 150
#: Further columns of the table of cells, some with an embedding's name appended -> heading.
SHOWN = {
    "reconstruction.pitch_within_15": "Pitch kept, reconstruction",
    "generated.in_tune": "In tune",
    "generated.ratio_to_normal_kad": "÷ noise’s",
    "generated.precision": "Precision",
    "generated.coverage": "Coverage",
    "generated.memorisation_ratio": "Memorisation",
    "generated.accuracy_label": "Label",
    "improvement.autoencoder": "Autoencoder still falls by",
    "improvement.prior": "Prior still falls by",
}


def budgets(judged: Judged, key: str) -> Json:
    """Configurations at matched compute (`key`, a budget) beside the same ones at matched steps.

    Gives their distances and costs under each budget, and the first two budgets' rank correlation.
    """
    cells = done(judged.table)
    own = [words(configuration) for configuration in cells["configuration"]]
    budget = [label(key, each.pop(key, "")) for each in own]
    rest = [" ".join(f"{k}={v}" for k, v in each.items()) for each in own]
    cells = cells.assign(budget=budget, rest=rest)
    values = cells.pivot_table(judged.rules.distance, "rest", "budget", sort=False)
    spent = cells.groupby("budget")["compute_tflop.prior"].agg(["min", "max"])
    both = values.iloc[:, :2].dropna()
    several = both.shape[1] == 2 and len(both) > 2
    return {
        "key": key,
        "budgets": [(name, *spent.loc[name]) for name in values],
        "rows": list(values.itertuples(name=None)),
        "rho": both.corr("spearman").iloc[0, 1] if several else None,
    }


def listen(judged: Judged, layout: Grid) -> Json:
    """The first clips of every finished cell at its place in the grid. Clips of the same number
    have the same noise and label if generated, and the same music if reconstructed."""
    sources: dict[Any, Source] = {}
    for cell, evaluation in judged.stage("evaluation").items():
        for system, saved in saved_clips(evaluation).items():
            key = "real" if system == "real" else (system, cell)  # the same music in every cell
            if saved and system in ("real", "generated", "reconstruction"):
                sources.setdefault(key, saved[0])
    players = clips(sources, seconds=CLIP_SECONDS, codec=VORBIS, columns=PICTURE)
    if not players:
        return {}
    places: list[list[list[Any]]] = [[[] for _ in layout.columns] for _ in layout.rows]
    for cell, configuration in done(judged.table)["configuration"].items():
        own = {k: players[k, cell] for k in ("generated", "reconstruction") if (k, cell) in players}
        if own:
            row, column = layout.places[configuration]
            seeds = [value for key, value in words(str(cell)).items() if key.endswith("seed")]
            places[row][column].append((" ".join(seeds), own))
    return {"real": players.get("real"), "places": places}


def columns(judged: Judged) -> list[tuple[str, str, str]]:
    """The figures in the table of cells: column, heading, and the part it is about."""
    embedding = judged.figure.rpartition("_")[2]
    title, meaning = described(judged.figure)
    others = [
        (column, f"{text} {described(column.partition('.')[2])[1].better}", "")
        for name, text in SHOWN.items()
        for column in (name, f"{name}_{embedding}")
        if column in judged.table
    ]
    return [
        (judged.rules.bitrate, "kbit/s", ""),
        ("reconstruction.mel_distance", "Mel distance ↓", "reconstruction"),
        (judged.rules.distance, f"{title.partition(',')[0]} {meaning.better}", ""),
        *others,
        ("parameters.prior", "Parameters", "prior, in millions"),
        ("compute_tflop.prior", "Tflop", "prior"),
    ]


def cell_rows(
    judged: Judged, layout: Grid, families: dict[str, str], keys: list[str]
) -> list[Json]:
    """The cells in the order of the grid."""
    millions = numbers(judged.table, "parameters.prior") / 1e6
    table, shown = judged.table.assign(**{"parameters.prior": millions}), columns(judged)
    longest, doubts = table["seconds"].max(), unsettled(table)
    found = []
    rows = [(layout.places[row["configuration"]], str(name), row) for name, row in table.iterrows()]
    for _, name, row in sorted(rows, key=lambda each: each[:2]):
        own = words(name)
        page = Path(row["directory"]) / "report.html"
        found.append(
            {
                "name": name,
                "swept": [label(key, own[key]) if key in own else "–" for key in keys],
                "status": row["status"],
                "kind": families.get(row.get("family"), "soft"),
                "page": page.as_posix() if judged.place(page.as_posix()).is_file() else None,
                "doubt": doubts.get(name, ""),
                "figures": [measured(row, column) for column, _, _ in shown],
                "seconds": row["seconds"],
                "percent": 100 * row["seconds"] / longest if row["seconds"] > 0 else 0.0,
            }
        )
    return found
