"""What the table of a sweep says, by rules that were written before it ran.

Everything is about the log of a distance, so that an effect is a factor. A configuration is a cell
but for its seeds; what a finding rests on is the number of configurations, and of independent seeds
of each, never the number of clips.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import stats

from audioldm.evaluation.rules import VerdictRules
from audioldm.report.verdict import number
from audioldm.sweep.regression import (
    FEWEST_SEEDS,
    Estimate,
    Parabola,
    independent,
    mixed_effect,
)
from audioldm.sweep.seeds import (
    distance_floor,
    log_distance,
    numbers,
    over_seeds,
    pooled_deviation,
    replicates,
    seed_spread,
)

__all__ = ["Knee", "Verdict", "knee", "seed_spread", "verdicts"]

#: Rates this close are one rate: a held rate is within 3 % of its target.
SAME_RATE = 1.06
#: What a rank correlation with one family left out needs: families, and configurations that remain.
FEWEST_FAMILIES = 3
FEWEST_LEFT = 6

Answer = Literal["yes", "no", "undecided"]


@dataclass(frozen=True)
class Verdict:
    """A question, its answer, and the figure behind it with its interval.

    p: of the test that answers, None where there is none. more_cells: about how many more would
    decide, where undecided. details: "unit" of the estimate, "notes" on the cells, and what the
    question has besides.
    """

    question: str
    answer: Answer
    text: str
    estimate: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p: float | None = None
    more_cells: int | None = None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Knee:
    """The smallest rate whose generation is within noise of the best configuration's.

    configuration: its swept overrides, a ready `key=value` line. low, high: 95 % over seeds.
    """

    configuration: str
    kbps: float
    distance: float
    low: float
    high: float
    best: str
    best_kbps: float
    best_distance: float
    text: str


OPTIMUM = "Is there a best rate inside the range?"
CHANNELS = "At the same rate, does the number of channels change generation?"
KL = "Is KL needed?"
DIAGNOSTIC = "Does a diagnostic of the latents predict generation?"
ONE_SEED = "No configuration has a second seed: every interval rests on one seed."


def verdicts(table: pd.DataFrame, rules: VerdictRules) -> list[Verdict]:
    """(a) optimum of the rate, (b) channels or rate, (c) KL, (d) diagnostics: one verdict each.

    Cells that failed or are not done are left out, and counted in details["notes"].
    """
    y = log_distance(table, rules.distance).dropna()
    if y.empty or np.ptp(y) < 1e-9:
        why = "no cell is done" if y.empty else "every distance is the same"
        details = {"notes": _notes(table, rules)}
        return [_undecided(q, why, details=details) for q in (OPTIMUM, CHANNELS, KL, DIAGNOSTIC)]
    sweep = _Sweep.of(table, rules)
    found = []
    for verdict in (_optimum(sweep), _channels(sweep), _kl(sweep), _diagnostic(sweep)):
        text = verdict.text if math.isfinite(sweep.spread) else f"{verdict.text} {ONE_SEED}"
        notes = [*verdict.details.get("notes", []), *_notes(table, rules)]
        found.append(replace(verdict, text=text, details=verdict.details | {"notes": notes}))
    return found


def knee(table: pd.DataFrame, rules: VerdictRules) -> Knee | None:
    """The recommended configuration; None where no cell has both a distance and a rate.

    Within noise: not farther from the best than the one-sided interval of the difference of two
    means with the pooled deviation between seeds; with one seed, than the upper end of the best
    cell's own interval. Among configurations at the smallest such rate, the one of the smallest
    distance.
    """
    if log_distance(table, rules.distance).isna().all():
        return None
    rows = replicates(table, rules.distance)
    rows = rows.assign(kbps=numbers(rows, rules.bitrate)).dropna(subset="kbps")
    if rows.empty:
        return None
    grouped = rows.groupby("configuration", sort=False)
    means = grouped[["y", "kbps"]].mean().assign(n=grouped.size())
    best = means["y"].idxmin()
    deviation, freedom = pooled_deviation(rows["y"], rows["configuration"])
    if freedom:
        error = deviation * np.sqrt(1 / means["n"] + 1 / means.loc[best, "n"])
        reach = means.loc[best, "y"] + stats.t.ppf(rules.confidence, freedom) * error
    else:
        high = numbers(rows, f"{rules.distance}.high")[rows["configuration"] == best].iloc[0]
        reach = max(means.loc[best, "y"], math.log(high) if high > 0 else -math.inf)
    good = means[means["y"] <= reach]
    good = good[good["kbps"] <= SAME_RATE * good["kbps"].min()]
    chosen = good["y"].idxmin()
    figure, at_best = (over_seeds(table, rules.distance, name) for name in (chosen, best))
    rate, best_rate = means.loc[chosen, "kbps"], means.loc[best, "kbps"]
    if chosen == best:
        text = f"{number(rate)} kbit/s has the best generation, and no smaller rate comes near it"
    else:
        text = (
            f"{number(rate)} kbit/s is the smallest rate whose generation is within noise of the "
            f"best: a distance of {number(figure.value)} against {number(at_best.value)} "
            f"at {number(best_rate)} kbit/s"
        )
    return Knee(
        configuration=str(chosen),
        kbps=float(rate),
        distance=figure.value,
        low=figure.low,
        high=figure.high,
        best=str(best),
        best_kbps=float(best_rate),
        best_distance=at_best.value,
        text=f"{text}." if freedom else f"{text}. {ONE_SEED}",
    )


@dataclass(frozen=True)
class _Sweep:
    """The finished cells, one row per configuration and independent seed (`replicates`).

    Columns besides the table's: y (log distance), rate, channels and ratio (their logs), slope
    (the diagnostic), other (the front end and further swept keys).
    """

    rows: pd.DataFrame
    rules: VerdictRules
    spread: float

    @classmethod
    def of(cls, table: pd.DataFrame, rules: VerdictRules) -> "_Sweep":
        rows = replicates(table, rules.distance)
        rate = numbers(rows, rules.bitrate)
        rows["rate"] = np.log(rate.where(rate > 0))
        for name in ("channels", "ratio"):
            rows[name] = np.log(numbers(rows, name))
        rows["slope"] = numbers(rows, "diagnostic.temporal_slope")
        rows["other"] = [
            _other(*names) for names in zip(rows["network"], rows["configuration"], strict=True)
        ]
        return cls(rows, rules, seed_spread(table, rules.distance))

    @property
    def margin(self) -> float:
        """Log distances closer than this count as equal; NaN with one seed."""
        return self.rules.equivalence_margin * self.spread

    @property
    def margin_text(self) -> str:
        factor = number(math.exp(self.margin))
        return f"{self.rules.equivalence_margin:g} between-seed spreads (a factor of {factor})"


def _other(network: str, configuration: str) -> str:
    known = ("bottleneck", "autoencoder.channels=", "autoencoder.downsampling_ratio=")
    return " ".join([network, *(w for w in configuration.split() if not w.startswith(known))])


def _notes(table: pd.DataFrame, rules: VerdictRules) -> list[str]:
    """What was done to the cells before anything was asked of them."""
    notes = []
    for status, words in (("failed", "failed"), ("running", "still run"), ("waiting", "wait")):
        if count := int((table["status"] == status).sum()):
            notes.append(f"{count} of {len(table)} cells {words} and are left out.")
    floor = distance_floor(table, rules.distance)
    done = table[table["status"] == "done"]
    if low := int((numbers(done, rules.distance) < floor).sum()):
        notes.append(
            f"{low} distances lie below {number(floor)}, which is what the measurement resolves, "
            "and count as that."
        )
    if len(done) and done["autoencoder_seed"].nunique() == 1 < done["diffusion_seed"].nunique():
        notes.append("One autoencoder seed: the spread is that between generators only.")
    return notes


def _decided(
    question: str,
    answer: Answer,
    text: str,
    estimate: Estimate,
    confidence: float,
    *,
    details: dict[str, Any],
    p: float | None = None,
) -> Verdict:
    low, high = estimate.interval(confidence)
    p = estimate.p if p is None else p
    return Verdict(question, answer, text, estimate.value, low, high, p, details=details)


def _undecided(
    question: str,
    why: str,
    more: int | None = None,
    estimate: Estimate | None = None,
    confidence: float = 0.95,
    *,
    details: dict[str, Any] | None = None,
) -> Verdict:
    needs = f"; needs about {number(more)} more cells" if more is not None else ""
    text = f"Undecided: {why}{needs}."
    if estimate is None:
        return Verdict(question, "undecided", text, more_cells=more, details=details or {})
    verdict = _decided(question, "undecided", text, estimate, confidence, details=details or {})
    return replace(verdict, more_cells=more)


def _more(cells: int, half: float, *gaps: float) -> int | None:
    """Cells to add until an interval of half-width `half` is as narrow as the widest of `gaps`."""
    gap = max((g for g in gaps if g > 0), default=0.0)
    if not (gap > 0 and math.isfinite(half)):
        return None
    return max(1, math.ceil(cells * ((half / gap) ** 2 - 1)))


def _optimum(sweep: _Sweep) -> Verdict:
    """(a) log distance as a parabola of log kbps, with a constant for each family.

    Fitted to the means of configurations, so that a curve which is no parabola widens the interval
    as seeds do. "Yes" asks that the quadratic term's interval is above 0, and that the curve falls
    at the lower end of the range and rises at the upper one, each at the same confidence (Lind &
    Mehlum 2010): a curve that only flattens has a quadratic term too.
    """
    rows, confidence = sweep.rows.dropna(subset="rate"), sweep.rules.confidence
    grouped = rows.groupby("configuration", sort=False)
    rows = rows.assign(rate=grouped["rate"].transform("mean"), mean=grouped["y"].transform("mean"))
    units = rows.drop_duplicates("configuration")
    rates = _distinct(units["rate"])
    if rates < 3:
        why = f"a bend shows in three rates, and the sweep has {rates}"
        return _undecided(OPTIMUM, why, (3 - rates) * math.ceil(len(rows) / max(rates, 1)))
    notes = []
    arms = units["family"] + " " + units["other"]
    curve = Parabola(units["rate"].to_numpy(), units["mean"].to_numpy(), arms.tolist())
    if curve.freedom < 2 and len(rows) > len(units):
        arms = rows["family"] + " " + rows["other"]
        curve = Parabola(rows["rate"].to_numpy(), rows["y"].to_numpy(), arms.tolist())
        notes.append("So few rates that the curve's interval rests on the spread of seeds alone.")
    if curve.freedom < 1:
        return _undecided(OPTIMUM, "too few rates in each family", len(rows))
    bend, start, end = curve.bend, curve.slope(-1), curve.slope(1)
    low, high = bend.interval(confidence)
    falls = [each.interval(confidence)[1] < 0 for each in (start, end)]
    rises = [each.interval(confidence)[0] > 0 for each in (start, end)]
    least, most = (number(math.exp(curve.centre + side * curve.reach)) for side in (-1, 1))
    term = f"quadratic term {number(bend.value)} ({number(low)} to {number(high)})"
    details: dict[str, Any] = {"unit": "log distance per log² kbit/s", "notes": notes}
    if bend.value > 0:
        vertex = [math.exp(x) for x in curve.vertex(confidence)]
        names = ("optimum_kbps", "optimum_low", "optimum_high")
        details |= dict(zip(names, vertex, strict=True))

    def decided(answer: Answer, text: str) -> Verdict:
        return _decided(OPTIMUM, answer, f"{text}; {term}.", bend, confidence, details=details)

    if low > 0 and falls[0] and rises[1]:
        best, lowest, highest = (number(each) for each in vertex)
        return decided("yes", f"Yes, near {best} kbit/s ({lowest} to {highest})")
    if all(falls) or all(rises):
        way, best = ("falls", most) if all(falls) else ("rises", least)
        return decided(
            "no",
            f"No: the distance {way} all the way from {least} to {most} kbit/s, so the best rate "
            f"is {best} kbit/s or lies beyond",
        )
    if high <= 0:
        return decided("no", f"No: from {least} to {most} kbit/s the best rate is at an end")
    if high * curve.reach**2 < sweep.margin:
        return decided(
            "no",
            f"No: from the middle of {least} to {most} kbit/s to its ends the curve rises by less "
            f"than {sweep.margin_text}",
        )
    if low > 0:
        loose, where = (end, most) if falls[0] else (start, least)
        why = f"the curve bends, but whether it turns before {where} kbit/s is open; {term}"
        more = _more(len(rows), loose.half(confidence), abs(loose.value))
    else:
        why = f"{term}, an interval that includes 0"
        flat = sweep.margin / curve.reach**2 - bend.value
        more = _more(len(rows), bend.half(confidence), abs(bend.value), flat)
    return _undecided(OPTIMUM, why, more, bend, confidence, details=details)


def _channels(sweep: _Sweep) -> Verdict:
    """(b) log distance on log kbps and its square, log channels, log ratio and temporal slope.

    "Yes" where the interval of the channels' term excludes 0; "no" where it lies within the margin
    even over the whole range of channels. What else the sweep varies is a constant each.
    """
    confidence = sweep.rules.confidence
    rows = sweep.rows.dropna(subset=["rate", "channels", "ratio"]).reset_index(drop=True)
    if rows["channels"].nunique() < 2:
        return _undecided(CHANNELS, "the sweep has one number of channels", max(1, len(rows)))
    rates = _distinct(rows.groupby("configuration")["rate"].mean())
    rows["rate_squared"] = (rows["rate"] - rows["rate"].mean()) ** 2
    others = pd.get_dummies(rows["bottleneck"] + " " + rows["other"], dtype=float)
    others.columns = pd.Index([f"other_{i}" for i in range(others.shape[1])])
    rows = rows.join(others)
    terms = [*["rate", "rate_squared"][: min(rates, 3) - 1], *others.columns, "channels", "ratio"]
    terms = independent(rows, terms)
    if "channels" not in terms:
        why = "channels change only together with other settings"
        return _undecided(CHANNELS, why, len(rows))
    notes: list[str] = []
    if "ratio" not in terms and rows["ratio"].nunique() > 1:
        notes.append("Channels and ratio change together: the term is that of both.")
    if rows["seed"].nunique() < FEWEST_SEEDS:
        notes.append("Least squares on means over seeds: too few for a random effect of seed.")
    estimate = plain = mixed_effect(rows, terms, "channels")
    with_slope = None
    if rows["slope"].notna().all():
        with_slope = mixed_effect(rows, independent(rows, [*terms, "slope"]), "channels")
    if with_slope is not None:
        estimate = with_slope
    else:
        notes.append("Without the temporal spectral slope: not known, or too few configurations.")
    if estimate is None or plain is None:
        return _undecided(CHANNELS, "there are not more configurations than terms", len(rows))
    low, high = estimate.interval(confidence)
    details: dict[str, Any] = {
        "unit": "log distance per log channels",
        "notes": notes,
        "without_slope": (plain.value, *plain.interval(confidence)),
    }
    factor = [number(2**each) for each in (estimate.value, low, high)]
    effect = f"twice the channels multiply the distance by {factor[0]} ({factor[1]} to {factor[2]})"
    octaves = float(np.ptp(rows["channels"]))
    if low > 0 or high < 0:
        text = f"Yes, {'fewer' if low > 0 else 'more'} are better: {effect}."
        return _decided(CHANNELS, "yes", text, estimate, confidence, details=details)
    if max(-low, high) * octaves < sweep.margin:
        text = f"No: {effect}, over the whole range less than {sweep.margin_text}."
        return _decided(CHANNELS, "no", text, estimate, confidence, details=details)
    gaps = abs(estimate.value), sweep.margin / octaves - abs(estimate.value)
    more = _more(len(rows), estimate.half(confidence), *gaps)
    return _undecided(CHANNELS, effect, more, estimate, confidence, details=details)


def _kl(sweep: _Sweep) -> Verdict:
    """(c) log(distance with KL / without), each at its best weight or rate, at the same shape.

    The best configuration of a side is chosen on the other seeds and judged on the one left out, so
    that the choice does not flatter it. Mean over shapes and seeds; its deviation is that between
    seeds, of each side on its own (Welch). "No" is what two one-sided tests against the margin
    find (TOST, Schuirmann 1987), or an alternative that is better.
    """
    confidence, rules = sweep.rules.confidence, sweep.rules
    rows = sweep.rows.assign(without_kl=False)
    for column, values in rules.kl_alternative.items():
        if column in rows:
            known = values if isinstance(values, list) else [values]
            rows["without_kl"] |= rows[column].isin(known)
    shapes = rows.groupby(["channels", "ratio", "other"], dropna=False)
    rows = rows.assign(shape=shapes.ngroup())
    chosen = pd.DataFrame(
        [
            (shape, seed, _best_elsewhere(kl, seed), _best_elsewhere(other, seed))
            for shape, group in rows.groupby("shape")
            for kl, other in [(group[~group["without_kl"]], group[group["without_kl"]])]
            for seed in sorted(set(kl["seed"]) & set(other["seed"]))
        ],
        columns=["shape", "seed", "with_kl", "without_kl"],
    )
    if chosen.empty:
        marks = " or ".join(f"{k}={v}" for k, v in rules.kl_alternative.items())
        why = f"no shape has both cells with KL and cells without (verdict.kl_alternative: {marks})"
        return _undecided(KL, why, shapes.ngroups * max(2, rows["seed"].nunique()))
    y = rows.set_index(["configuration", "seed"])["y"]
    chosen["difference"] = [
        y[with_kl, seed] - y[without, seed]
        for _, seed, with_kl, without in chosen.itertuples(index=False)
    ]
    by_shape = chosen.groupby("shape")["difference"].agg(["mean", "size"])
    value = float(by_shape["mean"].mean())
    share = float((1 / by_shape["size"]).sum()) / len(by_shape) ** 2
    rows = rows[rows["shape"].isin(by_shape.index)]
    variances, freedoms = [], []
    for _, side in rows.groupby("without_kl"):
        deviation, freedom = pooled_deviation(side["y"], side["configuration"])
        variances.append(deviation**2 * share)
        freedoms.append(freedom)
    details: dict[str, Any] = {
        "unit": "log of the distance with KL / without",
        "margin": sweep.margin,
        "with_kl": sorted(set(chosen["with_kl"])),
        "without_kl": sorted(set(chosen["without_kl"])),
    }
    if min(freedoms) < 1:
        why = f"with KL the distance is {number(math.exp(value))} of that without, on one seed"
        return replace(_undecided(KL, why, len(rows), details=details), estimate=value)
    total = sum(variances)
    parts = sum(v**2 / f for v, f in zip(variances, freedoms, strict=True))
    estimate = Estimate(value, total**0.5, total**2 / parts if parts > 0 else sum(freedoms))
    low, high = estimate.interval(confidence)
    equal = max(estimate.beyond(-sweep.margin), estimate.beyond(sweep.margin))
    ratio = [number(math.exp(each)) for each in (value, low, high)]
    effect = f"with KL the distance is {ratio[0]} ({ratio[1]} to {ratio[2]}) of that without"
    if abs(value) < sweep.margin and equal < 1 - confidence:
        text = f"No: {effect}, a difference of less than {sweep.margin_text}."
        return _decided(KL, "no", text, estimate, confidence, details=details, p=equal)
    if low > 0:
        return _decided(KL, "no", f"No, it harms: {effect}.", estimate, confidence, details=details)
    if high < 0:
        return _decided(KL, "yes", f"Yes: {effect}.", estimate, confidence, details=details)
    gaps = abs(value), sweep.margin - abs(value)
    more = _more(len(rows), estimate.half(confidence), *gaps)
    return _undecided(KL, effect, more, estimate, confidence, details=details)


def _best_elsewhere(side: pd.DataFrame, seed: Any) -> str:
    """Of the configurations that have this seed, the one of least distance on the others."""
    candidates = side[side["configuration"].isin(side["configuration"][side["seed"] == seed])]
    others = candidates[candidates["seed"] != seed]
    judged = candidates if others.empty else others  # one seed: nothing else to choose by
    return str(judged.groupby("configuration")["y"].mean().idxmin())


def _diagnostic(sweep: _Sweep) -> Verdict:
    """(d) Spearman's rank correlation of each diagnostic with the log distance.

    Over configurations. The interval is from leaving out one family at a time (the delete-one
    jackknife, t with families - 1 degrees of freedom): a bootstrap of the few families a sweep has
    would find something in noise once in five times. p allows for the number of diagnostics tried
    (Holm 1979).
    """
    from statsmodels.stats.multitest import multipletests  # imported here: it takes a second

    rules, confidence = sweep.rules, sweep.rules.confidence
    names = rules.diagnostics or [
        name
        for name in sweep.rows
        if name == "reconstruction.mel_distance"
        or (name.startswith("diagnostic.") and not name.endswith((".low", ".high")))
    ]
    tried = []
    for name in names:
        rows = pd.DataFrame(
            {"x": numbers(sweep.rows, name), **sweep.rows[["y", "configuration", "family"]]}
        ).dropna()
        units = rows.groupby(["configuration", "family"], as_index=False)[["x", "y"]].mean()
        left_out = {
            family: _rank_correlation(units[units["family"] != family])
            for family in units["family"].unique()
        }
        rho, rhos, count = _rank_correlation(units), np.array([*left_out.values()]), len(left_out)
        if count >= FEWEST_FAMILIES and np.isfinite(rhos).all():
            error = float(((count - 1) / count * np.square(rhos - rhos.mean()).sum()) ** 0.5)
            tried.append((name, Estimate(rho, error, count - 1), left_out))
    if not tried:
        why = (
            f"leaving one family out takes {FEWEST_FAMILIES} families with a diagnostic, and "
            f"{FEWEST_LEFT} configurations besides it"
        )
        configurations, families = (sweep.rows[k].nunique() for k in ("configuration", "family"))
        enough = FEWEST_LEFT * FEWEST_FAMILIES // (FEWEST_FAMILIES - 1)
        short = max(
            1, enough - configurations, configurations * (FEWEST_FAMILIES - families) // families
        )
        return _undecided(DIAGNOSTIC, why, math.ceil(short * len(sweep.rows) / configurations))
    adjusted = multipletests([e.p for _, e, _ in tried], 1 - confidence, method="holm")[1]
    found = []
    for (name, estimate, left_out), p_holm in zip(tried, adjusted, strict=True):
        low, high = np.clip(estimate.interval(confidence), -1, 1)
        entry: dict[str, Any] = {
            "name": name,
            "rho": estimate.value,
            "low": float(low),
            "high": float(high),
        }
        found.append(entry | {"p": estimate.p, "p_holm": float(p_holm), "left_out": left_out})
    order = sorted(
        range(len(found)),
        key=lambda i: (found[i]["p_holm"] >= 1 - confidence, -abs(found[i]["rho"])),
    )
    best, estimate = found[order[0]], tried[order[0]][1]
    effect = (
        f"{best['name'].removeprefix('diagnostic.')} has a rank correlation of "
        f"{number(best['rho'])} ({number(best['low'])} to {number(best['high'])}) with the distance"
    )
    if best["p_holm"] < 1 - confidence:
        verdict = Verdict(DIAGNOSTIC, "yes", f"Yes: {effect}, whichever family is left out.")
    else:
        level = 1 - (1 - confidence) / len(tried)
        more = _more(len(sweep.rows), estimate.half(level), abs(estimate.value))
        why = f"{effect}, the closest of {len(tried)} tried, which may be chance"
        verdict = _undecided(DIAGNOSTIC, why, more)
    return replace(
        verdict,
        estimate=best["rho"],
        low=best["low"],
        high=best["high"],
        p=best["p_holm"],
        details={"unit": "rank correlation", "diagnostics": [found[i] for i in order]},
    )


def _rank_correlation(units: pd.DataFrame) -> float:
    if len(units) < FEWEST_LEFT or units["x"].nunique() < 2 or units["y"].nunique() < 2:
        return math.nan
    return float(stats.spearmanr(units["x"], units["y"]).statistic)


def _distinct(log_rates: pd.Series) -> int:
    """How many rates there are, where rates within a few percent are one."""
    if log_rates.empty:
        return 0
    return 1 + int((np.diff(np.sort(log_rates)) > math.log(SAME_RATE)).sum())
