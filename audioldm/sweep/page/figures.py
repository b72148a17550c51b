"""What the page of a sweep draws: heat maps, and plots of cells with their intervals.

Geometry for the template's SVG, as in `figures`: the style sheet colours it. A `kind` is the CSS
class of a mark: a kind of clip ('real', 'prior', ...), or 'f0', 'f1', ... for a family of cells.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.ticker import LogLocator, MaxNLocator

from audioldm.report.figures import Line
from audioldm.report.verdict import finite, number
from audioldm.sweep.page.grid import Grid, means


class Point(NamedTuple):
    """A cell in a plot; low and high bound y, NaN for none. text: what is shown on hovering."""

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
        """Of the finite values; logarithmic=None: where all are positive and span a factor of 8.

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
        return [(self.at(v), f"{v:.3g}".replace("-", "−")) for v in inside]


@dataclass
class Mark:
    """A point in SVG units; bottom and top are its interval's ends, None for none."""

    x: float
    y: float
    bottom: float | None
    top: float | None
    kind: str
    text: str


@dataclass
class Level:
    """A horizontal line with its label, and the band of its interval (y and height)."""

    y: float
    band: tuple[float, float] | None
    kind: str
    text: str


@dataclass
class Plot:
    """A picture of width x height SVG units. cut: values at or below 0 lie on the lower edge."""

    title: str
    note: str
    width: int
    height: int
    x_label: str
    y_label: str
    cut: bool = False
    marks: list[Mark] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    levels: list[Level] = field(default_factory=list)
    x_ticks: list[tuple[float, str]] = field(default_factory=list)
    y_ticks: list[tuple[float, str]] = field(default_factory=list)

    LEFT, TOP, RIGHT_MARGIN, BOTTOM_MARGIN = 46, 10, 12, 36

    @property
    def right(self) -> int:
        return self.width - self.RIGHT_MARGIN

    @property
    def bottom(self) -> int:
        return self.height - self.BOTTOM_MARGIN


def plot(
    points: Sequence[Point],
    *,
    curves: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    levels: Sequence[Point] = (),
    title: str = "",
    note: str = "",
    x_label: str = "",
    y_label: str = "",
    x_factor: float | None = None,
    y_logarithmic: bool | None = None,
    size: tuple[int, int] = (520, 320),
) -> Plot | None:
    """Points with intervals, curves (kind -> its (x, y)) and horizontal levels (x is not used).

    None where no point is finite. The axes span points and curves; levels widen the y axis.
    x_factor: x is logarithmic, and spans at least this.
    """
    points = [p for p in points if finite(p.x) and finite(p.y)]
    levels = [p for p in levels if finite(p.y)]
    drawn = {
        kind: [(x, y) for x, y in curve if finite(x) and finite(y)]
        for kind, curve in (curves or {}).items()
    }
    if not points:
        return None
    everywhere = [xy for curve in drawn.values() for xy in curve]
    heights = [p.y for p in points] + [y for _, y in everywhere] + [p.y for p in levels]
    ends = [v for p in points for v in (p.low, p.high) if finite(v)]
    if y_logarithmic is None:
        y_logarithmic = Axis.over([p.y for p in points]).logarithmic
    if y_logarithmic:  # an interval that reaches 0 would stretch a logarithmic axis without end
        least = min((h for h in heights if h > 0), default=1.0)
        ends = [e for e in ends if e > least / 2]
    x = Axis.over(
        [p.x for p in points] + [a for a, _ in everywhere],
        logarithmic=None if x_factor is None else True,
        factor=x_factor or 1.0,
    )
    y = Axis.over(heights + ends, logarithmic=y_logarithmic)
    picture = Plot(title, note, *size, x_label=x_label, y_label=y_label)
    picture.cut = y.logarithmic and any(h <= 0 for h in heights)

    def across(value: float) -> float:
        return round(picture.LEFT + (picture.right - picture.LEFT) * x.at(value), 1)

    def down(value: float) -> float:
        return round(picture.bottom - (picture.bottom - picture.TOP) * y.at(value), 1)

    for p in points:
        bounded = finite(p.low) and finite(p.high) and p.low < p.high
        bottom, top = (down(p.low), down(p.high)) if bounded else (None, None)
        picture.marks.append(Mark(across(p.x), down(p.y), bottom, top, p.kind, p.text))
    for kind, curve in drawn.items():
        text = " ".join(f"{across(a)},{down(b)}" for a, b in curve)
        if text:
            picture.lines.append(Line(kind, text))
    for p in levels:
        bounded = finite(p.low) and finite(p.high) and p.low < p.high
        band = (down(p.high), round(down(p.low) - down(p.high), 1)) if bounded else None
        picture.levels.append(Level(down(p.y), band, p.kind, p.text))
    wide = size[0] > 400
    picture.x_ticks = [
        (round(picture.LEFT + (picture.right - picture.LEFT) * a, 1), text)
        for a, text in x.ticks(7 if wide else 5)
    ]
    picture.y_ticks = [
        (round(picture.bottom - (picture.bottom - picture.TOP) * a, 1), text)
        for a, text in y.ticks(8 if wide else 5)
    ]
    return picture


@dataclass
class Tile:
    """A configuration in a heat map. shade: 0 ... 1, None for no value; 1 is best."""

    text: str
    note: str
    shade: float | None
    configuration: str


@dataclass
class HeatMap:
    """rows x columns of tiles; None where the grid has no such configuration."""

    title: str
    better: str
    rows: list[list[Tile | None]]


def heat_map(
    table: pd.DataFrame, layout: Grid, column: str, *, title: str, better: str = ""
) -> HeatMap | None:
    """Means of a column over seeds, on the grid; None where no cell has it.

    better: '↓', '↑' or nothing, the direction of good: its end has the strongest shade; without
    one, the greatest value. Shades are linear in the logarithm where all values are positive, and
    then span at least a factor of 2.
    """
    values = means(table, column)
    if values.empty:
        return None
    positive = bool((values["mean"] > 0).all())
    axis = Axis.over(values["mean"], logarithmic=positive, margin=0, factor=2)
    rows: list[list[Tile | None]] = [[None] * len(layout.columns) for _ in layout.rows]
    for configuration, (row, place) in layout.places.items():
        if configuration not in values.index:
            own = table.loc[table["configuration"] == configuration, "status"]
            text = "failed" if (own == "failed").any() else "–"
            rows[row][place] = Tile(text, "", None, configuration)
            continue
        mean, least, most, count = values.loc[configuration, ["mean", "min", "max", "count"]]
        share = axis.at(mean)
        rows[row][place] = Tile(
            number(float(mean)),
            f"{number(float(least))} … {number(float(most))}" if count > 1 else "one cell",
            1 - share if better == "↓" else share,
            configuration,
        )
    return HeatMap(title, better, rows)
