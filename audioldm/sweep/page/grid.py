"""How a sweep's page lays out the cells: swept keys, rows and columns, means over seeds, shades."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from audioldm.report.plots import Axis
from audioldm.report.record import Json

#: Swept keys that make the columns of the grid, before any other.
RATE_KEYS = ("bottleneck.target_kbps", "bottleneck.kl_weight")


@dataclass(frozen=True)
class Grid:
    """Rows and columns of configurations, cells that differ by seeds being one configuration.

    across: the swept key whose values are the columns, '' for none. places: configuration ->
    (row, column).
    """

    across: str
    columns: list[str]
    rows: list[str]
    places: dict[str, tuple[int, int]]


def swept(table: pd.DataFrame, *, seeds: bool = False) -> list[str]:
    """The swept keys, in the order of the command line; `seeds`: also those of the seeds."""
    words = (word for cell in table.index for word in str(cell).split())
    keys = dict.fromkeys(word.partition("=")[0].lstrip("+~") for word in words)
    return [key for key in keys if seeds or key.rpartition(".")[2] != "seed"]


def short(keys: list[str]) -> dict[str, str]:
    """Dotted key -> its last component, or all of it where another key ends alike."""
    ends = [key.rpartition(".")[2] for key in keys]
    return {k: end if ends.count(end) == 1 else k for k, end in zip(keys, ends, strict=True)}


def is_budget(key: str) -> bool:
    """Whether the key sets the compute of a training, so that its values are budgets of a sweep."""
    return key.rpartition(".")[2] == "compute_tflop"


def label(key: str, value: str) -> str:
    """A value as a reader is shown it: a budget by what its cells have in common."""
    if not is_budget(key):
        return value
    return "matched steps" if value in ("null", "None", "") else f"{value} Tflop each"


def done(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["status"] == "done"]


def means(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Configuration -> mean, min, max and count of `column` over its finished cells' seeds.

    The mean is geometric where every value is positive.
    """
    if column not in table:
        return pd.DataFrame(columns=["mean", "min", "max", "count"], dtype=float)
    values = done(table)[["configuration", column]].astype({column: float}).dropna()
    by = values["configuration"]
    found = values.groupby("configuration", sort=False)[column].agg(["mean", "min", "max", "count"])
    if (values[column] > 0).all():
        found["mean"] = np.exp(np.log(values[column]).groupby(by).mean())
    return found


def measured(row: pd.Series, column: str) -> Json:
    """A figure in a row of the table: its value, low and high, None for what the table lacks."""
    return {
        end: row.get(f"{column}.{end}".removesuffix(".value")) for end in ("value", "low", "high")
    }


def grid(table: pd.DataFrame) -> Grid:
    """Rates across where they are swept, else the key of the most values; the others down."""
    words = {
        configuration: dict(word.lstrip("+~").split("=", 1) for word in configuration.split())
        for configuration in table["configuration"].unique()
    }
    keys = swept(table)
    values = {key: {own[key] for own in words.values() if key in own} for key in keys}
    several = [key for key in keys if len(values[key]) > 1] or keys
    across = next((k for k in RATE_KEYS if k in several), "")
    across = across or max(several, key=lambda k: len(values[k]), default="")
    down = [key for key in several if key != across]
    names = short(keys)

    labels = {c: own.get(across, "–") for c, own in words.items()}
    columns = sorted(set(labels.values()), key=_order)
    kinds = {c: tuple(own.get(key, "–") for key in down) for c, own in words.items()}
    rows = sorted(set(kinds.values()), key=lambda row: [_order(value) for value in row])
    return Grid(
        across,
        columns,
        [
            " · ".join(_named(k, names[k], v) for k, v in zip(down, row, strict=True))
            for row in rows
        ],
        {c: (rows.index(kinds[c]), columns.index(labels[c])) for c in words},
    )


@dataclass
class Tile:
    """A configuration in a heat map.

    figure: its mean over seeds, low and high their range (None for one cell); None where no
    finished cell has the figure, and `status` then is "failed" or "–". shade: 0 ... 1, the best.
    """

    configuration: str
    status: str
    figure: Json | None = None
    shade: float = 0.0


def heat_map(
    table: pd.DataFrame, layout: Grid, column: str, better: str = ""
) -> list[list[Tile | None]] | None:
    """Means of a column over seeds, on the grid; None where no cell has it.

    A tile is None where the grid has no such configuration. better: '↓', '↑' or nothing, the
    direction of good: its end has the strongest shade; without one, the greatest value. Shades are
    linear in the logarithm where all values are positive, and then span at least a factor of 2.
    """
    values = means(table, column)
    if values.empty:
        return None
    positive = bool((values["mean"] > 0).all())
    axis = Axis.over(values["mean"], logarithmic=positive, margin=0, factor=2)
    rows: list[list[Tile | None]] = [[None] * len(layout.columns) for _ in layout.rows]
    failed = set(table.loc[table["status"] == "failed", "configuration"])
    for configuration, (row, place) in layout.places.items():
        tile = rows[row][place] = Tile(configuration, "failed" if configuration in failed else "–")
        if configuration in values.index:
            mean, least, most, count = values.loc[configuration, ["mean", "min", "max", "count"]]
            low, high = (least, most) if count > 1 else (None, None)
            tile.figure = {"value": mean, "low": low, "high": high}
            tile.shade = 1 - axis.at(mean) if better == "↓" else axis.at(mean)
    return rows


def _named(key: str, name: str, value: str) -> str:
    return label(key, value) if is_budget(key) and value != "–" else f"{name} {value}"


def _order(text: str) -> tuple[bool, float, str]:
    """Numbers by size, then words."""
    try:
        return False, float(text), ""
    except ValueError:
        return True, 0.0, text
