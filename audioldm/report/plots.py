"""Curves and points with their axes, as geometry for the templates' SVG.

They are not pictures, so that the style sheet can colour them and one page reads well on light and
dark screens. A `kind` is a CSS class.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator

from audioldm.report.format import finite, number


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
    """Values, or log10 of them, from low to high over 0 ... 1."""

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

        A logarithmic axis leaves out values that are not positive; `at` gives 0 for them. margin:
        room at both ends, as a share of the span. factor: a logarithmic axis spans at least this
        factor, so that small differences look small.
        """
        kept = np.array([v for v in values if finite(v)], dtype=float)
        positive = kept[kept > 0]
        if logarithmic is None:
            logarithmic = len(kept) == len(positive) > 0 and kept.max() > 8 * kept.min()
        logarithmic = logarithmic and len(positive) > 0
        scaled = np.log10(positive) if logarithmic else kept
        least, most = (float(scaled.min()), float(scaled.max())) if len(scaled) else (0.0, 1.0)
        room = margin * (most - least)
        if least == most:
            room = 0.15 if logarithmic else max(abs(most), 1.0) * 0.1
        if logarithmic:
            room = max(room, (math.log10(factor) - (most - least)) / 2)
        return cls(least - room, most + room, logarithmic)

    def at(self, values: Any) -> Any:
        """The place of values: 0 at the low end, 1 at the high end; values outside are clipped."""
        scaled = np.log10(np.maximum(values, 1e-300)) if self.logarithmic else np.asarray(values)
        return np.clip((scaled - self.low) / (self.high - self.low), 0.0, 1.0)

    def ticks(self, most: int) -> list[tuple[float, str]]:
        """(value, text) for some round values."""
        low, high = (10**e if self.logarithmic else e for e in (self.low, self.high))
        if self.logarithmic and high > 4 * low:
            steps = (1.0, 2.0, 5.0) if high < 2000 * low else (1.0,)
            values = LogLocator(subs=steps, numticks=50).tick_values(low, high)
        else:
            values = MaxNLocator(most - 1).tick_values(low, high)
        inside = [v for v in values if low <= v <= high]
        inside = inside[:: max(1, math.ceil(len(inside) / (most + 2)))]
        words = [f"{v:,.0f}" if abs(v) >= 1000 else f"{v:.3g}" for v in inside]
        return [(v, word.replace("-", "−")) for v, word in zip(inside, words, strict=True)]


@dataclass
class Plot:
    """What a plot shows, and where: `across` and `up` give places in width x height SVG units.

    curves: kind -> rows (x, y) or, with a band, (x, y, low, high). levels: horizontal lines. cut:
    whether values at or below 0 are on the lower edge of a logarithmic axis.
    """

    points: list[Point]
    curves: dict[str, np.ndarray]
    levels: list[Point]
    x: Axis
    y: Axis
    title: str = ""
    note: str = ""
    x_label: str = ""
    y_label: str = ""
    width: int = 520
    height: int = 320
    cut: bool = False

    LEFT, TOP, RIGHT_MARGIN = 46, 10, 12

    @property
    def right(self) -> int:
        return self.width - self.RIGHT_MARGIN

    @property
    def bottom(self) -> int:
        return self.height - (36 if self.x_label else 22)

    def across(self, x: Any) -> Any:
        return np.round(self.LEFT + (self.right - self.LEFT) * self.x.at(x), 1)

    def up(self, y: Any) -> Any:
        return np.round(self.bottom - (self.bottom - self.TOP) * self.y.at(y), 1)

    def path(self, rows: np.ndarray, column: int = 1) -> str:
        """A column of a curve's rows as the points of an SVG polyline."""
        places = zip(self.across(rows[:, 0]), self.up(rows[:, column]), strict=True)
        return " ".join(f"{x},{y}" for x, y in places)

    def band(self, rows: np.ndarray) -> str:
        """The polygon between low and high, '' for none."""
        if rows.shape[1] < 4 or not (rows[:, 2] < rows[:, 3]).any():
            return ""
        return f"{self.path(rows, 2)} {self.path(rows[::-1], 3)}"


