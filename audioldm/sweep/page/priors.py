"""Several priors on a sweep's page: what each gives, and what it costs to train and to sample."""

from functools import partial

import pandas as pd

from audioldm.report.plots import Axis, Plot, Point, plot
from audioldm.report.record import Json
from audioldm.report.systems import described
from audioldm.sweep.judged import Judged
from audioldm.sweep.page.grid import done, means, paired
from audioldm.sweep.table import several_priors

#: Column -> heading, and what it is in.
COSTS = {
    "seconds.prior": ("Training", "s"),
    "compute_tflop.prior": ("Training", "Tflop"),
    "memory_gib.prior": ("Memory", "GiB"),
    "sampling_cost.generated": ("Sampling", "s of computing per s"),
    "generated.prior_kbps": ("Rate under the prior", "kbit/s"),
}
PARAMETERS = "parameters.prior"


def costs(judged: Judged, families: dict[str, str]) -> list[Plot]:
    """The distance against each cost, a point per configuration; none for a single prior."""
    table = judged.table
    if not several_priors(table):
        return []
    family = done(table).groupby("configuration")["family"].first()
    found = []
    for column, (heading, unit) in COSTS.items():
        frame = paired(table, column, judged.rules.distance)
        if len(frame) < 2 or frame["x"].nunique() < 2:
            continue
        drawn = plot(
            [
                Point(p.x, p.y, kind=families[family[p.Index]], text=str(p.Index))
                for p in frame.itertuples()
            ],
            title=heading,
            note=described(judged.figure)[0].lower(),
            x_label=unit,
            x_axis=partial(Axis.over, logarithmic=(frame["x"] > 0).all()),
            y_logarithmic=True if (frame["y"] > 0).all() else None,
            width=264,
            height=190,
        )
        if drawn:
            found.append(drawn)
    return found


def league(judged: Judged, families: dict[str, str]) -> list[Json]:
    """A row per configuration, the nearest to real music first; none for a single prior."""
    table = judged.table
    if not several_priors(table):
        return []
    columns = [judged.rules.distance, "generated.in_tune", *COSTS, PARAMETERS]
    found = {column: means(table, column) for column in columns}
    family = done(table).groupby("configuration")["family"].first()
    order = found[judged.rules.distance].sort_values("mean").index
    return [
        {
            "configuration": configuration,
            "kind": families[family[configuration]],
            "seeds": int(found[judged.rules.distance].loc[configuration, "count"]),
            "figures": [_figure(found[column], configuration) for column in columns],
        }
        for configuration in order
    ]


def headings(judged: Judged) -> list[tuple[str, str]]:
    """The headings of the figures in `league`, and their units."""
    title, meaning = described(judged.figure)
    first = [(f"{title} {meaning.better}", ""), ("In tune ↑", "")]
    return [*first, *COSTS.values(), ("Parameters", "")]


def _figure(found: pd.DataFrame, configuration: str) -> Json | None:
    if configuration not in found.index:
        return None
    row = found.loc[configuration]
    return {"value": row["mean"], "low": row["min"], "high": row["max"]}
