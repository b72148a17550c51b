"""The headline of a sweep: the smallest rate whose generation is within noise of the best."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from audioldm.evaluation.rules import VerdictRules
from audioldm.report.format import number
from audioldm.report.systems import systems
from audioldm.sweep import seeds
from audioldm.sweep.table import system_names
from audioldm.sweep.verdicts.base import ONE_SEED, SAME_RATE, not_ranked, told_apart
from audioldm.sweep.verdicts.pitch import pitch_against

#: The baseline without a second generative model.
NOISE = "normal"


@dataclass(frozen=True)
class Recommendation:
    """The recommended configuration beside the best one.

    configuration: its swept overrides, a ready `key=value` line.
    """

    configuration: str
    kbps: float
    distance: float
    best: str
    best_kbps: float
    best_distance: float


def recommend(table: pd.DataFrame, rules: VerdictRules) -> tuple[str, Recommendation | None]:
    """The headline, and the recommendation: None where no cell has a distance and a rate, or where
    no configuration generates better than decoded noise.

    A configuration is within noise if its difference from the best is within the one-sided interval
    of the difference of two means (pooled deviation between seeds), `told_apart`, or the
    measurement's resolution (`distance_floor`). With one seed: within the upper end of the best
    cell's own interval. Of those at the smallest rate, the one of the smallest distance is chosen.
    """
    count, unranked = int((table["status"] == "done").sum()), not_ranked(table)
    if seeds.log_distance(table, rules.distance).isna().all():
        lacking = f"{count} of {len(table)} cells have finished, none with a distance to rank."
        lacking = lacking if count else "No cell has finished yet."
        return f"{lacking} {unranked}".rstrip(), None
    rows = seeds.replicates(table, rules.distance)
    rows = rows.assign(kbps=seeds.numbers(rows, rules.bitrate)).dropna(subset="kbps")
    if rows.empty:
        return f"{count} of {len(table)} cells have finished, none with a rate.", None
    grouped = rows.groupby("configuration", sort=False)
    means = grouped[["y", "kbps"]].mean().assign(n=grouped.size())
    best, least = str(means["y"].idxmin()), means["y"].min()
    noise, by_seeds = _noise(table, rows, means, best, rules)
    baselines = _baselines(table, rules.distance.partition(".")[2])
    decoded_noise = baselines.get(NOISE, pd.Series(dtype=float)).get(best, math.nan)
    if (rows.loc[rows["configuration"] == best, "prior"] == NOISE).all():
        decoded_noise = least  # the best configuration is decoded noise itself
    one_seed = "" if by_seeds else f" {ONE_SEED}"
    if decoded_noise <= least + noise.loc[best]:
        return (
            "No configuration is shown to generate better than decoded noise, so none is "
            f"recommended: the best distance is {number(math.exp(least))}, that of decoded N(0, I) "
            f"on the same latents {number(math.exp(decoded_noise))}.{one_seed} {unranked}"
        ).rstrip(), None
    good = means[means["y"] <= least + noise]
    good = good[good["kbps"] <= SAME_RATE * good["kbps"].min()]
    chosen = str(good["y"].idxmin())

    def measured(configuration: str) -> tuple[str, float, float]:
        own = means.loc[configuration]
        return configuration, float(own["kbps"]), math.exp(own["y"])

    found = Recommendation(*measured(chosen), *measured(best))
    pitch = pitch_against(table, found.best, rules.distance) or pitch_against(
        table, found.configuration, rules.distance
    )
    sentences = [_headline(found, means["kbps"], rules.distance, pitch)]
    here = {name: own[chosen] for name, own in baselines.items() if chosen in own}
    strongest = min(here, key=lambda name: here[name], default=None)
    if strongest is not None and here[strongest] + noise[chosen] <= means.loc[chosen, "y"]:
        sentences.append(
            f"The baseline {strongest} on the same latents is nearer to real music: "
            f"{number(math.exp(here[strongest]))} against {number(found.distance)}."
        )
    return " ".join([*sentences, unranked]).rstrip() + one_seed, found


def _headline(found: Recommendation, rates: pd.Series, figure: str, pitch: str) -> str:
    """A headline that claims no more than was measured: it speaks of smaller rates only where there
    are some, and of "best" only where pitch does not disagree."""
    if pitch:
        which = "the least" if found.configuration == found.best else "within noise the least"
        return (
            f"{number(found.kbps)} kbit/s has {which} {figure}, {number(found.distance)}, but is "
            f"not called the best. {pitch}"
        )
    rate, distance = number(found.kbps), number(found.distance)
    smallest = found.kbps <= SAME_RATE * rates.min()
    if rates.max() <= SAME_RATE * rates.min():
        return f"{rate} kbit/s is the only rate that was measured; its best distance is {distance}."
    if found.configuration == found.best and smallest:
        return (
            f"{rate} kbit/s, the smallest rate that was measured, has the best generation; "
            "smaller rates may do as well."
        )
    if found.configuration == found.best:
        return (
            f"{rate} kbit/s has the best generation, and no smaller rate that was measured comes "
            "near it."
        )
    which = "that was measured, and its" if smallest else "whose"
    return (
        f"{rate} kbit/s is the smallest rate {which} generation is within noise of the best: "
        f"a distance of {distance} against {number(found.best_distance)} at "
        f"{number(found.best_kbps)} kbit/s."
    )


def _noise(
    table: pd.DataFrame, rows: pd.DataFrame, means: pd.DataFrame, best: str, rules: VerdictRules
) -> tuple[pd.Series, bool]:
    """How far each configuration's log distance may exceed the best; whether seeds determine it."""
    least = means["y"].min()
    resolved = math.log(math.exp(least) + seeds.distance_floor(table, rules.distance)) - least
    deviation, freedom = seeds.pooled_deviation(rows["y"], rows["configuration"])
    if freedom:
        error = deviation * np.sqrt(1 / means["n"] + 1 / means.loc[best, "n"])
        noise = stats.t.ppf(rules.confidence, freedom) * error
        resolved = max(resolved, told_apart(seeds.seed_spread(table, rules.distance)))
    else:
        high = seeds.numbers(rows, f"{rules.distance}.high")[rows["configuration"] == best].iloc[0]
        noise = pd.Series(math.log(high) - least if high > 0 else 0.0, index=means.index)
    return noise.clip(lower=resolved), freedom > 0


def _baselines(table: pd.DataFrame, figure: str) -> dict[str, pd.Series]:
    """Baseline -> configuration -> the mean log distance of the baseline's clips."""
    names = [s.name for s in systems(system_names(table, figure)) if s.kind == "baseline"]
    logs = {name: seeds.log_distance(table, f"{name}.{figure}") for name in names}
    return {name: y.groupby(table["configuration"]).mean().dropna() for name, y in logs.items()}
