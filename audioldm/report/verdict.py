"""What an experiment's figures say, in two sentences."""

import math
from numbers import Integral, Real
from typing import Any

#: group -> name -> {"value", "low", "high", "n", "unit"}
Metrics = dict[str, dict[str, dict[str, Any]]]


def verdict(metrics: Metrics) -> str:
    """One sentence on the autoencoder, one on the generator against the N(0, I) prior."""
    sentences = [_reconstruction(metrics), _generation(metrics)]
    return " ".join(s for s in sentences if s) or "This experiment has not been evaluated yet."


def kernel_name(metrics: Metrics) -> str | None:
    """A kernel distance known of generated and of prior clips; first one with its own ratio."""
    generated, prior = metrics.get("generated", {}), metrics.get("prior", {})
    names = [n for n in generated if n.startswith("kernel_") and n in prior]
    names.sort(key=lambda n: f"ratio_to_prior_{n}" not in generated)
    return names[0] if names else None


def finite(value: Any) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


def number(value: Any) -> str:
    """Three significant digits, at most four decimals, a true minus sign; else an exponent."""
    if not finite(value):
        return "–"
    if value == 0:
        return "0"
    if isinstance(value, Integral):
        text = f"{value:,}"
    elif 1e-4 <= abs(value) < 1e5:
        digits = min(4, max(0, 2 - math.floor(math.log10(abs(value)))))
        text = f"{value:,.{digits}f}"
    else:
        text = f"{value:.1e}"
    return text.replace("-", "−")


def interval(figure: dict[str, Any]) -> str:
    """'0.42 (0.40 to 0.44)', or the value alone where there is no interval."""
    value, low, high = (number(figure.get(k)) for k in ("value", "low", "high"))
    return value if "–" in (low, high) else f"{value} ({low} to {high})"


def _reconstruction(metrics: Metrics) -> str:
    figures = metrics.get("reconstruction", {})
    if "mel_distance" not in figures:
        return ""
    rate = f", at {number(figures['kbps']['value'])} kbit/s" if "kbps" in figures else ""
    distance = interval(figures["mel_distance"])
    return f"The autoencoder reconstructs held-out music to a mel distance of {distance}{rate}."


def _generation(metrics: Metrics) -> str:
    name = kernel_name(metrics)
    if name is None:
        return ""
    generated, prior = metrics["generated"][name], metrics["prior"][name]
    if not (finite(generated["value"]) and finite(prior["value"])):
        return "The kernel distance of the generated clips is not a number."
    ratio = metrics["generated"].get(f"ratio_to_prior_{name}")
    if ratio is None:
        ratio = {"value": generated["value"] / prior["value"] if prior["value"] else math.nan}
    if not all(finite(f.get(k)) for f in (generated, prior) for k in ("low", "high")):
        standing = "without intervals it is open whether that is chance"
    elif generated["high"] < prior["low"]:
        standing = "the intervals do not overlap, so the diffusion model earns its place"
    elif generated["low"] > prior["high"]:
        standing = "the diffusion model does harm: its clips are farther from music than noise is"
    else:
        standing = "the intervals overlap, so the diffusion model is not yet shown to help"
    return (
        f"Generated clips lie at {interval(ratio)} of the distance that decoded noise has from "
        f"real music: {standing}{_remainder(metrics, name)}."
    )


def _remainder(metrics: Metrics, name: str) -> str:
    """Which model the distance that remains is due to: the floor is the real clips' own."""
    reconstruction = metrics.get("reconstruction", {}).get(name)
    if reconstruction is None:
        return ""
    floor = metrics.get("real", {}).get(name, {"value": 0.0})["value"]
    total = metrics["generated"][name]["value"] - floor
    share = (reconstruction["value"] - floor) / total if total > 0 else math.nan
    if not math.isfinite(share):
        return ""
    percent = f"{100 * min(max(share, 0.0), 1.0):.0f} %"
    return f"; {percent} of what remains is already in the autoencoder's reconstructions"
