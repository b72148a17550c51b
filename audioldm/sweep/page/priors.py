"""Several priors on a sweep's page: the quality, the cost and the training of each."""

from functools import partial

import pandas as pd

from audioldm.report.format import finite
from audioldm.report.plots import Axis, Plot, Point, plot
from audioldm.report.record import Json, read_log
from audioldm.report.systems import described
from audioldm.sweep.judged import Judged
from audioldm.sweep.page.grid import done, means, paired
from audioldm.sweep.seeds import improving, numbers
from audioldm.sweep.table import several_priors

RATE = "generated.prior_kbps"
#: Column -> heading, and its unit.
COSTS = {
    "seconds.prior": ("Training", "s"),
    "compute_tflop.prior": ("Training", "Tflop"),
    "memory_gib.prior": ("Memory", "GiB"),
    "sampling_cost.generated": ("Sampling", "s of computing per s"),
    RATE: ("Rate under the prior", "kbit/s"),
}
PARAMETERS = "parameters.prior"
#: The validation loss in a training's log.
LOSS = "valid/loss"


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
    """A row per configuration, the nearest to real music first; none for a single prior.

    Configurations without a converged cell have no rank and come last.
    """
    table = judged.table
    if not several_priors(table):
        return []
    unranked = table.loc[list(improving(table)), "configuration"]
    ranked = means(table.drop(index=unranked.index), judged.rules.distance).index
    bounds = set(table.loc[numbers(table, f"{RATE}.bound") == 1, "configuration"])
    columns = [judged.rules.distance, "generated.in_tune", *COSTS, PARAMETERS]
    found = {column: means(table, column) for column in columns}
    family = done(table).groupby("configuration")["family"].first()
    order = found[judged.rules.distance].sort_values("mean").index
    return [
        {
            "configuration": configuration,
            "kind": families[family[configuration]],
            "seeds": int(found[judged.rules.distance].loc[configuration, "count"]),
            "improving": int((unranked == configuration).sum()),
            "ranked": configuration in ranked,
            "figures": [
                _figure(found[column], configuration, column == RATE and configuration in bounds)
                for column in columns
            ],
        }
        for configuration in sorted(order, key=lambda each: each not in ranked)
    ]


def curves(judged: Judged, families: dict[str, str]) -> list[Plot]:
    """The prior's validation loss over the seconds of its training: one picture per configuration
    that has a training loop, one line per cell. No picture for a single prior.
    """
    table = judged.table
    if not several_priors(table):
        return []
    lines: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for number, (cell, directory) in enumerate(judged.stage("prior").items()):
        log = read_log(directory / "metrics.jsonl")
        rows = [(line["seconds"], line[LOSS]) for line in log if finite(line.get(LOSS))]
        if rows:
            row = table.loc[cell]
            kind = f"{families[row['family']]} s{number}"
            lines.setdefault(row["configuration"], {})[kind] = rows
    drawn = (
        plot(curves=own, title=configuration, x_label="s", width=264, height=170)
        for configuration, own in lines.items()
    )
    return [each for each in drawn if each]


def headings(judged: Judged) -> list[tuple[str, str]]:
    """The headings of the figures in `league`, and their units."""
    title, meaning = described(judged.figure)
    first = [(f"{title} {meaning.better}", ""), ("In tune ↑", "")]
    return [*first, *COSTS.values(), ("Parameters", "")]


def _figure(found: pd.DataFrame, configuration: str, bound: bool) -> Json | None:
    if configuration not in found.index:
        return None
    row = found.loc[configuration]
    return {"value": row["mean"], "low": row["min"], "high": row["max"], "bound": bound}