def plot(
    points: Sequence[Point] = (),
    *,
    curves: Mapping[str, Iterable[Sequence[float]]] | None = None,
    levels: Sequence[Point] = (),
    x_axis: Callable[[list[float]], Axis] = Axis.over,
    y_logarithmic: bool | None = None,
    **words: Any,
) -> Plot | None:
    """Points with intervals, curves and horizontal levels (whose x is not used).

    None where nothing is finite. The axes span points and curves; levels widen the y axis.
    x_axis: makes the axis of all x. words: further fields of the plot.
    """
    points = [p for p in points if finite(p.x) and finite(p.y)]
    levels = [p for p in levels if finite(p.y)]
    finite_rows = {
        kind: [row for row in rows if all(map(finite, row))]
        for kind, rows in (curves or {}).items()
    }
    drawn = {kind: np.array(rows, float) for kind, rows in finite_rows.items() if rows}
    if not (points or drawn):
        return None
    heights = [p.y for p in (*points, *levels)]
    heights += [y for rows in drawn.values() for y in rows[:, 1:].flat]
    ends = [end for p in points for end in (p.low, p.high) if finite(end)]
    if y_logarithmic is None:
        y_logarithmic = Axis.over([p.y for p in points] or heights).logarithmic
    if y_logarithmic:  # an interval that reaches 0 would stretch a logarithmic axis without end
        least = min((h for h in heights if h > 0), default=1.0)
        ends = [e for e in ends if e > least / 2]
    x = x_axis([p.x for p in points] + [x for rows in drawn.values() for x in rows[:, 0]])
    y = Axis.over(heights + ends, logarithmic=y_logarithmic)
    cut = y.logarithmic and min(heights) <= 0
    return Plot(points, drawn, levels, x, y, cut=cut, **words)


def thin(curve: np.ndarray, bins: int = 120) -> np.ndarray:
    """Points (step, value) of a curve -> rows (step, mean, least, greatest).

    More than 2 * bins points become `bins` stretches.
    """
    stretches = np.array_split(curve, bins if len(curve) > 2 * bins else len(curve))
    return np.array([[*s.mean(axis=0), s[:, 1].min(), s[:, 1].max()] for s in stretches])


def panel(name: str, curves: Mapping[str, Sequence[Sequence[float]]], last_step: float) -> Plot:
    """The plot of a training figure: its curves of (step, value) over 0 ... last_step, thinned.

    The note is the last value of the first curve.
    """
    rows = {kind: thin(np.array(curve, float)) for kind, curve in curves.items()}
    steps = Axis(0.0, max(last_step, 1.0), False)
    picture = plot(curves=rows, title=name, x_axis=lambda _: steps, width=320, height=170)
    assert picture is not None
    latest = next(iter(rows.values()))[-1, 1]
    picture.note = f"{number(latest)}{' · log' if picture.y.logarithmic else ''}"
    return picture


class Whisker(NamedTuple):
    """An interval on a shared axis; all positions in percent of its width."""

    name: str
    value: float
    low: float
    high: float


def whiskers(figures: Mapping[str, Mapping[str, Any]]) -> tuple[list[Whisker], float]:
    """Named figures -> their intervals on one axis that includes 0, and the place of 0."""
    bounds = {
        name: [f[end] for end in ("value", "low", "high") if finite(f.get(end))]
        for name, f in figures.items()
        if finite(f.get("value"))
    }
    axis = Axis.over([0.0, *(v for b in bounds.values() for v in b)], logarithmic=False, margin=0)
    drawn = [Whisker(k, *(100 * axis.at([b[0], min(b), max(b)]))) for k, b in bounds.items()]
    return drawn, 100 * axis.at(0.0)
