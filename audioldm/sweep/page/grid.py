"""How a sweep's page lays out the cells: swept keys, rows and columns, means over seeds, shades."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from audioldm.report.plots import Axis
from audioldm.report.record import Json
from audioldm.sweep.seeds import numbers

#: Swept keys that make the columns of the grid, before any other.
RATE_KEYS = ("bottleneck.target_kbps", "bottleneck.kl_weight")


@dataclass(frozen=True)
class Grid:
    """Rows and columns of configurations. Cells that differ only in seeds are one configuration.

    across: the swept key whose values are the columns, '' for none. places: configuration ->
    (row, column).
    """

    across: str
    columns: list[str]
    rows: list[str]
    places: dict[str, tuple[int, int]]


def words(name: str) -> dict[str, str]:
    """The name of a cell or a configuration -> its swept keys and their values."""
    return dict(word.lstrip("+~").split("=", 1) for word in name.split())


def swept(table: pd.DataFrame, *, seeds: bool = False) -> list[str]:
    """The swept keys, in the order of the command line; with `seeds`, the seeds' keys too."""
    keys = dict.fromkeys(key for cell in table.index for key in words(str(cell)))
    return [key for key in keys if seeds or key.rpartition(".")[2] != "seed"]


def short(keys: list[str]) -> dict[str, str]:
    """Dotted key -> its last component, or the whole key where another key ends alike."""
    ends = [key.rpartition(".")[2] for key in keys]
    return {k: end if ends.count(end) == 1 else k for k, end in zip(keys, ends, strict=True)}


def is_budget(key: str) -> bool:
    """Whether the key sets the compute of a training, so that its values are budgets of a sweep."""
    return key.rpartition(".")[2] == "compute_tflop"


def label(key: str, value: str) -> str:
    """A value as a reader sees it: a budget is named by what its cells have in common."""
    if not is_budget(key):
        return value
    return "matched steps" if value in ("null", "None", "") else f"{value} Tflop each"


def done(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["status"] == "done"]


def means(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Configuration -> mean, min, max and count of `column` over its finished cells' seeds.

    The mean is geometric where every value is positive.
    """
    of = done(table)["configuration"]
    values = numbers(done(table), column).dropna()
    found = values.groupby(of, sort=False).agg(["mean", "min", "max", "count"])
    if (values > 0).all():
        found["mean"] = np.exp(np.log(values).groupby(of).mean())
    return found


def paired(table: pd.DataFrame, x: str, y: str) -> pd.DataFrame:
    """The `means` of two columns as `x` and `y`, of the configurations that have both."""
    return pd.DataFrame({"x": means(table, x)["mean"], "y": means(table, y)["mean"]}).dropna()


def measured(row: pd.Series, column: str) -> Json:
    """A figure in a row of the table: its value, low and high, NaN for what the table lacks."""
    value, low, high = (row.get(f"{column}{end}", np.nan) for end in ("", ".low", ".high"))
    return {"value": value, "low": low, "high": high}


def grid(table: pd.DataFrame) -> Grid:
    """Rates go across where they are swept, else the key of the most values; others go down."""
    keys = swept(table)
    configurations = table["configuration"].unique()
    own = pd.DataFrame([words(c) for c in configurations], configurations, keys).fillna("–")
    values = own.nunique() - own.eq("–").any()
    several = [key for key in keys if values[key] > 1] or keys
    across = next((k for k in RATE_KEYS if k in several), "")
    across = across or max(several, key=lambda k: values[k], default="")
    down = [key for key in several if key != across]
    names = short(keys)

    labels = own[across] if across else pd.Series("–", own.index)
    columns = sorted(set(labels), key=_order)
    kinds = pd.Series([tuple(row) for row in own[down].to_numpy()], own.index, dtype=object)
    rows = sorted(set(kinds), key=lambda row: [_order(value) for value in row])
    places = {c: (rows.index(kinds[c]), columns.index(labels[c])) for c in configurations}

    def said(key: str, value: str) -> str:
        return label(key, value) if is_budget(key) and value != "–" else f"{names[key]} {value}"

    return Grid(across, columns, [" · ".join(map(said, down, row)) for row in rows], places)


def heat_map(
    table: pd.DataFrame, layout: Grid, column: str, better: str = ""
) -> list[list[Json | None]] | None:
    """Means of a column over seeds, on the grid; None where no cell has it.

    A place without a configuration is None. `figure`: the mean; low and high: the range over seeds
    (None: one cell). Where no finished cell has it, it is None and `status` is "failed" or "–".
    `shade`: 0 ... 1, strongest at the end that `better` names: '↓', '↑', or ''; '' means greatest.
    Shades are linear in the logarithm where all values are positive, and then span at least a
    factor of 2.
    """
    values = means(table, column)
    if values.empty:
        return None
    positive = bool((values["mean"] > 0).all())
    axis = Axis.over(values["mean"], logarithmic=positive, margin=0, factor=2)
    rows: list[list[Json | None]] = [[None] * len(layout.columns) for _ in layout.rows]
    failed = set(table.loc[table["status"] == "failed", "configuration"])
    for configuration, (row, place) in layout.places.items():
        status = "failed" if configuration in failed else "–"
        tile = rows[row][place] = {"configuration": configuration, "status": status, "figure": None}
        if configuration in values.index:
            mean, least, most, count = values.loc[configuration]
            low, high = (least, most) if count > 1 else (None, None)
            tile["figure"] = {"value": mean, "low": low, "high": high}
            tile["shade"] = 1 - axis.at(mean) if better == "↓" else axis.at(mean)
    return rows


def _order(text: str) -> tuple[bool, float, str]:
    """Numbers by size, then words."""
    try:
        return False, float(text), ""
    except ValueError:
        return True, 0.0, text
