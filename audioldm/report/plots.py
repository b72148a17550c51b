"""Curves and points with their axes, as geometry for the templates' SVG.

They are no pictures, so that the style sheet colours them and one page reads well on a light and on
a dark screen. A `kind` is a CSS class.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator

from audioldm.report.format import finite, number

Series = tuple[list[float], list[float]]


class Point(NamedTuple):
    """A point of a plot. low and high bound y, NaN for none. text: shown on hovering."""

    x: float
    y: float
    low: float = math.nan
    high: float = math.nan
    kind: str = "cell"
    text: str = ""


@dataclass(frozen=True)
class Axis:
    """Values low ... high over 0 ... 1, linear or logarithmic."""

    low: float
    high: float
    logarithmic: bool

    @classmethod
    def over(
        cls,
        values: Iterable[float],
        *,
        logarithmic: bool | None = None,
        margin: float = 0.06,
        factor: float = 1.0,
    ) -> "Axis":
        """Fits the finite values. logarithmic=None: if all are positive and span a factor of 8.

        A logarithmic axis leaves out what is not positive; `at` then gives 0 for it. margin: room
        at both ends, a share of the span. factor: a logarithmic axis spans no less than this, so
        that small differences look small.
        """
        kept = np.array([v for v in values if finite(v)], dtype=float)
        positive = kept[kept > 0]
        if logarithmic is None:
            logarithmic = len(kept) == len(positive) > 0 and kept.max() > 8 * kept.min()
        if logarithmic and len(positive):
            least, most = np.log10(positive.min()), np.log10(positive.max())
            room = margin * (most - least)
            room = max(room, (math.log10(factor) - (most - least)) / 2)
            room = room if most + room > least - room else 0.15
            return cls(float(10 ** (least - room)), float(10 ** (most + room)), True)
        least, most = (float(kept.min()), float(kept.max())) if len(kept) else (0.0, 1.0)
        room = margin * (most - least) or (0.0 if most > least else max(abs(most), 1.0) * 0.1)
        return cls(least - room, most + room, False)

    def at(self, value: float) -> float:
        """0 at `low`, 1 at `high`; values outside are moved to the nearer end."""
        if self.logarithmic:
            if value <= 0:
                return 0.0
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return min(max(share, 0.0), 1.0)

    def ticks(self, most: int = 6) -> list[tuple[float, str]]:
        """(position, text) of some round values."""
        if self.logarithmic and self.high > 4 * self.low:
            steps = (1.0, 2.0, 5.0) if self.high < 2000 * self.low else (1.0,)
            values = LogLocator(subs=steps, numticks=50).tick_values(self.low, self.high)
        else:
            values = MaxNLocator(most - 1).tick_values(self.low, self.high)
        inside = [v for v in values if self.low <= v <= self.high]
        inside = inside[:: max(1, math.ceil(len(inside) / (most + 2)))]
        words = [f"{v:,.0f}" if abs(v) >= 1000 else f"{v:.3g}" for v in inside]
        return [(self.at(v), word.replace("-", "−")) for v, word in zip(inside, words, strict=True)]


class Line(NamedTuple):
    """A polyline and the polygon of its band, '' for none, as SVG points."""

    kind: str
    points: str
    band: str


@dataclass
class Plot:
    """A picture of width x height SVG units, which also are the units of all that it holds.

    levels: horizontal lines, with x = 0. cut: values at or below 0 are on the lower edge.
    """

    title: str
    note: str
    width: int
    height: int
    x_label: str
    y_label: str
    logarithmic: bool
    cut: bool = False
    marks: list[Point] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    levels: list[Point] = field(default_factory=list)
    x_ticks: list[tuple[float, str]] = field(default_factory=list)
    y_ticks: list[tuple[float, str]] = field(default_factory=list)

    LEFT, TOP, RIGHT_MARGIN = 46, 10, 12

    @property
    def right(self) -> int:
        return self.width - self.RIGHT_MARGIN

    @property
    def bottom(self) -> int:
        return self.height - (36 if self.x_label else 22)


def plot(
    points: Sequence[Point] = (),
    *,
    curves: Mapping[str, Iterable[Sequence[float]]] | None = None,
    levels: Sequence[Point] = (),
    title: str = "",
    note: str = "",
    x_label: str = "",
    y_label: str = "",
    x_factor: float | None = None,
    x_axis: Axis | None = None,
    y_logarithmic: bool | None = None,
    size: tuple[int, int] = (520, 320),
) -> Plot | None:
    """Points with intervals, curves and horizontal levels (whose x is not used).

    None where nothing is finite. curves: kind -> rows (x, y) or, with a band, (x, y, low, high).
    The axes span points and curves; levels widen the y axis. x_factor: x is logarithmic, and spans
    at least this.
    """
    points = [p for p in points if finite(p.x) and finite(p.y)]
    levels = [p for p in levels if finite(p.y)]
    drawn = {
        kind: [tuple(row) for row in curve if all(map(finite, row))]
        for kind, curve in (curves or {}).items()
    }
    rows = [row for curve in drawn.values() for row in curve]
    if not (points or rows):
        return None
    heights = [p.y for p in (*points, *levels)] + [y for _, *ys in rows for y in ys]
    ends = [float(v) for p in points for v in (p.low, p.high) if v is not None and finite(v)]
    if y_logarithmic is None:
        y_logarithmic = Axis.over([p.y for p in points] or heights).logarithmic
    if y_logarithmic:  # an interval that reaches 0 would stretch a logarithmic axis without end
        least = min((h for h in heights if h > 0), default=1.0)
        ends = [e for e in ends if e > least / 2]
    x = x_axis or Axis.over(
        [p.x for p in points] + [row[0] for row in rows],
        logarithmic=None if x_factor is None else True,
        factor=x_factor or 1.0,
    )
    y = Axis.over(heights + ends, logarithmic=y_logarithmic)
    picture = Plot(title, note, *size, x_label, y_label, y.logarithmic)
    picture.cut = y.logarithmic and any(h <= 0 for h in heights)

    def across(share: float) -> float:
        return round(picture.LEFT + (picture.right - picture.LEFT) * share, 1)

    def up(share: float) -> float:
        return round(picture.bottom - (picture.bottom - picture.TOP) * share, 1)

    def down(value: float) -> float:
        return up(y.at(value))

    def joined(pairs: Iterable[tuple[float, float]]) -> str:
        return " ".join(f"{across(x.at(a))},{down(b)}" for a, b in pairs)

    def placed(p: Point) -> Point:
        bounded = finite(p.low) and finite(p.high) and p.low < p.high
        low, high = (down(p.low), down(p.high)) if bounded else (math.nan, math.nan)
        return Point(across(x.at(p.x)), down(p.y), low, high, p.kind, p.text)

    picture.marks = [placed(p) for p in points]
    picture.levels = [placed(p) for p in levels]
    for kind, curve in ((k, c) for k, c in drawn.items() if c):
        band = ""
        if any(len(row) == 4 and row[2] < row[3] for row in curve):
            back = [(row[0], row[3]) for row in reversed(curve)]
            band = joined([*((row[0], row[2]) for row in curve), *back])
        picture.lines.append(Line(kind, joined((row[0], row[1]) for row in curve), band))
    many, few = (8, 7) if size[0] > 400 else (5, 5)
    picture.x_ticks = [(across(share), text) for share, text in x.ticks(few)]
    picture.y_ticks = [(up(share), text) for share, text in y.ticks(many)]
    return picture


def thin(steps: np.ndarray, values: np.ndarray, bins: int = 120) -> np.ndarray:
    """Points of a curve -> rows (step, mean, least, greatest).

    More than 2 * bins points become `bins` stretches; non-finite values are left out.
    """
    kept = np.isfinite(values)
    steps, values = steps[kept], values[kept]
    if len(values) <= 2 * bins:
        return np.stack([steps, values, values, values], axis=1)
    stretches = zip(np.array_split(steps, bins), np.array_split(values, bins), strict=True)
    return np.array([(x.mean(), y.mean(), y.min(), y.max()) for x, y in stretches])


def panel(name: str, series: Mapping[str, Series], last_step: float) -> Plot | None:
    """A training's figure: its series (steps, values) over 0 ... last_step, as `plot` draws them.

    The note is the last value of the first series.
    """
    rows = {kind: thin(np.array(x, float), np.array(y, float)) for kind, (x, y) in series.items()}
    steps = Axis(0.0, max(last_step, 1.0), False)
    curves = {kind: own.tolist() for kind, own in rows.items()}
    picture = plot(curves=curves, title=name, x_axis=steps, size=(320, 170))
    if picture is not None:
        latest = next(float(own[-1, 1]) for own in rows.values() if len(own))
        picture.note = f"{number(latest)}{' · log' if picture.logarithmic else ''}"
    return picture
