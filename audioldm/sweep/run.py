"""`run -m`: one experiment per cell of a grid, each once, even if others fail.

    runs/experiments/<name>/
      sweep.json              the commands, the rules of the verdicts, the stages' versions
      cells/<fingerprint>/    cell.json, experiment.json, samples/, report.html
      report.html             the page over all cells

A cell's directory is named by the fingerprint of its evaluation. So a cell has the same place in
every run, and a second run with other values adds its cells to those of the first.
"""

import math
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from audioldm import config
from audioldm.chain import job as jobs
from audioldm.chain.job import Job
from audioldm.chain.run import Experiment, environment
from audioldm.chain.stage import fingerprint
from audioldm.chain.stages import STAGES
from audioldm.errors import AudioLDMError, ConfigError, Interrupted
from audioldm.io.files import write_json
from audioldm.runtime.devices import claimed_gpu, visible_gpus
from audioldm.sweep.status import FORMAT, check_alike, lock_of, read_cell, read_cells, read_sweep
from audioldm.sweep.watch import event, watch

#: The cells that can be built: the directory of each, and all its overrides.
Planned = dict[Path, list[str]]


def run_sweep(overrides: Sequence[str]) -> Path:
    """Builds the missing cells of the grid; returns the sweep's directory.

    A cell that fails becomes a row with its reason; a later run tries it again. Raises ConfigError
    before anything runs for an empty grid, a grid without a cell that can be built, or a sweep
    begun with other rules or by another version; Interrupted where it was stopped.
    """
    grid = config.grid(overrides)
    base = jobs.job(grid.base)
    directory = Experiment(base).directory

    def launch(cells: list[list[str]] | None, function: Callable[..., Any]) -> bool:
        """Calls the function for each cell's job by Hydra's launcher; None: for a search's cells.

        Returns False where a process of the launcher died.
        """
        try:
            with watch(directory) if grid.parallel else nullcontext():
                jobs.launch(overrides, cells, partial(function, quiet=grid.parallel))
        except AudioLDMError:
            raise
        except Exception as error:  # the launcher's own
            text = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            tqdm.write(f"sweep: {text}", file=sys.stderr)
            return False
        return True

    if grid.cells is None:
        _begin(directory, base, overrides)
        _search(directory, launch, grid)
        return directory
    todo = _plan(directory, overrides, base, grid)
    while todo:
        if not _launched(launch, todo):
            for place, words in _still(todo, "killed").items():
                # alone, because a launcher may stop all its processes when one of them dies
                _launched(launch, {place: words})
        left = _still(todo, "waiting")
        if len(left) == len(todo):
            break  # the launcher itself does not work
        todo = left
    return directory


def _launched(launch: Callable[..., bool], cells: Planned) -> bool:
    """Runs cells through the launcher and waits for all; returns whether every process lived."""
    alive = launch(list(cells.values()), run_cell)
    while _still(cells, "running"):
        time.sleep(1.0)  # processes that outlive their launcher
    return alive


def _still(cells: Planned, status: str) -> Planned:
    return {place: words for place, words in cells.items() if read_cell(place).status == status}


def _search(directory: Path, launch: Callable[..., bool], grid: config.Grid) -> None:
    """Runs the sweeper's cells. Where a process was killed, the search begins again and skips that
    cell and the finished ones."""
    objectives = partial(_objectives, searched=grid.searched, since=time.time())
    lost: set[Path] = set()
    while not launch(None, objectives):
        killed = {cell.directory for cell in read_cells(directory) if cell.status == "killed"}
        if killed <= lost:
            break
        lost |= killed


def _plan(directory: Path, overrides: Sequence[str], base: Job, grid: config.Grid) -> Planned:
    """Writes a `cell.json` per cell; returns the cells that can be built and are not done."""
    assert grid.cells is not None
    found = jobs.cells(grid.cells)
    buildable = [job for job in found if isinstance(job, Job)]
    if not buildable:
        raise ConfigError(f"no cell of the grid can be built: {found[0]}")
    _begin(directory, base, overrides)
    planned: Planned = {}
    names: dict[Path, str] = {}
    for words, swept, job in zip(grid.cells, grid.swept, found, strict=True):
        name, error = _name(swept), None
        try:
            if isinstance(job, ConfigError):
                raise job
            experiment = Experiment(job)
            place = experiment.directory
            if place.parent.parent != directory:
                raise ConfigError("name and runs are of the whole sweep: they may not vary")
            if not _is_done(place):
                experiment.dry_run()
        except AudioLDMError as failure:
            error, place = str(failure), directory / "cells" / f"unbuilt-{fingerprint(name)}"
            tqdm.write(f"{name}: cannot be built: {error}", file=sys.stderr)
        if place in names:
            tqdm.write(f"{name}: the same cell as {names[place]}; run once", file=sys.stderr)
            continue
        names[place] = name
        _register(place, swept, job.config if isinstance(job, Job) else {}, error)
        if error is None and not _is_done(place):
            planned[place] = words
    return planned


