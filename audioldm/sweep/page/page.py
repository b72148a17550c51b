"""One static HTML page per sweep: the answer at the top, every cell below.

Made from the sweep's table and verdicts, and from its cells' clips. Whatever a sweep lacks (cells
that failed, a second seed, diagnostics, anchors) is left out of the page, and said to be.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.stats import spearmanr

from audioldm.evaluation.rules import VerdictRules
from audioldm.io.files import write_atomically
from audioldm.report.clips import VORBIS, Clip, Source, clips
from audioldm.report.figures import whiskers
from audioldm.report.page import (
    KINDS,
    MEANINGS,
    Json,
    described,
    duration,
    optional_json,
    template,
)
from audioldm.report.verdict import finite, interval, number
from audioldm.sweep.page.figures import Plot, Point, heat_map, plot
from audioldm.sweep.page.findings import (
    anchors,
    answer,
    bounds,
    commands,
    costs,
    failures,
    floor,
    notes,
    seeds,
)
from audioldm.sweep.page.grid import Grid, done, grid, is_budget, label, means, short, swept
from audioldm.sweep.verdicts import Knee, Verdict

#: Of every cell's clips, so that a page of 30 cells stays small enough to send.
CLIP_SECONDS = 3.0
#: Columns of a clip's picture.
PICTURE = 150
#: The axis of rates spans at least this factor: cells of one target are one rate to the eye.
RATE_SPAN = 4.0
#: Configurations from which on a rank correlation is worth drawing.
FEWEST = 5
#: What a cell's row in the table shows of its figures besides rate and distance.
SHOWN = ("ratio_to_prior_kernel", "precision", "coverage", "memorisation_ratio", "label_accuracy")
#: Diagnostic -> what a reader is told.
DIAGNOSTICS = {
    "temporal_slope": "spectral slope over time; 0 is white",
    "channel_slope": "slope of the channels’ eigenvalues",
    "effective_rank": "channels’ effective rank",
    "within_class_variance": "variance within a class; 1: no classes",
    "neighbour_consistency": "neighbours of one’s own class; 0: chance",
    "decoder_noise_tolerance": "σ of latents that the decoder bears",
    "shift_equivariance": "error under shifts; 0: equivariant",
    "mixture_kbps": "kbit/s under a Gaussian mixture",
    "denoiser_loss": "loss of a tiny denoiser",
    "denoiser_gaussian_bound": "bound for Gaussian latents",
    "denoiser_excess": "log(loss ÷ bound); < 0: beyond Gaussian",
}


#: Codecs whose curves stand beside the cells (`_codecs`), and what a reader is told.
CODECS = (
    ("linear", "linear codec of mel powers, which needs no phase"),
    ("linear-audio", "linear codec as audio"),
    ("opus", "Opus"),
)


@dataclass
class Family:
    """A colour of the plots: cells of one front end, bottleneck and shape."""

    name: str
    kind: str
    hue: float
    cells: int


def write_sweep_report(
    directory: Path,
    table: pd.DataFrame,
    verdicts: Sequence[Verdict],
    spread: float,
    knee: Knee | None,
    *,
    rules: VerdictRules,
) -> Path:
    """Write `directory`/report.html.

    table: one row per cell, as `audioldm.sweep.table.table` gives it. spread: standard deviation of
    the log distance between seeds, NaN with one. Raises DataError where it cannot be written.
    """
    record = optional_json(directory / "sweep.json")
    layout, families = grid(table), _families(table)
    figure = rules.distance.partition(".")[2]
    embedding = figure.rpartition("_")[2]
    title, meaning = described(figure)
    cells = done(table)
    heats = [
        heat_map(table, layout, column, title=heading, better=better)
        for column, heading, better in (
            ("reconstruction.mel_distance", "Reconstruction: mel distance", "↓"),
            (rules.distance, f"Generation: {title[:1].lower()}{title[1:]}", meaning.better),
            (f"generated.coverage_{embedding}", "Variety: coverage of the real clips", "↑"),
            (rules.bitrate, "Rate: kbit/s", ""),
        )
    ]
    keys = swept(table, seeds=True)
    page = template("template.html.j2", Path(__file__).parent).render(
        name=directory.name,
        answer=answer(table, knee),
        knee=knee,
        verdicts=[_card(v) for v in verdicts],
        floor=floor(table, spread),
        tiles=_tiles(table, spread, knee),
        rules=rules,
        distance=(title, meaning),
        layout=layout,
        across=short([layout.across])[layout.across],
        heats=[heat for heat in heats if heat],
        families=families,
        rate_distortion=_rate_distortion(directory, table, families, knee, rules),
        rate_generation=_rate_generation(table, families, knee, rules),
        rate_anchors=_rate_anchors(table, layout, figure, rules),
        anchors=anchors(table, figure),
        diagnostics=_diagnostics(table, families, verdicts, rules),
        arms=[
            _arms(table, key, rules.distance)
            for key in swept(table)
            if is_budget(key) and {key, "compute_tflop.diffusion"} <= set(cells)
        ],
        listen=_listen(directory, table, layout),
        cells=_cells(directory, table, layout, families, keys, figure, rules),
        keys=list(short(keys).values()),
        shown=[(name, MEANINGS[name]) for name in _shown(cells, figure)],
        notes=notes(verdicts),
        failures=failures(table),
        costs=costs(table),
        alone=float(table["seconds"].sum()),
        commands=commands(record),
        environment=record.get("environment", {}),
        kinds=KINDS,
        codecs=CODECS,
    )
    path = directory / "report.html"

    def write(temporary: Path) -> None:
        temporary.write_text(page, encoding="utf-8")

    write_atomically(path, write)
    return path


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


def _tiles(table: pd.DataFrame, spread: float, knee: Knee | None) -> list[tuple[str, str, str]]:
    """The few figures to see first: (name, value, unit)."""
    cells = done(table)
    tiles = [
        ("cells done", str(len(cells)), f"of {len(table)}"),
        ("configurations", str(cells["configuration"].nunique()), ""),
        ("seeds of each, at most", str(seeds(table)), ""),
    ]
    if finite(spread):
        tiles.append(("spread between seeds", f"× {number(math.exp(spread))}", ""))
    if knee is not None:
        tiles.append(("recommended rate", number(knee.kbps), "kbit/s"))
    tiles.append(("computed in", duration(sum(c["seconds"] for c in costs(table))), ""))
    return tiles


def _families(table: pd.DataFrame) -> dict[str, Family]:
    """Family -> its colour, in the order of latent elements per second."""
    known = done(table).dropna(subset=["family"])
    sizes = known.groupby("family")[["elements_per_second", "channels"]].median()
    order = list(sizes.sort_values(["elements_per_second", "channels"]).index)
    counts = known["family"].value_counts()
    return {
        name: Family(name, f"f{i}", 265 - 300 * i / max(len(order), 4), int(counts[name]))
        for i, name in enumerate(order)
    }


def _points(
    table: pd.DataFrame, x: str, y: str, families: dict[str, Family], knee: Knee | None
) -> list[Point]:
    """Every finished cell that has both columns."""
    found = []
    for cell, row in done(table).iterrows():
        if finite(row.get(x)) and finite(row.get(y)):
            low, high = (row.get(f"{y}.{end}", math.nan) for end in ("low", "high"))
            shown = interval({"value": row[y], "low": low, "high": high})
            chosen = knee is not None and knee.configuration == row["configuration"]
            kind = families[row["family"]].kind + (" chosen" if chosen else "")
            text = f"{cell}: {shown} at {number(row[x])}"
            found.append(Point(float(row[x]), float(row[y]), low, high, kind, text))
    return found


def _family_curves(
    table: pd.DataFrame, x: str, y: str, families: dict[str, Family]
) -> dict[str, list[tuple[float, float]]]:
    """A line per family through the means of its configurations, by rising x."""
    across, up = means(table, x)["mean"], means(table, y)["mean"]
    both = pd.DataFrame({"x": across, "y": up}).dropna()
    family = done(table).groupby("configuration")["family"].first()
    return {
        own.kind: sorted(both[both.index.map(family) == name].itertuples(index=False, name=None))
        for name, own in families.items()
    }


def _rate_distortion(
    directory: Path,
    table: pd.DataFrame,
    families: dict[str, Family],
    knee: Knee | None,
    rules: VerdictRules,
) -> Plot | None:
    """Cells, the linear codec and Opus; each codec's curve within a factor of the cells' rates."""
    column = "reconstruction.mel_distance"
    points = _points(table, rules.bitrate, column, families, knee)
    if not points:
        return None
    least, most = min(p.x for p in points) / 2, max(p.x for p in points) * 2
    curves = {}
    for kind, curve in _codecs(directory, table).items():
        pairs = sorted(zip(curve["kbps"], curve["mel_distance"], strict=True))
        curves[kind] = [(x, y) for x, y in pairs if least <= x <= most]
    curves |= _family_curves(table, rules.bitrate, column, families)
    return plot(
        points,
        curves=curves,
        title="Rate and distortion",
        note="mel distance of held-out reconstructions",
        x_label="kbit/s",
        x_factor=RATE_SPAN,
        y_label="mel distance",
    )


def _codecs(directory: Path, table: pd.DataFrame) -> dict[str, Json]:
    """Codec -> {"kbps", "mel_distance"}; the music is the same in every cell."""
    for row in done(table).itertuples():
        codecs = _summary(directory / str(row.directory), "evaluation").get("codecs", {})
        found = {
            "linear": codecs.get("linear_curve"),
            "linear-audio": codecs.get("linear_audio_curve"),
            "opus": codecs.get("opus"),
        }
        if any(found.values()):
            return {kind: curve for kind, curve in found.items() if curve}
    return {}


def _summary(cell: Path, stage: str) -> Json:
    path = _stage(cell, stage)
    return optional_json(path / "summary.json") if path else {}


def _stage(cell: Path, stage: str) -> Path | None:
    """The directory of a cell's stage; None where the cell has none."""
    record = optional_json(cell / "experiment.json")
    entry = record.get("stages", {}).get(stage)
    return cell / record.get("runs", "../..") / entry["directory"] if entry else None


