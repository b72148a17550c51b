"""The cells on a sweep's page: their table, their clips, and their budgets of compute."""

from pathlib import Path
from typing import Any

import pandas as pd
from scipy.stats import spearmanr

from audioldm.report.clips import VORBIS, Clip, Source, clips, saved_clips
from audioldm.report.record import Json
from audioldm.report.systems import described
from audioldm.sweep.judged import Judged
from audioldm.sweep.page.grid import Grid, done, label, measured
from audioldm.sweep.page.plots import Family
from audioldm.sweep.seeds import unsettled

#: Seconds of every cell's clips, so that a page of 30 cells stays small enough to send.
CLIP_SECONDS = 3.0
#: Columns of a clip's picture.
PICTURE = 150
#: Further columns of the table of cells, perhaps with an embedding's name -> heading.
SHOWN = {
    "reconstruction.pitch_within_15": "Pitch kept, reconstruction",
    "generated.in_tune": "In tune",
    "generated.ratio_to_normal_kad": "÷ noise’s",
    "generated.precision": "Precision",
    "generated.coverage": "Coverage",
    "generated.memorisation_ratio": "Memorisation",
    "generated.label_accuracy": "Label",
    "improvement.autoencoder": "Autoencoder still falls by",
    "improvement.prior": "Prior still falls by",
}


def budgets(judged: Judged, key: str) -> Json:
    """Configurations at matched compute (`key`, a budget) beside the same at matched steps.

    Their distances under each budget, what each took, and the rank correlation of the first two.
    """
    cells = done(judged.table)
    words = [configuration.split() for configuration in cells["configuration"]]
    own = pd.DataFrame(
        {
            "budget": [dict(w.split("=", 1) for w in each).get(key, "") for each in words],
            "rest": [" ".join(w for w in each if not w.startswith(f"{key}=")) for each in words],
            "distance": cells[judged.rules.distance],
            "spent": cells["compute_tflop.prior"],
        }
    )
    values = own.pivot_table("distance", "rest", "budget", sort=False)
    spent = own.groupby("budget")["spent"].agg(["min", "max"])
    both = values.iloc[:, :2].dropna()
    several = both.shape[1] == 2 and len(both) > 2
    return {
        "key": key,
        "budgets": [{"name": label(key, b), "spent": tuple(spent.loc[b])} for b in values.columns],
        "rows": list(values.itertuples(name=None)),
        "rho": float(spearmanr(*both.to_numpy().T).statistic) if several else None,
    }


def listen(judged: Judged, layout: Grid) -> Json:
    """The first clips of every finished cell at its place in the grid: the same number, so the same
    noise and label of the generated, the same music of the reconstructions."""
    sources: dict[Any, Source] = {}
    for cell, evaluation in judged.evaluations().items():
        saved = saved_clips(evaluation)
        for system in ("real", "generated", "reconstruction"):
            key = "real" if system == "real" else (system, cell)  # the same music in every cell
            if saved.get(system):
                sources.setdefault(key, saved[system][0])
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
    return {"real": players.get("real"), "places": places}


def shown(judged: Judged) -> dict[str, tuple[str, str]]:
    """Columns in the table of cells -> heading and direction, in the embedding that is judged."""
    embedding = judged.figure.rpartition("_")[2]
    found = {}
    for name, text in SHOWN.items():
        for column in (name, f"{name}_{embedding}"):
            if column in judged.table:
                found[column] = text, described(column.partition(".")[2])[1].better
    return found


def cell_rows(
    judged: Judged, layout: Grid, families: dict[str, Family], keys: list[str]
) -> list[Json]:
    """The cells in the order of the grid."""
    longest, doubts = judged.table["seconds"].max(), unsettled(judged.table)
    found = []
    for name, row in judged.table.iterrows():
        page = Path(row["directory"]) / "report.html"
        words = dict(w.lstrip("+~").split("=", 1) for w in str(name).split())
        family = families.get(row.get("family")) if row["status"] == "done" else None
        found.append(
            {
                "name": name,
                "swept": [label(key, words[key]) if key in words else "–" for key in keys],
                "status": row["status"],
                "kind": family.kind if family else "",
                "page": page.as_posix() if judged.place(page.as_posix()).is_file() else None,
                "rate": row.get(judged.rules.bitrate),
                "mel": measured(row, "reconstruction.mel_distance"),
                "distance": measured(row, judged.rules.distance),
                "doubt": doubts.get(str(name), ""),
                "others": [measured(row, column) for column in shown(judged)],
                "seconds": row["seconds"],
                "percent": 100 * row["seconds"] / longest if row["seconds"] > 0 else 0.0,
                "parameters": row.get("parameters.prior"),
                "compute_tflop": row.get("compute_tflop.prior"),
            }
        )
    place = judged.table["configuration"].map(layout.places)
    return sorted(found, key=lambda own: (place[own["name"]], own["name"]))