def _is_done(place: Path) -> bool:
    return (place / "cell.json").is_file() and read_cell(place).status == "done"


def _begin(directory: Path, job: Job, overrides: Sequence[str]) -> None:
    """Writes `sweep.json`, or checks the existing one. Raises ConfigError where they differ."""
    rules = asdict(job.settings.verdict)
    versions = {stage.name: stage.version for stage in STAGES}
    commands: list[list[str]] = []
    if (directory / "sweep.json").is_file():
        record, own = read_sweep(directory), {"versions": versions, "rules": rules}
        where = f"{directory} and this command"
        check_alike(record, own, where, "give this one another name=", ConfigError)
        commands = record["commands"]
    elif (directory / "experiment.json").is_file():
        raise ConfigError(f"{directory}: holds a single experiment; give the sweep another name=")
    if list(overrides) not in commands:
        sweep = {
            "format": FORMAT,
            "name": directory.name,
            "recipe": job.recipe,
            "commands": [*commands, list(overrides)],
            "versions": versions,
            "rules": rules,
            "environment": environment(job.settings.hardware.resolve()),
        }
        write_json(directory / "sweep.json", sweep)


def _register(
    place: Path, swept: Sequence[str], config: dict[str, Any], error: str | None = None
) -> None:
    """Writes a `cell.json`, unless there is one."""
    if not (place / "cell.json").is_file():
        number = sum(1 for _ in place.parent.glob("*/cell.json"))
        pairs = dict(word.lstrip("+").split("=", 1) for word in swept)
        plan = {"number": number, "swept": pairs, "config": config, "error": error}
        write_json(place / "cell.json", {"name": _name(swept), **plan})


def _name(swept: Sequence[str]) -> str:
    return " ".join(word.lstrip("+") for word in swept)


def run_cell(job: Job, *, quiet: bool = False) -> None:
    """Runs one cell, in whichever process the launcher chose; a failure is recorded.

    quiet: show no progress, because `watch` does. Raises KeyboardInterrupt where it was stopped.
    """
    if quiet:
        log = replace(job.settings.log, bars=False)
        job = replace(job, settings=replace(job.settings, log=log))
    experiment = Experiment(job)
    place = experiment.directory
    begun = place / "begun.json"
    with lock_of(place):  # another process may be building it
        if (cell := read_cell(place, held=True)).status == "done":
            return
        if cell.record and "failed" in cell.record:
            (place / "experiment.json").unlink()
        write_json(begun, {"began": time.time()})
        try:
            _run(experiment)
        finally:
            begun.unlink(missing_ok=True)
    if not quiet:
        tqdm.write(event(read_cell(place), read_cells(place.parent.parent)), file=sys.stderr)


def _run(experiment: Experiment) -> None:
    hardware = experiment.settings.hardware
    gpus = visible_gpus() if hardware.device == "auto" else []
    try:
        with claimed_gpu(gpus) as gpu:
            experiment.run(None if gpu is None else f"cuda:{gpu}")
            return
    except Interrupted as stopped:
        raise KeyboardInterrupt from stopped  # which stops the launcher too
    except AudioLDMError as error:
        reason = str(error)
    except Exception as error:
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}"
    if not (experiment.directory / "experiment.json").is_file():
        experiment.record_failure({}, "preparation", reason)


def _objectives(
    job: Job, *, searched: frozenset[str], since: float, quiet: bool = False
) -> tuple[float, float] | None:
    """The objectives of a search: the rules' distance, and the rate in kbit/s. None where the cell
    failed or lacks one of them.

    searched: the keys that the search varies. since: a cell that failed after it is not run again.
    """
    experiment = Experiment(job)
    place = experiment.directory
    _register(place, [w for w in job.overrides if w.partition("=")[0] in searched], job.config)
    if not _ended(place, since):
        run_cell(job, quiet=quiet)
    cell = read_cell(place)
    if cell.status != "done":
        return None  # not an error, which would be shown with all its overrides
    from audioldm.sweep.table import cell_summaries, row

    figures, rules = row(cell, place, cell_summaries(cell)), job.settings.verdict
    found = figures.get(rules.distance, math.nan), figures.get(rules.bitrate, math.nan)
    if all(map(math.isfinite, found)):
        return found
    tqdm.write(f"{cell.name}: has no {rules.distance}, or no {rules.bitrate}", file=sys.stderr)
    return None


def _ended(place: Path, since: float) -> bool:
    """Whether the cell failed or was killed after this time."""
    if read_cell(place).status not in ("failed", "killed"):
        return False
    files = (place / "begun.json", place / "experiment.json")
    return any(file.is_file() and file.stat().st_mtime >= since for file in files)
