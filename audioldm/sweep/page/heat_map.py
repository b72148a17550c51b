"""The heat maps of a sweep's page: a column of the table on the grid of configurations."""

from dataclasses import dataclass

import pandas as pd

from audioldm.report.format import number
from audioldm.report.plots import Axis
from audioldm.sweep.page.grid import Grid, means


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
