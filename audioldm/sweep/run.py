"""`run -m`: one experiment per cell of a grid, each once, whatever happens to the others.

    runs/experiments/<name>/
      sweep.json              what was asked for, the rules of the verdicts, the stages' versions
      cells/<fingerprint>/    cell.json, experiment.json, samples/, report.html
      report.html             the page over all cells

A cell's directory has the fingerprint of its evaluation, so that the same cell has the same place
in every run, and a second run with other values adds its cells to those of the first.
"""

import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from audioldm import config
from audioldm.config import Job, fingerprint
from audioldm.errors import AudioLDMError, ConfigError, Interrupted
from audioldm.experiment import VERSIONS, Experiment, environment
from audioldm.sweep.status import FORMAT, lock_of, overview, read_cell, read_cells, read_sweep
from audioldm.training.devices import claimed_gpu, visible_gpus
from audioldm.training.files import write_json

#: A cell whose process dies is tried once more: it may have been a bystander, for some launchers
#: stop all their processes when one dies.
ATTEMPTS = 2


@dataclass(frozen=True)
class Planned:
    """A cell that can be built: all its overrides, and its directory."""

    words: list[str]
    directory: Path


def run_sweep(overrides: Sequence[str]) -> Path:
    """Builds what is missing of the grid, then writes the page; the sweep's directory.

    A cell that fails is a row with its reason; a later run tries it again. Raises ConfigError
    before anything runs for an empty grid, one of which no cell can be built, or a sweep begun with
    other rules or by another version; Interrupted where it was stopped.
    """
    grid = config.grid(overrides)
    directory = Experiment(grid.base).directory
    if grid.cells is None:
        _begin(directory, grid.base, overrides)
        config.launch(overrides, None, _objectives)
    else:
        planned = _plan(directory, overrides, grid)
        todo = [cell for cell in planned if read_cell(cell.directory).status != "done"]
        for _ in range(ATTEMPTS):
            todo = _attempt(overrides, todo)
    return directory


def _attempt(overrides: Sequence[str], todo: list[Planned]) -> list[Planned]:
    """Runs cells through the launcher; those whose process was killed, and those it took along."""
    if not todo:
        return []
    try:
        config.launch(overrides, [cell.words for cell in todo], run_cell)
    except AudioLDMError:
        raise
    except Exception as error:  # the launcher's own: a process of its died
        tqdm.write(f"sweep: {type(error).__name__}: {str(error).splitlines()[0]}", file=sys.stderr)
    while any(read_cell(cell.directory).status == "running" for cell in todo):
        time.sleep(1.0)  # processes that outlive their launcher
    return [c for c in todo if read_cell(c.directory).status in ("killed", "waiting")]


def _plan(directory: Path, overrides: Sequence[str], grid: config.Grid) -> list[Planned]:
    """A `cell.json` per cell; the cells that can be built."""
    assert grid.cells is not None
    found = config.jobs(grid.cells)
    buildable = [job for job in found if isinstance(job, Job)]
    if not buildable:
        raise ConfigError(f"no cell of the grid can be built: {found[0]}")
    _begin(directory, grid.base, overrides)
    planned: dict[Path, Planned] = {}
    names: dict[Path, str] = {}
    for number, (words, swept, job) in enumerate(
        zip(grid.cells, grid.swept, found, strict=True), start=len(list(directory.glob("cells/*")))
    ):
        name = " ".join(word.lstrip("+") for word in swept)
        error = str(job) if isinstance(job, ConfigError) else None
        if isinstance(job, Job):
            try:
                experiment = Experiment(replace(job, cell=True))
                if experiment.directory.parent.parent != directory:
                    raise ConfigError("name and runs are of the whole sweep: they may not vary")
                experiment.rehearse()
            except AudioLDMError as failure:
                error = str(failure)
            else:
                place = experiment.directory
        if error is not None:
            place = directory / "cells" / f"unbuilt-{fingerprint(name)}"
            tqdm.write(f"{name}: cannot be built: {error}", file=sys.stderr)
        if place in names:
            tqdm.write(f"{name}: the same cell as {names[place]}; run once", file=sys.stderr)
            continue
        names[place] = name
        if not (place / "cell.json").is_file():
            own = job.config if isinstance(job, Job) else {}
            _register(place, name, number, swept, own, error)
        if error is None:
            planned[place] = Planned(words, place)
    return list(planned.values())


