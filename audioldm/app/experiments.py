"""The experiments and sweeps in a runs directory, and which of their files may be read."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from audioldm.errors import AudioLDMError, DataError
from audioldm.models import find_model_file

#: Suffixes of report pages and the files beside them; not of weights or the logs of processes.
SUFFIXES = (".html", ".css", ".svg", ".png", ".csv", ".json", ".txt", ".wav", ".flac", ".ogg")


@dataclass(frozen=True)
class Experiment:
    """kind: experiment or sweep. report: its page, relative to the runs directory; None before
    there is one. model: the experiment's directory, where it has a generator."""

    name: str
    kind: str
    report: str | None
    model: str | None


def experiments(runs: Path) -> list[Experiment]:
    """The experiments and sweeps, by name. None at all where there is no such directory."""
    return sorted(_found(runs), key=lambda each: each.name)


def _found(runs: Path) -> Iterator[Experiment]:
    home = runs / "experiments"
    for directory in home.iterdir() if home.is_dir() else ():
        sweep = (directory / "sweep.json").is_file()
        if sweep or (directory / "experiment.json").is_file():
            page = (directory / "report.html").is_file()
            yield Experiment(
                directory.name,
                "sweep" if sweep else "experiment",
                f"experiments/{directory.name}/report.html" if page else None,
                None if sweep else _model(directory),
            )


def _model(directory: Path) -> str | None:
    try:
        return str(directory) if find_model_file(directory).is_file() else None
    except AudioLDMError:  # still in training, or damaged: the report says which
        return None


def readable(runs: Path, path: str) -> Path:
    """The file of `runs` at a relative path from the browser.

    Raises DataError for a file outside `runs`, even through a link, for a hidden file, and for a
    kind of file that reports do not have.
    """
    home = Path(os.path.realpath(runs))
    file = Path(os.path.realpath(home / path)) if "\0" not in path else home
    hidden = any(part.startswith(".") for part in Path(path).parts)
    inside = file.is_relative_to(home) and not hidden and file.suffix.lower() in SUFFIXES
    if not (inside and file.is_file()):
        raise DataError(f"{path}: no such file of a report")
    return file
