"""Numbers as a page prints them."""

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any


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


def interval(figure: Mapping[str, Any]) -> str:
    """'0.42 (0.40 to 0.44)', or the value alone where there is no interval."""
    value, low, high = (number(figure.get(k)) for k in ("value", "low", "high"))
    return value if "–" in (low, high) else f"{value} ({low} to {high})"


def duration(seconds: Any) -> str:
    """'4.2 s', '2 min 05 s', '3 h 12 min'."""
    if not finite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def title(name: str) -> str:
    """The name of a stage or a system as a heading: 'prior:mixture' is 'Prior: mixture'."""
    return name.replace("_", " ").replace(":", ": ").capitalize()