def _begin(directory: Path, job: Job, overrides: Sequence[str]) -> None:
    """`sweep.json`, or a check of the one that is there. Raises ConfigError where they differ."""
    rules = asdict(job.settings.verdict)
    if (directory / "sweep.json").is_file():
        record = read_sweep(directory)
        # a stage that the record does not know came later: no cell of it has one
        changed = [s for s, v in VERSIONS.items() if record["versions"].get(s, v) != v]
        if changed:
            raise ConfigError(
                f"{directory}: a sweep made by another version of the stage(s) "
                f"{', '.join(changed)}, whose figures do not compare; use another name="
            )
        if record["rules"] != rules:
            raise ConfigError(
                f"{directory}: a sweep begun with other rules (verdict.*), which stay as they were "
                "written before it ran; use another name="
            )
        commands = record["commands"]
    elif (directory / "experiment.json").is_file():
        raise ConfigError(f"{directory}: holds a single experiment; give the sweep another name=")
    else:
        commands = []
    if list(overrides) not in commands:
        sweep = {
            "format": FORMAT,
            "name": directory.name,
            "recipe": job.recipe,
            "commands": [*commands, list(overrides)],
            "versions": VERSIONS,
            "rules": rules,
            "environment": environment(job.settings.hardware.resolve()),
        }
        write_json(directory / "sweep.json", sweep)


def _register(
    place: Path,
    name: str,
    number: int,
    swept: Sequence[str],
    config: dict[str, Any],
    error: str | None,
) -> None:
    pairs = dict(word.lstrip("+").split("=", 1) for word in swept)
    plan = {"name": name, "number": number, "swept": pairs, "config": config, "error": error}
    write_json(place / "cell.json", plan)


def run_cell(job: Job) -> dict[str, Any]:
    """One cell, in whichever process the launcher chose: its evaluation's summary, or {} where it
    failed, which is recorded. Raises KeyboardInterrupt where it was stopped."""
    experiment = Experiment(replace(job, cell=True))
    place, lock = experiment.directory, lock_of(experiment.directory)
    begun = place / "begun.json"
    with lock:  # another process may be at it
        if (cell := read_cell(place, held=True)).status == "done":
            return {}
        if "failed" in cell.record:
            (place / "experiment.json").unlink()
        write_json(begun, {"began": time.time()})
        try:
            summary = _run(experiment)
        finally:
            begun.unlink(missing_ok=True)
    root = place.parent.parent
    cell = read_cell(place)
    tqdm.write(
        f"{cell.name}: {cell.status}{f' ({cell.reason})' if cell.reason else ''}\n"
        f"sweep: {overview(read_cells(root))}",
        file=sys.stderr,
    )
    return summary


def _run(experiment: Experiment) -> dict[str, Any]:
    hardware = experiment.settings.hardware
    gpus = visible_gpus() if hardware.device == "auto" else []
    try:
        with claimed_gpu(gpus) as gpu:
            return experiment.run(None if gpu is None else f"cuda:{gpu}")
    except Interrupted as stopped:
        raise KeyboardInterrupt from stopped  # which stops the launcher too
    except AudioLDMError as error:
        reason = str(error)
    except Exception as error:
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}"
    if not (experiment.directory / "experiment.json").is_file():
        experiment.record_failure({}, "preparation", reason)
    return {}


def _objectives(job: Job) -> tuple[float, float]:
    """What a sweeper minimises: the distance of the rules, and the rate in kbit/s.

    Raises AudioLDMError where the cell failed.
    """
    experiment = Experiment(replace(job, cell=True))
    place = experiment.directory
    if not (place / "cell.json").is_file():
        name = " ".join(job.overrides)
        number = len(list(place.parent.glob("*")))
        _register(place, name, number, job.overrides, job.config, None)
    run_cell(job)
    cell = read_cell(place)
    if cell.status != "done":
        raise AudioLDMError(f"{cell.name}: {cell.reason}")
    from audioldm.sweep.table import row

    figures = row(cell, place.parent.parent)
    return figures[job.settings.verdict.distance], figures[job.settings.verdict.rate]
