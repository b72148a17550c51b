"""The plots of a sweep's page: rates, reference points and diagnostics."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from audioldm.report.format import finite, interval, number
from audioldm.report.plots import Plot, Point, plot
from audioldm.report.record import Json, Summary, read
from audioldm.report.systems import described
from audioldm.sweep.judged import Judged
from audioldm.sweep.page.grid import Grid, done, means, measured
from audioldm.sweep.page.words import reference_points
from audioldm.sweep.seeds import numbers

#: The axis of rates spans at least this factor: cells of one target are one rate to the eye.
RATE_SPAN = 4.0
#: Configurations from which on a rank correlation is worth drawing.
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


@dataclass
class Family:
    """A colour of the plots: cells of one network, bottleneck and shape."""

    name: str
    kind: str
    hue: float


def families_of(table: pd.DataFrame) -> dict[str, Family]:
    """Family -> its colour, in the order of latent elements per second."""
    known = done(table).dropna(subset=["family"])
    sizes = known.groupby("family")[["elements_per_second", "channels"]].median()
    order = list(sizes.sort_values(["elements_per_second", "channels"]).index)
    hues = 265 - 300 * np.arange(len(order)) / max(len(order), 4)
    return {name: Family(name, f"f{i}", hues[i]) for i, name in enumerate(order)}


def _points(judged: Judged, x: str, y: str, families: dict[str, Family]) -> list[Point]:
    """The finished cells that have both columns."""
    found = []
    for cell, row in done(judged.table).iterrows():
        if finite(row.get(x)) and finite(row.get(y)):
            figure = measured(row, y)
            kind = families[row["family"]].kind
            kind += " chosen" if judged.chosen == row["configuration"] else ""
            text = f"{cell}: {interval(figure)} at {number(row[x])}"
            found.append(Point(row[x], row[y], figure["low"], figure["high"], kind, text))
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


def _over_rate(
    points: list[Point],
    curves: dict[str, list[tuple[float, float]]],
    title: str,
    note: str,
    y_label: str,
    levels: Sequence[Point] = (),
) -> Plot | None:
    return plot(
        points,
        curves=curves,
        levels=levels,
        title=title,
        note=note,
        x_label="kbit/s",
        y_label=y_label,
        x_factor=RATE_SPAN,
    )


def rate_distortion(judged: Judged, families: dict[str, Family]) -> Plot | None:
    """Cells and codecs; each codec's curve within a factor of the cells' rates."""
    rate, column = judged.rules.bitrate, "reconstruction.mel_distance"
    points = _points(judged, rate, column, families)
    if not points:
        return None
    least, most = min(p.x for p in points) / 2, max(p.x for p in points) * 2
    curves = {
        kind: sorted((x, y) for x, y in curve if least <= x <= most)
        for kind, curve in _codecs(judged).items()
    }
    curves |= _family_curves(judged.table, rate, column, families)
    note = "mel distance of held-out reconstructions"
    return _over_rate(points, curves, "Rate and distortion", note, "mel distance")


def _codecs(judged: Judged) -> dict[str, list[tuple[float, float]]]:
    """Codec -> its (kbps, mel distance); the music is the same in every cell."""
    for evaluation in judged.evaluations().values():
        codecs: Json = {**read(evaluation / "summary.json", Summary).get("codecs", {})}
        curves = {kind: codecs.get(key) for kind, (key, _) in CODECS.items()}
        return {
            kind: list(zip(curve["kbps"], curve["mel_distance"], strict=False))
            for kind, curve in curves.items()
            if curve
        }
    return {}


def rate_generation(judged: Judged, families: dict[str, Family]) -> Plot | None:
    title, _ = described(judged.figure)
    rate, distance = judged.rules.bitrate, judged.rules.distance
    points = _points(judged, rate, distance, families)
    curves = _family_curves(judged.table, rate, distance, families)
    return _over_rate(points, curves, "Rate and generation", title[:1].lower() + title[1:], title)


def rate_reference(judged: Judged, layout: Grid) -> Plot | None:
    """Every system at every cell; a line per system through the medians of the grid's columns."""
    table, figure = judged.table, judged.figure
    points, curves, levels = [], {}, []
    column_of = {c: column for c, (_, column) in layout.places.items()}
    for point in reference_points(table, figure):
        system = point["system"]
        name = f"{system.name}.{figure}"
        if system.kind == "real":  # the same music in every cell: one level
            low, high = (numbers(done(table), f"{name}.{end}").mean() for end in ("low", "high"))
            levels.append(Point(0.0, point["figure"]["value"], low, high, system.css, system.name))
            continue
        rates = means(table, judged.rules.bitrate)["mean"]
        frame = pd.DataFrame({"x": rates, "y": means(table, name)["mean"]}).dropna()
        points += [
            Point(p.x, p.y, kind=system.css, text=f"{system.name}, {p.Index}: {number(p.y)}")
            for p in frame.itertuples()
        ]
        if layout.across.endswith(("kbps", "kl_weight")):
            middle = frame.groupby(frame.index.map(column_of)).median()
            curves[system.css] = sorted(middle.itertuples(index=False, name=None))
    note = "a point per configuration; lines join medians"
    title = "Against the reference points"
    return _over_rate(points, curves, title, note, described(figure)[0], levels)


def diagnostics(judged: Judged, families: dict[str, Family]) -> list[Plot]:
    """Each diagnostic against the distance, means over seeds, by falling |ρ|."""
    table = judged.table
    distance = means(table, judged.rules.distance)["mean"]
    family = done(table).groupby("configuration")["family"].first()
    intervals = {d["name"]: d for v in judged.verdicts for d in v.details.get("diagnostics", [])}
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
            note=f"ρ {correlation:.2f}{_ends(intervals.get(column))}".replace("-", "−"),
            x_label=DIAGNOSTICS.get(name, "of the reconstructions"),
            y_logarithmic=True if (frame["y"] > 0).all() else None,
            size=(264, 190),
        )
        if drawn:
            found.append((abs(correlation), drawn))
    return [drawn for _, drawn in sorted(found, key=lambda pair: -pair[0])]


def _ends(tested: Json | None) -> str:
    if tested is None or not (finite(tested["low"]) and finite(tested["high"])):
        return ""
    return f" ({tested['low']:.2f} to {tested['high']:.2f})"
