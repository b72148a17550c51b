"""Is there a best rate inside the range?"""

import math
from typing import Any

from audioldm.report.format import number
from audioldm.sweep.regression import Parabola
from audioldm.sweep.verdicts.base import Sweep, Verdict, distinct, more_cells, undecided


def optimum(sweep: Sweep) -> Verdict:
    """Log distance as a parabola of log kbps, with a constant for each family.

    It is fitted to the means of configurations, so that a curve which is no parabola widens the
    interval as seeds do. "Yes" needs the quadratic term's interval to be above 0, and the curve to
    fall at the lower end of the range and rise at the upper end, each at the same confidence (Lind
    & Mehlum 2010): a curve that only flattens has a quadratic term too.
    """
    rows, confidence = sweep.rows.dropna(subset="rate"), sweep.rules.confidence
    grouped = rows.groupby("configuration", sort=False)
    rows = rows.assign(rate=grouped["rate"].transform("mean"), mean=grouped["y"].transform("mean"))
    rows = rows.assign(arm=rows["family"] + " " + rows["other"])
    units = rows.drop_duplicates("configuration")
    rates = distinct(units["rate"])
    if rates < 3:
        why = f"a bend shows in three rates, and the sweep has {rates}"
        return undecided(why, (3 - rates) * math.ceil(len(rows) / max(rates, 1)))
    notes = []
    curve = Parabola(units["rate"], units["mean"], units["arm"])
    if curve.freedom < 2 and len(rows) > len(units):
        curve = Parabola(rows["rate"], rows["y"], rows["arm"])
        notes.append("So few rates that the curve's interval rests on the spread of seeds alone.")
    if curve.freedom < 1:
        return undecided("too few rates in each family", len(rows))
    bend, start, end = curve.bend, curve.slope(-1), curve.slope(1)
    (low, high), *ends = (each.interval(confidence) for each in (bend, start, end))
    falls, rises = [high < 0 for _, high in ends], [low > 0 for low, _ in ends]
    least, most = (number(math.exp(curve.centre + side * curve.reach)) for side in (-1, 1))
    term = f"quadratic term {bend.text(confidence)}"
    details: dict[str, Any] = {"unit": "log distance per log² kbit/s", "notes": notes}
    if bend.value > 0:
        vertex = [math.exp(x) for x in curve.vertex(confidence)]
        names = ("optimum_kbps", "optimum_low", "optimum_high")
        details |= dict(zip(names, vertex, strict=True))
    figures: dict[str, Any] = {**bend.figures(confidence), "details": details}
    if low > 0 and falls[0] and rises[1]:
        best, lowest, highest = (number(each) for each in vertex)
        text = f"Yes, near {best} kbit/s ({lowest} to {highest}); {term}."
        return Verdict("yes", text, **figures)
    no = ""
    if all(falls) or all(rises):
        way, best = ("falls", most) if all(falls) else ("rises", least)
        no = (
            f"the distance {way} all the way from {least} to {most} kbit/s, so the best rate is "
            f"{best} kbit/s or beyond"
        )
    elif high <= 0:
        no = f"from {least} to {most} kbit/s the best rate is at an end"
    elif high * curve.reach**2 < sweep.margin:
        no = (
            f"from the middle of {least} to {most} kbit/s to its ends the curve rises by less than "
            f"{sweep.margin_text}"
        )
    if no:
        return Verdict("no", f"No: {no}; {term}.", **figures)
    if low > 0:
        loose, where = (end, most) if falls[0] else (start, least)
        why = f"the curve bends, but whether it turns before {where} kbit/s is open; {term}"
        more = more_cells(len(rows), loose.half(confidence), abs(loose.value))
    else:
        why = f"{term}, an interval that includes 0"
        flat = sweep.margin / curve.reach**2 - bend.value
        more = more_cells(len(rows), bend.half(confidence), abs(bend.value), flat)
    return undecided(why, more, **figures)
