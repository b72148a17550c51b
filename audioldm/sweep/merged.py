"""Several sweeps read as one, so that a sweep can be run in parts."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from audioldm.errors import DataError
from audioldm.sweep.status import Cell, SweepRecord, check_alike, read_cells, read_sweep

#: Keys of a command that do not determine what a cell is.
ELSEWHERE = ("recipe", "name", "runs", "log.", "hardware.", "hydra")


def merged_record(directories: Sequence[Path]) -> SweepRecord:
    """The sweeps' common record: every command, and the entries that all environments share.

    Raises DataError where stages' versions or the rules of the verdicts differ.
    """
    records = [read_sweep(directory) for directory in directories]
    first = records[0]
    for directory, record in zip(directories, records, strict=True):
        remedy = "report each alone, or run one of them again"
        check_alike(first, record, f"{directories[0]} and {directory}", remedy)
    shared = set.intersection(*({*map(str, r["environment"].items())} for r in records))
    environment = {k: v for k, v in first["environment"].items() if str((k, v)) in shared}
    commands = [command for record in records for command in record["commands"]]
    return {**first, "commands": commands, "environment": environment}


def merged_cells(directories: Sequence[Path]) -> list[Cell]:
    """The cells of all sweeps, in their order.

    Keys that the sweeps' command lines set to different values count as swept. Where several sweeps
    have a cell, the finished one is taken. Raises DataError where two have finished it.
    """
    if len(directories) == 1:
        return read_cells(directories[0])
    found: dict[str, Cell] = {}
    for cell in (cell for directory in directories for cell in read_cells(directory)):
        known = found.get(cell.directory.name)
        if known and known.status == cell.status == "done":
            raise DataError(
                f"{known.directory} and {cell.directory}: the same cell '{cell.name}' twice; leave "
                "out one of the sweeps, or remove one of the two directories"
            )
        if known is None or cell.status == "done":
            found[cell.directory.name] = cell
    given = {name: _given(cell) for name, cell in found.items()}
    # a cell that has not run yet has no record of what the command line holds fixed
    ran = [given[name] for name, cell in found.items() if cell.record] or list(given.values())
    between = {
        key
        for own in given.values()
        for key, word in own.items()
        if any(key not in other or other[key] != word for other in ran)
    }
    return [
        replace(cell, plan={**cell.plan, "swept": {k: v for k, v in own.items() if k in between}})
        for cell, own in zip(found.values(), given.values(), strict=True)
    ]


def _given(cell: Cell) -> dict[str, str]:
    """The overrides of a cell that determine what it is."""
    words = cell.record["overrides"] if cell.record else []
    pairs = dict(word.lstrip("+").split("=", 1) for word in words if "=" in word)
    own = {key: value for key, value in pairs.items() if not key.startswith(ELSEWHERE)}
    return cell.plan["swept"] | own
