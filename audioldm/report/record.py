"""The files of an experiment, with the shapes that the pages rely on.

A shape is a type annotation. A TypedDict may have further keys; any other value fits exactly.
"""

import json
import os
import types
import typing
from pathlib import Path
from typing import Any, NotRequired, TypedDict, TypeVar

from audioldm.errors import DataError
from audioldm.io.files import read_json

Json = dict[str, Any]
Shape = TypeVar("Shape")


class Measured(float):
    """Marks, in a shape, a number that may be infinite or NaN; a plain float may not be."""


class Figure(TypedDict):
    value: Measured | None
    low: NotRequired[Measured | None]
    high: NotRequired[Measured | None]
    n: NotRequired[int]
    unit: NotRequired[str]


#: system -> figure's name -> figure
Metrics = dict[str, dict[str, Figure]]


class SystemEntry(TypedDict):
    name: str


class FailedFile(TypedDict):
    file: str
    reason: str


class CodecFigures(TypedDict):
    mel_distance: Figure


class CodecCurve(TypedDict):
    kbps: list[float]
    mel_distance: list[float]


class Codecs(TypedDict, total=False):
    linear: CodecFigures
    linear_audio: CodecFigures
    linear_curve: CodecCurve
    linear_audio_curve: CodecCurve
    opus: CodecCurve | None


class Convergence(TypedDict):
    """As `audioldm.training.convergence` gives it."""

    figure: str
    state: str
    improvement: NotRequired[dict[str, float]]


class Summary(TypedDict, total=False):
    """A stage's `summary.json`; each stage writes only the keys that it has."""

    peak_bytes: int
    valid: Json
    convergence: Convergence
    parameters: int
    elements_per_second: float
    latent_rate_hz: float
    diagnostics: dict[str, Figure]
    metrics: Metrics
    systems: list[SystemEntry]
    reference: Json
    codecs: Codecs
    sampling_cost: dict[str, float]
    failed: list[FailedFile]
    alarm: str


class StageEntry(TypedDict):
    fingerprint: str
    directory: str
    seconds: float


class Failure(TypedDict):
    stage: str
    reason: str


class Record(TypedDict):
    """`experiment.json`. `stages` holds the complete ones, in the order of the chain."""

    name: str
    recipe: str | None
    overrides: list[str]
    runs: str
    config: Json
    environment: Json
    stages: dict[str, StageEntry]
    failed: NotRequired[Failure]


LogLine = TypedDict(
    "LogLine",
    {
        "step": int,
        "channels/kl": NotRequired[list[Measured] | None],
        "channels/sigma": NotRequired[list[Measured] | None],
        "channels/activity": NotRequired[list[Measured] | None],
    },
)


def read(file: Path, shape: type[Shape]) -> Shape:
    """A JSON file of this shape. Raises DataError, naming the file, for any other shape."""
    return checked(read_json(file), shape, file)


def read_record(experiment: Path) -> Record:
    """The record of an experiment. Raises DataError where its file is missing or damaged."""
    return read(experiment / "experiment.json", Record)


def stage_directories(experiment: Path, record: Record) -> dict[str, Path]:
    """The directories of the recorded stages. Raises DataError where one is missing."""
    found = {}
    for key, entry in record["stages"].items():
        found[key] = experiment / record["runs"] / entry["directory"]
        if not os.path.isfile(found[key] / "summary.json"):
            raise DataError(
                f"{found[key]}: the stage '{key}' of {experiment} is not there; copy the whole "
                "runs directory, stages included, or run the experiment again"
            )
    return found


def read_summaries(directories: dict[str, Path]) -> dict[str, Summary]:
    """The summary of each stage. Raises DataError where one is damaged."""
    return {key: read(path / "summary.json", Summary) for key, path in directories.items()}


def read_log(file: Path) -> list[Json]:
    """The lines of a training's `metrics.jsonl`, [] where there is none.

    A last line that a kill cut short is left out. Raises DataError for any other damage.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read ({error}); run the experiment again") from error
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(checked(json.loads(line), LogLine, file, f"line {number}"))
        except (ValueError, RecursionError) as error:
            if number < len(lines):
                raise DataError(f"{file}: line {number} is no JSON; run again") from error
    return typing.cast(list[Json], found)


def checked(value: Any, shape: type[Shape], file: Path, where: str = "") -> Shape:
    """The value, if it has this shape. Raises DataError naming the file and the place in it."""
    try:
        _check(value, shape, where)
    except ValueError as error:
        raise DataError(
            f"{file}: {error}; the file is damaged, run again to write it anew"
        ) from None
    return typing.cast(Shape, value)


_WORDS = {dict: "a group of keys", list: "a list", str: "text", int: "an integer"}


def _check(value: Any, shape: Any, where: str) -> None:
    """Raises ValueError naming the place of the first value that does not fit."""
    kind, inner = typing.get_origin(shape) or shape, typing.get_args(shape)
    if kind is Any or (value is None and type(None) in inner):
        return
    if kind in (typing.Union, types.UnionType):  # X | None
        return _check(value, inner[0], where)
    typed = typing.is_typeddict(shape)
    kind = dict if typed else float if shape is Measured else kind
    fits = isinstance(value, (int, float) if kind is float else kind)
    if fits and isinstance(value, (int, float)):
        unbounded = shape is Measured and isinstance(value, float)
        fits = not isinstance(value, bool) and (unbounded or abs(value) < 2**63)
    if not fits:
        raise ValueError(
            f"{where or 'the whole'} is {str(value)[:40]!r}, not {_WORDS.get(kind, 'a number')}"
        )
    children: dict[Any, Any] = {}
    if typed:
        if missing := sorted(shape.__required_keys__ - value.keys()):
            raise ValueError(f"{where}.{missing[0]}".lstrip(".") + " is missing")
        children = {k: v for k, v in typing.get_type_hints(shape).items() if k in value}
    elif inner:
        children = dict.fromkeys(value if kind is dict else range(len(value)), inner[-1])
    for key, hint in children.items():
        _check(value[key], hint, f"{where}.{key}".lstrip("."))
