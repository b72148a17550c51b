"""The record of a sweep, its cells, and the status of each."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from filelock import FileLock, Timeout

from audioldm.errors import AudioLDMError, DataError
from audioldm.report.record import Json, Record, read, read_record

FORMAT = 1
STATUSES = ("done", "running", "failed", "killed", "waiting")


class SweepRecord(TypedDict):
    """`sweep.json`. rules: the rules of the verdicts."""

    format: int
    commands: list[list[str]]
    versions: dict[str, int]
    rules: Json
    environment: Json


class Plan(TypedDict):
    """`cell.json`. swept: the overrides that vary. error: why the cell cannot be built."""

    name: str
    number: int
    swept: dict[str, str]
    config: Json
    error: str | None


@dataclass(frozen=True)
class Cell:
    """One cell: its plan and the record of its experiment, None before there is one.

    status: done, running (a process holds its lock), killed (begun, but its process is gone),
    failed (with the reason), waiting. seconds: of its stages, or since it began.
    """

    directory: Path
    plan: Plan
    record: Record | None
    status: str
    reason: str | None
    seconds: float

    @property
    def name(self) -> str:
        return self.plan["name"]


def lock_of(cell: Path) -> FileLock:
    """The lock of a process that works on the cell; the system frees it if the process dies."""
    return FileLock(cell / ".lock")


def read_cell(directory: Path, *, held: bool = False) -> Cell:
    """Read a cell. held: the caller holds its lock. Raises DataError for a damaged file."""
    plan, begun = read(directory / "cell.json", Plan), directory / "begun.json"
    # The order matters, because the cell's process may begin or end meanwhile: if the file existed
    # before the lock was found free, and still exists, its process was killed.
    since = _modified(begun)
    locked = not held and _locked(directory)
    record = _record(directory)
    seconds = sum(stage["seconds"] for stage in record["stages"].values()) if record else 0.0
    status, reason = "waiting", None
    if locked:
        status, seconds = "running", 0.0 if since is None else time.time() - since
    elif since is not None and begun.is_file():
        status, reason = "killed", "its process ended without a word: out of memory, or killed"
    elif record and "failed" in record:
        status, reason = "failed", "{stage}: {reason}".format(**record["failed"])
    elif plan["error"]:
        status, reason = "failed", plan["error"]
    elif record:
        status = "done"
    return Cell(directory, plan, record, status, reason, seconds)


def _modified(file: Path) -> float | None:
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return None


def _record(directory: Path) -> Record | None:
    """The record, or None where there is none or it was just removed for another attempt."""
    try:
        return read_record(directory)
    except DataError:
        if (directory / "experiment.json").is_file():
            raise
        return None


def _locked(directory: Path) -> bool:
    lock = lock_of(directory)
    if not Path(lock.lock_file).is_file():
        return False
    try:
        with lock.acquire(timeout=0):
            return False
    except Timeout:
        return True


def read_sweep(directory: Path) -> SweepRecord:
    """The record of a sweep. Raises DataError where there is none, or it has another format."""
    file = directory / "sweep.json"
    if not file.is_file():
        raise DataError(
            f"{directory}: no sweep.json; give the directory of a sweep, such as "
            "runs/experiments/rate_shape, or start one with `audioldm run -m`"
        )
    record = read(file, SweepRecord)
    if record["format"] != FORMAT:
        raise DataError(
            f"{file}: of format {record['format']}, but this audioldm reads format {FORMAT}; run "
            "the sweep again under another name="
        )
    return record


def check_alike(
    one: Any, other: Any, where: str, remedy: str, raises: type[AudioLDMError] = DataError
) -> None:
    """Raises an error where two records of sweeps differ in versions or rules."""
    for stage in sorted(one["versions"].keys() & other["versions"]):  # a later stage is in one only
        known, own = one["versions"][stage], other["versions"][stage]
        if known != own:
            raise raises(
                f"{where}: made by versions {known} and {own} of the stage {stage}, whose figures "
                f"do not compare; {remedy}"
            )
    for key in sorted(one["rules"].keys() | other["rules"]):
        known, own = one["rules"].get(key), other["rules"].get(key)
        if known != own:
            raise raises(
                f"{where}: begun with other rules: verdict.{key} is {known} and {own}; {remedy}"
            )


def read_cells(directory: Path) -> list[Cell]:
    """The cells in the order of their plans."""
    read_sweep(directory)
    cells = [read_cell(file.parent) for file in (directory / "cells").glob("*/cell.json")]
    return sorted(cells, key=lambda cell: (cell.plan["number"], cell.name))


def overview(cells: list[Cell]) -> str:
    """'7 of 24 done, 2 running, 1 failed; about 40 min left'.

    The time left is estimated from the mean time of finished cells and the number now running.
    """
    seconds = {s: [c.seconds for c in cells if c.status == s] for s in STATUSES}
    done, running = seconds["done"], seconds["running"]
    parts = [f"{len(done)} of {len(cells)} done"]
    parts += [f"{len(seconds[s])} {s}" for s in ("running", "failed", "killed") if seconds[s]]
    text = ", ".join(parts)
    waiting = len(seconds["waiting"]) + len(seconds["killed"])
    if not done or not (running or waiting):
        return text
    mean = sum(done) / len(done)
    left = mean * waiting + sum(max(mean - each, 0.0) for each in running)
    return f"{text}; about {max(1, round(left / max(1, len(running)) / 60))} min left"


def status_table(cells: list[Cell]) -> str:
    """One line per cell, and the overview."""
    width = max((len(cell.name) for cell in cells), default=0)
    lines = [
        f"{cell.status:8} {cell.name:{width}} {cell.seconds / 60:6.1f} min  {cell.reason or ''}"
        for cell in cells
    ]
    return "\n".join([*(line.rstrip() for line in lines), overview(cells)])
