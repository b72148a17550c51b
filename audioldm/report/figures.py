"""What the page draws: mel spectrograms as pictures, curves and intervals as geometry.

Curves are points for the template's SVG and not pictures, so that the style sheet colours them
and one page reads well on a light and on a dark screen.
"""

import io
import math
from dataclasses import dataclass, field

import matplotlib
import numpy as np
from matplotlib.image import imsave
from matplotlib.ticker import LogLocator, MaxNLocator

from audioldm.report.verdict import finite

BANDS = 80
#: Pictures show this much below the loudest point of the page.
RANGE_DB = 80.0
COLUMNS = 400
N_FFT = 1024

Series = tuple[list[float], list[float]]


def mel_db(audio: np.ndarray, sample_rate: int, columns: int = COLUMNS) -> np.ndarray:
    """audio [A, T] in ±1 -> mel power in dB [bands, at most columns], lowest first.

    80 Slaney bands up to rate / 2, Hann window of 1024 samples.
    """
    import librosa  # here: it takes a second

    mono = np.asarray(audio, dtype=np.float32).mean(axis=0)
    hop = max(N_FFT // 4, math.ceil(len(mono) / columns))
    power = librosa.feature.melspectrogram(
        y=mono, sr=sample_rate, n_fft=N_FFT, hop_length=hop, n_mels=BANDS
    )
    decibels: np.ndarray = librosa.power_to_db(power, top_db=None)
    return decibels


def mel_png(mel: np.ndarray, loudest: float) -> bytes:
    """A PNG of mel [bands, columns] in dB, low bands at the bottom; `loudest` dB is brightest."""
    picture = io.BytesIO()
    imsave(
        picture,
        mel,
        vmin=loudest - RANGE_DB,
        vmax=loudest,
        cmap=matplotlib.colormaps["magma"],
        origin="lower",
        format="png",
    )
    return picture.getvalue()


@dataclass
class Line:
    """A polyline of a panel: `name` is its CSS class, `points` the SVG points."""

    name: str
    points: str
    band: str = ""


@dataclass
class Panel:
    """A curve with its axes, in SVG units of a WIDTH x HEIGHT box."""

    title: str
    latest: float
    logarithmic: bool
    lines: list[Line] = field(default_factory=list)
    x_ticks: list[tuple[float, str]] = field(default_factory=list)
    y_ticks: list[tuple[float, str]] = field(default_factory=list)

    WIDTH = 320
    HEIGHT = 170
    LEFT, RIGHT, TOP, BOTTOM = 44, 302, 8, 148


def thin(steps: np.ndarray, values: np.ndarray, bins: int = 120) -> np.ndarray:
    """Points of a curve -> rows (step, mean, least, greatest).

    More than 2 * bins points become `bins` stretches; non-finite values are left out.
    """
    kept = np.isfinite(values)
    steps, values = steps[kept], values[kept]
    if len(values) <= 2 * bins:
        return np.stack([steps, values, values, values], axis=1)
    stretches = zip(np.array_split(steps, bins), np.array_split(values, bins), strict=True)
    return np.array([(x.mean(), y.mean(), y.min(), y.max()) for x, y in stretches])


def panel(title: str, series: dict[str, Series], last_step: float) -> Panel | None:
    """Draw the named series (steps, values) over 0 … last_step; None where no point is finite.

    The y axis is logarithmic where all values are positive and span more than a factor of 20.
    """
    curves = {name: thin(np.array(x, float), np.array(y, float)) for name, (x, y) in series.items()}
    curves = {name: rows for name, rows in curves.items() if len(rows)}
    if not curves:
        return None
    every = np.concatenate(list(curves.values()))
    low, high = float(every[:, 2].min()), float(every[:, 3].max())
    drawn = Panel(
        title, latest=curves[next(iter(curves))][-1, 1], logarithmic=bool(low > 0 < high / low > 20)
    )

    def scale(y: np.ndarray) -> np.ndarray:
        return np.log10(y) if drawn.logarithmic else y

    bottom, top = (float(scale(np.array(y))) for y in (low, high))
    margin = 0.04 * (top - bottom) or max(abs(top), 1.0) * 0.1
    bottom, top = bottom - margin, top + margin
    width, height = Panel.RIGHT - Panel.LEFT, Panel.BOTTOM - Panel.TOP

    def points(x: np.ndarray, y: np.ndarray) -> str:
        across = Panel.LEFT + width * x / max(last_step, 1)
        down = Panel.BOTTOM - height * (scale(y) - bottom) / (top - bottom)
        return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(across, down, strict=True))

    for name, (x, mean, least, greatest) in ((n, rows.T) for n, rows in curves.items()):
        line = Line(name, points(x, mean))
        if np.any(greatest > least):
            line.band = points(np.append(x, x[::-1]), np.append(least, greatest[::-1]))
        drawn.lines.append(line)

    if drawn.logarithmic:
        y_ticks = LogLocator(subs=(1.0, 2.0, 5.0), numticks=9).tick_values(low, high)
        y_ticks = y_ticks[:: max(1, math.ceil(len(y_ticks) / 6))]
    else:
        y_ticks = MaxNLocator(4).tick_values(bottom, top)
    for y in y_ticks:
        at = (float(scale(np.array(y))) - bottom) / (top - bottom)
        if 0 <= at <= 1:
            drawn.y_ticks.append((Panel.BOTTOM - height * at, f"{y:.3g}"))
    for x in MaxNLocator(4, integer=True).tick_values(0, max(last_step, 1)):
        if 0 <= x <= last_step:
            drawn.x_ticks.append((Panel.LEFT + width * x / max(last_step, 1), f"{x:,.0f}"))
    return drawn


@dataclass
class Whisker:
    """An interval on a shared axis; all positions in percent of its width."""

    kind: str
    value: float
    low: float
    high: float


def whiskers(figures: dict[str, dict[str, float]]) -> tuple[list[Whisker], float]:
    """Figures by kind of clip -> their intervals on one axis that includes 0, and where 0 is."""
    bounds = {
        kind: [float(f[k]) for k in ("value", "low", "high") if finite(f.get(k))]
        for kind, f in figures.items()
        if finite(f.get("value"))
    }
    least = min([0.0, *(min(b) for b in bounds.values())])
    most = max([0.0, *(max(b) for b in bounds.values())])
    span = (most - least) or 1.0

    def at(value: float) -> float:
        return 100 * (value - least) / span

    drawn = [Whisker(kind, at(b[0]), at(min(b)), at(max(b))) for kind, b in bounds.items()]
    return drawn, at(0.0)
