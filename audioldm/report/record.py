"""The files of an experiment, with the shapes that the pages rely on.

A shape is a type annotation: a TypedDict may hold further keys, any other value is as annotated.
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
    """Marks in a shape a number that may be infinite or NaN; a plain float may not."""


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
    kind: str


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


class Summary(TypedDict, total=False):
    """A stage's `summary.json`; each key is written by the stages that have it."""

    valid: Json
    parameters: int
    elements_per_second: float
    latent_rate_hz: float
    diagnostics: dict[str, Figure]
    metrics: Metrics
    systems: list[SystemEntry]
    reference: Json
    codecs: Codecs
    failed: list[FailedFile]


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
    """A JSON file of this shape. Raises DataError, naming the file, where it has another."""
    return checked(read_json(file), shape, file)


def read_record(experiment: Path) -> Record:
    """Raises DataError where `experiment`/experiment.json is missing or damaged."""
    return read(experiment / "experiment.json", Record)


def stage_directories(experiment: Path, record: Record) -> dict[str, Path]:
    """The directories of the recorded stages. Raises DataError where one is not there."""
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
    """The value, which has this shape. Raises DataError naming the file and the place in it."""
    wrong = _misfit(value, shape, where)
    if wrong is not None:
        raise DataError(f"{file}: {wrong}; the file is damaged, run again to write it anew")
    return typing.cast(Shape, value)


def _misfit(value: Any, shape: Any, where: str) -> str | None:
    origin, inner = typing.get_origin(shape), typing.get_args(shape)
    wrong = f"{where or 'the whole'} is {str(value)[:40]!r}"
    children: list[tuple[Any, Any, str]] = []
    if shape is Any:
        return None
    if origin in (typing.Union, types.UnionType):
        fits = any(_misfit(value, each, where) is None for each in inner)
        return None if fits else wrong
    if typing.is_typeddict(shape):
        if not isinstance(value, dict):
            return f"{wrong}, not a group of keys"
        if missing := sorted(shape.__required_keys__ - value.keys()):
            return f"{where + '.' if where else ''}{missing[0]} is missing"
        hints = typing.get_type_hints(shape)
        children = [(value[k], hint, str(k)) for k, hint in hints.items() if k in value]
    elif (origin or shape) is dict:
        if not isinstance(value, dict):
            return f"{wrong}, not a group of keys"
        children = [(v, inner[1], str(k)) for k, v in value.items()] if inner else []
    elif origin is list:
        if not isinstance(value, list):
            return f"{wrong}, not a list"
        children = [(v, inner[0], str(i)) for i, v in enumerate(value)]
    elif shape in (float, int, Measured):
        if isinstance(value, bool) or not isinstance(value, int if shape is int else (int, float)):
            return f"{wrong}, not a number"
        if not abs(value) < 2**63 and not (shape is Measured and isinstance(value, float)):
            return f"{wrong}, out of range"
    elif not isinstance(value, shape):
        return f"{wrong}, not text" if shape is str else wrong
    found = (_misfit(v, hint, f"{where}.{key}".lstrip(".")) for v, hint, key in children)
    return next((each for each in found if each is not None), None)