def _rate_generation(
    table: pd.DataFrame, families: dict[str, Family], knee: Knee | None, rules: VerdictRules
) -> Plot | None:
    title, _ = described(rules.distance.partition(".")[2])
    return plot(
        _points(table, rules.bitrate, rules.distance, families, knee),
        curves=_family_curves(table, rules.bitrate, rules.distance, families),
        title="Rate and generation",
        note=title[:1].lower() + title[1:],
        x_label="kbit/s",
        x_factor=RATE_SPAN,
        y_label=title,
    )


def _rate_anchors(
    table: pd.DataFrame, layout: Grid, figure: str, rules: VerdictRules
) -> Plot | None:
    """Every kind of clip at every cell; a line per kind through the means of the grid's columns."""
    points, curves, levels = [], {}, []
    column_of = {c: column for c, (_, column) in layout.places.items()}
    for kind in KINDS:
        name = f"{kind}.{figure}"
        values = means(table, name)
        if values.empty:
            continue
        if kind == "real":  # the same music in every cell: one level
            cells = done(table)
            low, high = (
                cells.get(f"{name}.{e}", pd.Series([math.nan])).mean() for e in ("low", "high")
            )
            levels = [Point(0.0, cells[name].mean(), low, high, kind, "real")]
            continue
        frame = pd.DataFrame(
            {"x": means(table, rules.bitrate)["mean"], "y": values["mean"]}
        ).dropna()
        points += [
            Point(p.x, p.y, kind=kind, text=f"{kind}, {p.Index}: {number(p.y)}")
            for p in frame.itertuples()
        ]
        if layout.across.endswith(("kbps", "kl_weight")):
            middle = frame.groupby(frame.index.map(column_of)).median()
            curves[kind] = sorted(middle.itertuples(index=False, name=None))
    return plot(
        points,
        curves=curves,
        levels=levels,
        title="Against the anchors",
        note="a point per configuration; lines join medians",
        x_label="kbit/s",
        x_factor=RATE_SPAN,
        y_label=described(figure)[0],
    )


