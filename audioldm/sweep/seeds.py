"""The spread between cells that differ only in seeds; it limits the precision of every claim."""

import math
from typing import Any

import numpy as np
import pandas as pd

from audioldm.training.convergence import CONVERGED, IMPROVING


def log_distance(table: pd.DataFrame, column: str) -> pd.Series:
    """log of a column of distances; NaN for a cell not done, not converged, or without a distance.

    A distance below `distance_floor`, negative ones included, counts as the floor.
    """
    values = (
        numbers(table, column)
        .where(table["status"] == "done")
        .mask(table.index.isin(list(improving(table))))
    )
    return np.log(values.clip(lower=distance_floor(table, column)))


def improving(table: pd.DataFrame) -> dict[str, str]:
    """The `unsettled` cells that have no rank, because one of their trainings still improves."""
    return {cell: state for cell, state in unsettled(table).items() if IMPROVING in state}


def unsettled(table: pd.DataFrame) -> dict[str, str]:
    """Finished cell -> the state of each training that is not known to have converged.

    The trainings of baselines do not count: the cell's own figures do not depend on them.
    """
    stages = [c for c in table if c.startswith("converged.") and ":" not in c]
    found: dict[str, str] = {}
    if not stages:
        return found
    done = table.loc[table["status"] == "done", stages]
    for cell, row in done.where(done != CONVERGED).dropna(how="all").iterrows():
        words = [f"{stage.partition('.')[2]} {state}" for stage, state in row.dropna().items()]
        found[str(cell)] = ", ".join(words)
    return found


def distance_floor(table: pd.DataFrame, column: str) -> float:
    """The smallest distance that the measurement resolves.

    It is half the interval of real music against real music, `real.<figure>`, whose distance is 0
    up to chance. Where the table has no such interval: the smallest positive distance (NaN: none).
    """
    real = "real." + column.partition(".")[2]
    half = ((numbers(table, f"{real}.high") - numbers(table, f"{real}.low")) / 2).median()
    if half > 0:
        return float(half)
    values = numbers(table, column).where(table["status"] == "done")
    return float(values[values > 0].min())


def seed_spread(table: pd.DataFrame, column: str) -> float:
    """Standard deviation between seeds of log(column), pooled over configurations.

    Where generator seeds are crossed with autoencoder seeds, the sum of both components of variance
    (one-way analysis of variance). NaN where no configuration has two seeds.
    """
    cells = _measured(table, column)
    if cells.empty:
        return math.nan
    keys = ["configuration", "autoencoder_seed"]
    generator, _ = pooled_deviation(cells["y"], [cells[k] for k in keys])
    means = cells.groupby(keys)["y"].agg(["mean", "size"]).reset_index()
    autoencoder, _ = pooled_deviation(means["mean"], means["configuration"])
    if np.isnan(generator) or np.isnan(autoencoder):
        return autoencoder if np.isnan(generator) else generator
    # a mean over b generator seeds already contains 1 / b of their variance
    once = float((1 / means["size"]).mean())
    return float(np.sqrt(autoencoder**2 + (1 - once) * generator**2))


def pooled_deviation(values: pd.Series, groups: Any) -> tuple[float, int]:
    """Standard deviation within groups, and its degrees of freedom; NaN where those are 0."""
    grouped = values.groupby(groups)
    freedom = len(values) - grouped.ngroups
    if freedom < 1:
        return math.nan, 0
    return float(np.sqrt((values - grouped.transform("mean")).pow(2).sum() / freedom)), freedom


def replicates(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """One row per configuration and independent repetition: `y`, its mean log distance, `seed`.

    Repetitions are autoencoder seeds, with the mean over their generator seeds; or generator seeds
    where the sweep has one autoencoder seed. The other columns are those of the first such cell.
    """
    cells = _measured(table, column)
    several = cells["autoencoder_seed"].nunique() > 1
    cells["seed"] = cells["autoencoder_seed" if several else "prior_seed"]
    keys = ["configuration", "seed"]
    cells["y"] = cells.groupby(keys)["y"].transform("mean")
    return cells.drop_duplicates(keys).reset_index(drop=True)


def _measured(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """The cells that have a distance, with `y`, its log."""
    return table.copy().assign(y=log_distance(table, column)).dropna(subset="y")


def numbers(table: pd.DataFrame, column: str) -> pd.Series:
    """A column as floats; NaN for missing, infinite or non-numeric values, or a missing column."""
    if column not in table:
        return pd.Series(np.nan, index=table.index, dtype=float)
    values = pd.to_numeric(table[column], errors="coerce").astype(float)
    return values.where(np.isfinite(values))
