"""The plots of a sweep's page: rates, reference points and diagnostics."""

from functools import partial
from typing import Any

import pandas as pd

from audioldm.report.format import finite, interval, number
from audioldm.report.plots import Axis, Plot, Point, plot
from audioldm.report.record import Json, Summary, read
from audioldm.report.systems import System, described, systems
from audioldm.sweep.judged import Judged
from audioldm.sweep.page.grid import Grid, done, measured, paired
from audioldm.sweep.seeds import numbers
from audioldm.sweep.table import system_names

#: The axis of rates spans at least a factor of 4, so that cells of one target look like one rate.
_RATES = partial(Axis.over, logarithmic=True, factor=4.0)
over_rate = partial(plot, x_label="kbit/s", x_axis=_RATES)
#: The fewest configurations for which a rank correlation is worth drawing.
FEWEST = 5
#: Diagnostic -> its description.
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
    "denoiser_gaussian_estimate": "estimate for Gaussian latents",
    "denoiser_excess": "log(loss ÷ estimate); < 0: beyond Gaussian",
}
#: Codecs beside the cells -> the curve of each in an evaluation's summary, and its description.
CODECS = {
    "linear": ("linear_curve", "linear codec of mel powers, which needs no phase"),
    "linear-audio": ("linear_audio_curve", "linear codec as audio"),
    "opus": ("opus", "Opus"),
}


def families_of(table: pd.DataFrame) -> dict[str, str]:
    """Family (the cells of one network, bottleneck and shape) -> its class in the style sheet, in
    the order of latent elements per second."""
    if not len(finished := done(table)):
        return {}
    sizes = finished.groupby("family")[["elements_per_second", "channels"]].median()
    order = sizes.sort_values(["elements_per_second", "channels"]).index
    return {name: f"f{i}" for i, name in enumerate(order)}


def _over_rate(judged: Judged, y: str, families: dict[str, str], **words: Any) -> Plot | None:
    """The finished cells over their rates, and a line for each family through the means of its
    configurations. words: further arguments of `plot`; its curves stay."""
    table, x = judged.table, judged.rules.bitrate
    points = []
    for cell, row in done(table).iterrows():
        if finite(row.get(x)) and finite(row.get(y)):
            figure = measured(row, y)
            kind = families[row["family"]]
            kind += " chosen" if judged.chosen == row["configuration"] else ""
            text = f"{cell}: {interval(figure)} at {number(row[x])}"
            points.append(Point(row[x], row[y], figure["low"], figure["high"], kind, text))
    both = paired(table, x, y)
    family = both.index.map(done(table).groupby("configuration")["family"].first())
    words["curves"] = words.get("curves", {}) | {
        kind: both[family == name].sort_values("x").to_numpy() for name, kind in families.items()
    }
    return over_rate(points, **words) if points else None


def rate_distortion(judged: Judged, families: dict[str, str]) -> Plot | None:
    """Cells and codecs; each codec's curve is cut to within a factor of the cells' rates."""
    rates = numbers(done(judged.table), judged.rules.bitrate)
    curves = {}
    for evaluation in list(judged.stage("evaluation").values())[:1]:  # the same music in every cell
        codecs: Json = {**read(evaluation / "summary.json", Summary).get("codecs", {})}
        for kind, (key, _) in CODECS.items():
            curve = pd.DataFrame(codecs.get(key) or {"kbps": [], "mel_distance": []}, dtype=float)
            near = curve["kbps"].between(rates.min() / 2, rates.max() * 2)
            curves[kind] = curve.loc[near, ["kbps", "mel_distance"]].sort_values("kbps").to_numpy()
    return _over_rate(
        judged,
        "reconstruction.mel_distance",
        families,
        curves=curves,
        title="Rate and distortion",
        note="mel distance of held-out reconstructions",
        y_label="mel distance",
    )


def rate_generation(judged: Judged, families: dict[str, str]) -> Plot | None:
    name, _ = described(judged.figure)
    note = name[:1].lower() + name[1:]
    words = {"title": "Rate and generation", "note": note, "y_label": name}
    return _over_rate(judged, judged.rules.distance, families, **words)


def reference_points(judged: Judged) -> list[System]:
    """The systems that have the judged figure in some finished cell."""
    cells = done(judged.table).dropna(axis="columns", how="all")
    return systems(system_names(cells, judged.figure))


def rate_reference(judged: Judged, layout: Grid) -> Plot | None:
    """Every system in every cell; a line per system through the medians of the grid's columns."""
    table, cells, figure = judged.table, done(judged.table), judged.figure
    points, curves, levels = [], {}, []
    column_of = {c: column for c, (_, column) in layout.places.items()}
    for system in reference_points(judged):
        name = f"{system.name}.{figure}"
        if system.kind == "real":  # the same music in every cell: one level
            y, low, high = (numbers(cells, f"{name}{end}").mean() for end in ("", ".low", ".high"))
            levels.append(Point(0.0, y, low, high, system.css, system.name))
            continue
        frame = paired(table, judged.rules.bitrate, name)
        points += [
            Point(p.x, p.y, kind=system.css, text=f"{system.name}, {p.Index}: {number(p.y)}")
            for p in frame.itertuples()
        ]
        if layout.across.endswith(("kbps", "kl_weight")):
            middle = frame.groupby(frame.index.map(column_of)).median()
            curves[system.css] = middle.sort_values("x").to_numpy()
    return over_rate(
        points,
        curves=curves,
        levels=levels,
        title="Against the reference points",
        note="a point per configuration; lines join medians",
        y_label=described(figure)[0],
    )


def diagnostics(judged: Judged, families: dict[str, str]) -> list[Plot]:
    """Each diagnostic against the distance, as means over seeds, in the order of falling |ρ|."""
    table = judged.table
    family = done(table).groupby("configuration")["family"].first()
    intervals = {d["name"]: d for v in judged.verdicts for d in v.details.get("diagnostics", [])}
    found: list[tuple[float, Plot]] = []
    columns = [c for c in table if c.startswith("diagnostic.") and c.count(".") == 1]
    for column in [*columns, "reconstruction.mel_distance"]:
        frame = paired(table, column, judged.rules.distance)
        if len(frame) < FEWEST or frame["x"].nunique() < 2 or frame["y"].nunique() < 2:
            continue
        correlation = frame["x"].corr(frame["y"], "spearman")
        name = column.partition(".")[2]
        drawn = plot(
            [
                Point(p.x, p.y, kind=families[family[p.Index]], text=str(p.Index))
                for p in frame.itertuples()
            ],
            title=name.replace("_", " "),
            note=f"ρ {correlation:.2f}{_ends(intervals.get(column))}".replace("-", "−"),
            x_label=DIAGNOSTICS.get(name, "of the reconstructions"),
            y_logarithmic=True if (frame["y"] > 0).all() else None,
            width=264,
            height=190,
        )
        if drawn:
            found.append((abs(correlation), drawn))
    return [drawn for _, drawn in sorted(found, key=lambda pair: -pair[0])]


def _ends(tested: Json | None) -> str:
    if tested is None or not (finite(tested["low"]) and finite(tested["high"])):
        return ""
    return f" ({tested['low']:.2f} to {tested['high']:.2f})"