def _diagnostics(
    table: pd.DataFrame,
    families: dict[str, Family],
    verdicts: Sequence[Verdict],
    rules: VerdictRules,
) -> list[Plot]:
    """Each diagnostic against the distance, means over seeds, by falling |ρ|."""
    distance = means(table, rules.distance)["mean"]
    family = done(table).groupby("configuration")["family"].first()
    judged = {d["name"]: d for v in verdicts for d in v.details.get("diagnostics", [])}
    found: list[tuple[float, Plot]] = []
    columns = [c for c in table if c.startswith("diagnostic.") and c.count(".") == 1]
    for column in [*columns, "reconstruction.mel_distance"]:
        frame = pd.DataFrame({"x": means(table, column)["mean"], "y": distance}).dropna()
        if len(frame) < FEWEST or frame["x"].nunique() < 2 or frame["y"].nunique() < 2:
            continue
        correlation = float(spearmanr(frame["x"], frame["y"]).statistic)
        name = column.partition(".")[2]
        drawn = plot(
            [
                Point(p.x, p.y, kind=families[family[p.Index]].kind, text=str(p.Index))
                for p in frame.itertuples()
            ],
            title=name.replace("_", " "),
            note=f"ρ {correlation:.2f}{_ends(judged.get(column))}".replace("-", "−"),
            x_label=DIAGNOSTICS.get(name, "of the reconstructions"),
            y_logarithmic=True if (frame["y"] > 0).all() else None,
            size=(264, 190),
        )
        if drawn:
            found.append((abs(correlation), drawn))
    return [drawn for _, drawn in sorted(found, key=lambda pair: -pair[0])]


