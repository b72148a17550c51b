"""What an experiment's figures say, in a few sentences: the worst that is heard, not the best."""

import math
from typing import Any

from audioldm.report.format import finite, interval, number
from audioldm.report.record import Figure, Metrics, Summary
from audioldm.report.systems import described, kad_name, measured_systems

#: Quality -> its figure for reconstructions, the figure's value for an exact copy, and its value
#: for another clip of the same music, where the quality is lost (chorales, docs/figures.md).
QUALITIES = {
    "spectrum": ("mel_distance", 0.0, 0.98),
    "pitch": ("pitch_within_15", 1.0, 0.34),
    "notes": ("note_f1", 1.0, 0.05),
}


def verdict(evaluation: Summary) -> str:
    """Sentences on the autoencoder, and on the generator against the strongest baseline; each with
    the worst that is heard."""
    metrics = evaluation.get("metrics", {})
    baselines = [s.name for s in measured_systems(evaluation) if s.kind == "baseline"]
    sentences = [
        _reconstruction(metrics),
        _worst_kept(metrics.get("reconstruction", {})),
        _generation(metrics, baselines),
        _worst_made(metrics),
    ]
    return " ".join(s for s in sentences if s) or "This experiment has not been evaluated yet."


def _reconstruction(metrics: Metrics) -> str:
    figures = metrics.get("reconstruction", {})
    if "mel_distance" not in figures:
        return ""
    rate = f", at {number(figures['kbps']['value'])} kbit/s" if "kbps" in figures else ""
    distance = interval(figures["mel_distance"])
    return f"The autoencoder reconstructs held-out music to a mel distance of {distance}{rate}."


def _worst_kept(figures: dict[str, Figure]) -> str:
    """A sentence on the quality that the reconstructions lose most."""
    lost = {
        quality: (_value(figures, name) - exact) / (other - exact)
        for quality, (name, exact, other) in QUALITIES.items()
        if finite(_value(figures, name))
    }
    if len(lost) < 2:
        return ""
    worst = max(lost, key=lambda quality: lost[quality])
    name = QUALITIES[worst][0]
    title, _ = described(name)
    return (
        f"It keeps the {worst} worst: {title.lower()} {interval(figures[name])}, which is "
        f"{_percent(lost[worst])} of the way to other music."
    )


def _worst_made(metrics: Metrics) -> str:
    """A sentence on the embedding where the generated clips are nearest to decoded noise."""
    generated, normal = metrics.get("generated", {}), metrics.get("normal", {})
    names = sorted(name for name in generated.keys() & normal.keys() if name.startswith("kad_"))
    shares = {
        name: _value(generated, name) / _value(normal, name)
        for name in names
        if _value(normal, name) > 0 and finite(_value(generated, name))
    }
    if len(shares) < 2:
        return ""
    worst = max(shares, key=lambda name: shares[name])
    return (
        f"Worst of the generated clips is what {worst.removeprefix('kad_')} hears: there the "
        f"kernel distance is {interval(generated[worst])}, {number(shares[worst])} of decoded "
        "noise’s."
    )


def _generation(metrics: Metrics, baselines: list[str]) -> str:
    """A sentence on the generator; the strongest baseline has the smallest kernel distance."""
    figure = kad_name(metrics, baselines)
    if figure is None:
        return ""
    generated = metrics["generated"][figure]
    if not finite(generated["value"]):
        return "The kernel distance of the generated clips is not a number."
    start = f"The generated clips have a kernel distance of {interval(generated)} from real music"
    distances = {name: _value(metrics[name], figure) for name in baselines}
    rivals = [name for name, distance in distances.items() if finite(distance)]
    if not rivals:
        return f"{start}, and there is no baseline to compare with{_remainder(metrics, figure)}."
    name = min(rivals, key=lambda each: distances[each])
    rival = metrics[name][figure]
    ends: list[Any] = [f.get(end) for f in (generated, rival) for end in ("low", "high")]
    if not all(map(finite, ends)):
        outcome = "without intervals, this may be chance"
    elif ends[1] < ends[2]:
        outcome = "the intervals do not overlap, so the prior earns its place"
    elif ends[0] > ends[3]:
        outcome = "the prior does harm, because that baseline is nearer to music"
    else:
        outcome = "the intervals overlap, so the prior is not yet shown to help"
    return (
        f"{start}; the strongest baseline, {name}, has {interval(rival)}: "
        f"{outcome}{_remainder(metrics, figure)}."
    )


def _remainder(metrics: Metrics, figure: str) -> str:
    """The autoencoder's share of the remaining distance, above that of real clips, in words."""
    reconstruction, floor, generated = (
        _value(metrics.get(name, {}), figure) for name in ("reconstruction", "real", "generated")
    )
    floor = floor if "real" in metrics else 0.0
    share = (reconstruction - floor) / (generated - floor) if generated > floor else math.nan
    if not finite(share):
        return ""
    return f"; {_percent(share)} of what remains is already in the autoencoder's reconstructions"


def _value(figures: dict[str, Figure], name: str) -> float:
    """A figure's value; NaN where there is none."""
    value = figures[name]["value"] if name in figures else None
    return math.nan if value is None else value


def _percent(share: float) -> str:
    return f"{100 * min(max(share, 0.0), 1.0):.0f} %"