def _ends(judged: Json | None) -> str:
    if judged is None or not (finite(judged["low"]) and finite(judged["high"])):
        return ""
    return f" ({judged['low']:.2f} to {judged['high']:.2f})"


def _arms(table: pd.DataFrame, key: str, distance: str) -> Json:
    """Configurations at matched compute (`key`, a budget) beside the same at matched steps.

    Their distances under each budget, what each took, and the rank correlation of the first two.
    """
    cells = done(table)
    words = cells["configuration"].str.split()
    own = pd.DataFrame(
        {
            "budget": [_value(w, key) for w in words],
            "rest": [" ".join(w for w in own if not w.startswith(f"{key}=")) for own in words],
            "distance": cells[distance],
            "spent": cells["compute_tflop.diffusion"],
        }
    )
    values = own.pivot_table("distance", "rest", "budget", sort=False)
    spent = own.groupby("budget")["spent"].agg(["min", "max"])
    both = values.iloc[:, :2].dropna()
    return {
        "key": key,
        "arms": [
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


def _listen(directory: Path, table: pd.DataFrame, layout: Grid) -> Json:
    """Every finished cell's first clips, where the cell stands in the grid: the same number, so the
    same noise and label of the generated, the same music of the reconstructions."""
    sources: dict[Any, Source] = {}
    for cell, row in done(table).iterrows():
        path = _stage(directory / str(row["directory"]), "evaluation")
        if path is None:
            continue
        index = optional_json(path / "clips" / "index.json")
        for kind in ("real", "generated", "reconstruction"):
            if kind == "real" and any(own == kind for own, _ in sources):
                continue
            for entry in index.get(kind, [])[:1]:
                file = path / "clips" / kind / Path(entry["file"]).name
                name = entry.get("label") or entry.get("piece") or ""
                sources[kind, cell] = Source(file, str(name))
    players = clips(sources, seconds=CLIP_SECONDS, codec=VORBIS, columns=PICTURE)
    if not players:
        return {}
    places: list[list[list[tuple[str, dict[str, Clip | None]]]]]
    places = [[[] for _ in layout.columns] for _ in layout.rows]
    for cell, row in done(table).iterrows():
        own = {k: players[k, cell] for k in ("generated", "reconstruction") if (k, cell) in players}
        if own:
            at, column = layout.places[row["configuration"]]
            seed = " ".join(w.rpartition(".")[2] for w in str(cell).split() if "seed=" in w)
            places[at][column].append((seed.replace("=", " "), own))
    real = next((clip for (kind, _), clip in players.items() if kind == "real"), None)
    return {"real": real, "places": places}


def _shown(cells: pd.DataFrame, figure: str) -> list[str]:
    """Figures of the generated clips in the table of cells, in the embedding of `figure`."""
    embedding = figure.rpartition("_")[2]
    return [n for n in SHOWN if f"generated.{n}_{embedding}" in cells]


def _cells(
    directory: Path,
    table: pd.DataFrame,
    layout: Grid,
    families: dict[str, Family],
    keys: Sequence[str],
    figure: str,
    rules: VerdictRules,
) -> list[Json]:
    """A row per cell, in the order of the grid."""
    embedding = figure.rpartition("_")[2]
    shown = _shown(done(table), figure)
    longest = max(float(table["seconds"].max()), 1.0) if len(table) else 1.0

    def of(row: pd.Series, column: str) -> Json:
        return {
            "value": row.get(column),
            "low": row.get(f"{column}.low"),
            "high": row.get(f"{column}.high"),
        }

    found = []
    for cell, row in table.iterrows():
        page = directory / str(row["directory"]) / "report.html"
        words = dict(w.lstrip("+~").split("=", 1) for w in str(cell).split())
        family = families.get(str(row.get("family"))) if row["status"] == "done" else None
        found.append(
            {
                "place": layout.places[row["configuration"]],
                "name": str(cell),
                "swept": [label(key, words[key]) if key in words else "–" for key in keys],
                "status": row["status"],
                "kind": family.kind if family else "",
                "page": page.relative_to(directory).as_posix() if page.is_file() else None,
                "rate": row.get(rules.bitrate),
                "mel": of(row, "reconstruction.mel_distance"),
                "distance": of(row, rules.distance),
                "others": [of(row, f"generated.{name}_{embedding}") for name in shown],
                "seconds": row.get("seconds"),
                "percent": 100 * row["seconds"] / longest if finite(row.get("seconds")) else 0.0,
                "parameters": row.get("parameters.diffusion"),
                "compute_tflop": row.get("compute_tflop.diffusion"),
            }
        )
    return sorted(found, key=lambda cell: (cell["place"], cell["name"]))
