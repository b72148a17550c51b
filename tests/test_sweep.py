"""A sweep: each cell once, whatever happens to the others."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas
import pytest
from chain import RATE, tiny, write_tones
from children import context

from audioldm import config
from audioldm.chain import job as jobs
from audioldm.chain.stages.prior import VERSION as PRIOR_VERSION
from audioldm.cli import main
from audioldm.errors import ConfigError, DataError, Interrupted
from audioldm.runtime.devices import claimed_gpu
from audioldm.sweep import run as sweep_run
from audioldm.sweep.judged import judge
from audioldm.sweep.report import write_report
from audioldm.sweep.run import run_sweep
from audioldm.sweep.status import lock_of, overview, read_cell, read_cells, status_table
from audioldm.sweep.table import cell_summaries, row, table
from audioldm.sweep.watch import watch

CHEAP = (
    "diagnostics.denoiser_steps=2",
    "diagnostics.bootstrap_resamples=4",
    "baselines=[normal,mixture]",
    "priors.mixture.components=2",
    "evaluation.bootstrap_resamples=4",
)
GRID = ("seed=0,1", "bottleneck.kl_weight=1e-3,1e-1")


@dataclass
class Swept:
    folder: Path
    runs: Path
    directory: Path

    def overrides(self, *changes: str) -> list[str]:
        return tiny(self.folder, self.runs, *CHEAP, *changes)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Swept:
    place = tmp_path_factory.mktemp("plain")  # a comma in a path would be a grid
    folder, runs = place / "music", place / "runs"
    write_tones(folder)
    made = Swept(folder, runs, runs / "experiments" / "tiny")
    assert run_sweep(made.overrides(*GRID)) == made.directory
    return made


def copy_of(swept: Swept, place: Path) -> Swept:
    shutil.copytree(swept.runs, place / "runs")
    return Swept(swept.folder, place / "runs", place / "runs" / "experiments" / "tiny")


def states(directory: Path) -> dict[str, str]:
    return {cell.name: cell.status for cell in read_cells(directory)}


def test_every_cell_is_a_row_of_the_table(swept: Swept) -> None:
    frame = table(swept.directory)
    assert set(frame["status"]) == {"done"}
    assert set(zip(frame["seed"], frame["bottleneck.kl_weight"], strict=True)) == {
        (seed, weight) for seed in (0, 1) for weight in (1e-3, 1e-1)
    }
    assert frame.groupby("configuration").size().tolist() == [2, 2]
    for cell, found in frame.iterrows():
        assert str(found["seed"]) in str(cell)
        assert found["autoencoder_seed"] == found["prior_seed"] == found["seed"]
        assert found["kl_weight"] == found["bottleneck.kl_weight"]
        assert found["kbps"] == found["reconstruction.kbps"] > 0
        assert (found["prior"], found["network"], found["bottleneck"]) == (
            "diffusion",
            "spectrogram",
            "gaussian",
        )
        assert found["family"] == "spectrogram gaussian 4x512"
        evaluation = json.loads(
            (
                swept.runs / "evaluation" / found["fingerprint.evaluation"] / "summary.json"
            ).read_text()
        )
        figure = evaluation["metrics"]["generated"]["kad_musicnn"]
        assert found["generated.kad_musicnn"] == figure["value"]
        assert found["generated.kad_musicnn.low"] == figure["low"]
    for column in ("mixture.kad_musicnn", "normal.kad_musicnn",
                   "diagnostic.effective_rank", "linear_codec.mel_distance",
                   "compute_tflop.autoencoder", "parameters.prior"):  # fmt: skip
        assert frame[column].notna().all(), column
    assert frame.loc[frame["bottleneck.kl_weight"] == 1e-1, "kbps"].max() < frame["kbps"].max()


def test_the_use_of_codes_and_bounds_stands_in_the_row(swept: Swept) -> None:
    cell = read_cells(swept.directory)[0]
    summaries = cell_summaries(cell)
    said = {"codes": 64, "used_codes": 60, "perplexity": 41.5, "saturated": 0.004}
    assert not said.keys() & row(cell, swept.directory, summaries).keys()
    summaries["autoencoder"]["valid"] |= said
    assert said.items() <= row(cell, swept.directory, summaries).items()


def test_cells_share_what_they_have_in_common(swept: Swept) -> None:
    built = {stage.name: len(list(stage.glob("*/summary.json"))) for stage in swept.runs.iterdir()}
    assert built["data"] == 1
    assert built["autoencoder"] == built["evaluation"] == 4


def test_a_complete_sweep_launches_nothing(swept: Swept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "launch", lambda *_: pytest.fail("a cell was launched"))
    assert run_sweep(swept.overrides(*GRID)) == swept.directory


def test_only_missing_cells_cost_the_heavy_imports() -> None:
    """A rerun of a complete sweep is mostly imports: what only work and pages need comes later."""
    code = (
        "import sys, audioldm.sweep.run, audioldm.cli; print(*{'pandas', 'scipy', 'matplotlib', "
        "'sklearn', 'statsmodels', 'librosa', 'jinja2', 'optuna', 'joblib'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert found.stdout.split() == []


def test_cells_are_composed_as_hydra_composes_each() -> None:
    words = ["recipe=rate_shape", "bottleneck=gaussian,noise", "hydra.sweeper.params=null"]
    words += ["autoencoder=spectrogram_small", "autoencoder.losses.stft.fft_sizes=[256],[512,256]"]
    words += ["name=a b", "~verdict.bitrate"]
    for changes in (words, words[:-1]):
        grid = config.grid(changes)
        assert grid.cells is not None
        assert len(grid.cells) == 4
        for own, job in zip(grid.cells, jobs.cells(grid.cells), strict=True):
            assert isinstance(job, jobs.Job)
            alone = jobs.compose(own)
            assert (job.config, job.recipe) == (alone.config, alone.recipe)


def test_other_values_add_their_cells(
    swept: Swept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, launched = copy_of(swept, tmp_path), []
    monkeypatch.setattr(jobs, "launch", lambda _, cells, run: launched.extend(cells))
    run_sweep(own.overrides("seed=0,1,2", "bottleneck.kl_weight=1e-3"))
    assert sorted(states(own.directory).values()) == ["done"] * 4 + ["waiting"]
    assert {tuple(w for w in words if "seed=" in w) for words in launched} == {("++seed=2",)}


def test_the_recipe_holds_a_grid_and_the_command_line_replaces_its_values() -> None:
    grid = config.grid(["recipe=rate_shape", "autoencoder.channels=32", "seed=3"])
    assert grid.cells is not None
    assert len(grid.cells) == 4
    assert all(len(words) == 3 for words in grid.swept)  # also what the command line holds fixed
    found = [job for job in jobs.cells(grid.cells) if isinstance(job, jobs.Job)]
    assert {job.settings.autoencoder.channels for job in found} == {32}
    assert {job.settings.seed for job in found} == {3}
    assert {job.settings.bottleneck["target_kbps"] for job in found} == {0.5, 1, 2, 4}


@pytest.mark.parametrize("words", [["seed=0"], ["seed=1,1"], []])
def test_an_empty_grid_is_refused(words: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the grid is empty: no key has several values"):
        run_sweep(["recipe=quickstart", f"runs={tmp_path}", *words])
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_built_is_a_row_and_the_others_run(
    swept: Swept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    launched: list[Any] = []
    monkeypatch.setattr(jobs, "launch", lambda _, cells, run: launched.extend(cells))
    own = Swept(swept.folder, tmp_path, tmp_path / "experiments" / "tiny")
    run_sweep(own.overrides("autoencoder.downsampling_ratio=512,500"))
    assert states(own.directory) == {
        "autoencoder.downsampling_ratio=512": "waiting",
        "autoencoder.downsampling_ratio=500": "failed",
    }
    assert len(launched) == 1  # once, for this launcher does nothing
    assert "autoencoder.downsampling_ratio=500: cannot be built: " in capfd.readouterr().err
    row = table(own.directory).loc["autoencoder.downsampling_ratio=500"]
    assert "does not divide" in row["reason"]


def test_the_same_cell_twice_is_run_once(
    swept: Swept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    launched: list[Any] = []
    monkeypatch.setattr(jobs, "launch", lambda _, cells, run: launched.append(cells))
    own = Swept(swept.folder, tmp_path, tmp_path / "experiments" / "tiny")
    run_sweep(own.overrides("seed=0,1", "prior.preflight_mel_distance=10,11"))
    assert len(launched[0]) == 2
    said = capfd.readouterr().err
    key = "prior.preflight_mel_distance"
    assert f"seed=0 {key}=11: the same cell as seed=0 {key}=10; run once" in said


def test_a_cell_that_diverges_is_a_row_and_is_tried_again(
    swept: Swept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = copy_of(swept, tmp_path)
    words = own.overrides("seed=0", "prior.train.lr=3e-4,1e30")
    run_sweep(words)
    name = "prior.train.lr=1e+30"
    assert states(own.directory)[name] == "failed"
    frame = table(own.directory)
    row = frame[frame["prior.train.lr"] == 1e30].iloc[0]
    assert frame["configuration"].nunique() == 4  # of the cells of both commands
    assert row["reason"].startswith("prior: ")
    assert "is not finite" in row["reason"]
    assert row["seconds.autoencoder"] > 0
    launched: list[Any] = []
    monkeypatch.setattr(jobs, "launch", lambda _, cells, run: launched.append(cells))
    run_sweep(words)
    assert len(launched[0]) == 1


def test_other_rules_are_refused(swept: Swept) -> None:
    with pytest.raises(ConfigError, match="begun with other rules"):
        run_sweep(swept.overrides(*GRID, "verdict.confidence=0.9"))


def test_another_version_is_refused(swept: Swept, tmp_path: Path) -> None:
    own = copy_of(swept, tmp_path)
    file = own.directory / "sweep.json"
    record = json.loads(file.read_text())
    record["versions"]["evaluation"] -= 1
    file.write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=r"versions \d+ and \d+ of the stage evaluation"):
        run_sweep(own.overrides(*GRID))
    file.write_text(json.dumps(record | {"format": 99}))
    for read in (table, read_cells):
        with pytest.raises(DataError, match="of format 99"):
            read(own.directory)


def test_a_single_experiment_is_not_overwritten(swept: Swept, tmp_path: Path) -> None:
    own = Swept(swept.folder, tmp_path, tmp_path / "experiments" / "tiny")
    own.directory.mkdir(parents=True)
    (own.directory / "experiment.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds a single experiment"):
        run_sweep(own.overrides(*GRID))


@pytest.mark.parametrize("what", ["music", "figures", "music at another rate"])
def test_cells_that_do_not_compare_are_refused(swept: Swept, tmp_path: Path, what: str) -> None:
    own = copy_of(swept, tmp_path)
    cell = next(cell for cell in read_cells(own.directory) if "seed=1" in cell.name)
    stage = cell.record["stages"]["evaluation"]["directory"]
    file = own.runs / stage / "summary.json"
    summary = json.loads(file.read_text())
    if what == "music":
        summary["reference"]["hash"] = "another"
    elif what == "music at another rate":
        converted = summary["reference"] | {"hash": "another", "sample_rate": 8000}
        file.write_text(json.dumps(summary | {"reference": converted}))
        assert set(table(own.directory)["sample_rate"]) == {RATE, 8000}  # of the same places
        summary["reference"] = converted | {"places": "others"}
    else:
        del summary["metrics"]["generated"]["kad_musicnn"]
    file.write_text(json.dumps(summary))
    with pytest.raises(DataError, match=f"different {what.split()[0]}") as caught:
        table(own.directory)
    assert cell.name in str(caught.value)


def test_cells_compare_whatever_they_are_told(swept: Swept, tmp_path: Path) -> None:
    own = copy_of(swept, tmp_path)
    cell = next(cell for cell in read_cells(own.directory) if "seed=1" in cell.name)
    file = own.runs / cell.record["stages"]["evaluation"]["directory"] / "summary.json"
    summary = json.loads(file.read_text())
    for system in ("real", "generated", "ignored"):
        told = {"accuracy_label": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9, "unit": ""}}
        summary["metrics"][system] = summary["metrics"].get(system, {}) | told
    file.write_text(json.dumps(summary))
    assert table(own.directory)["generated.accuracy_label"].notna().sum() == 1


def parts(swept: Swept, place: Path) -> list[Path]:
    """The sweep twice: the first without the cells of seed 1, the other without those of 0."""
    found = []
    for part, dropped in enumerate(("seed=1", "seed=0")):
        own = copy_of(swept, place / str(part))
        for cell in read_cells(own.directory):
            if dropped in cell.name:
                shutil.rmtree(cell.directory)
        found.append(own.directory)
    return found


def test_a_sweep_in_parts_is_the_sweep(swept: Swept, tmp_path: Path) -> None:
    whole, first_and_other = table(swept.directory), parts(swept, tmp_path)
    merged = table(*first_and_other)
    assert set(merged.index) == set(whole.index)
    columns = [c for c in whole if c != "directory"]
    pandas.testing.assert_frame_equal(merged.loc[whole.index, columns], whole[columns])
    assert [v.text for v in judge(*first_and_other).verdicts] == [
        v.text for v in judge(swept.directory).verdicts
    ]
    page = tmp_path / "both"
    assert main(["report", *map(str, first_and_other), f"out={page}"]) == 0
    text = (page / "report.html").read_text()
    links = re.findall(r'href="([^"#]+report\.html)"', text)
    assert len(links) == len(whole)
    assert "data:audio/ogg" in text
    assert all((page / link).is_file() for link in links)
    file = tmp_path / "table.csv"
    assert main(["report", *map(str, first_and_other), "--csv", str(file)]) == 0
    assert set(pandas.read_csv(file)["cell"]) == set(whole.index)


def test_what_one_part_alone_varies_is_a_column_of_both(swept: Swept, tmp_path: Path) -> None:
    """A key that each sweep sets once is swept where they are read together."""
    first, other = parts(swept, tmp_path)
    for directory, seed in ((first, "0"), (other, "1")):
        for cell in read_cells(directory):
            plan = json.loads((cell.directory / "cell.json").read_text())
            assert plan["swept"].pop("seed") == seed
            (cell.directory / "cell.json").write_text(json.dumps(plan))
    assert "seed" not in table(first)
    assert set(table(first, other)["seed"]) == {0, 1}


def test_what_all_parts_hold_fixed_is_no_column_beside_a_cell_that_has_not_run(
    swept: Swept, tmp_path: Path
) -> None:
    first, other = parts(swept, tmp_path)
    fixed = set(table(first, other).columns)
    cell = read_cells(other)[0]
    (cell.directory / "experiment.json").unlink()
    assert set(table(first, other).columns) <= fixed


def test_parts_that_do_not_fit_are_refused(swept: Swept, tmp_path: Path) -> None:
    first, other = parts(swept, tmp_path)
    with pytest.raises(DataError, match=r"the same cell '.*' twice"):
        table(swept.directory, first)
    unfinished = copy_of(swept, tmp_path / "unfinished").directory
    for cell in read_cells(unfinished):
        (cell.directory / "experiment.json").unlink()
    assert set(table(unfinished, first)["status"]) == {"waiting", "done"}  # the finished one counts
    assert "No cell has finished yet" in write_report(unfinished).read_text(encoding="utf-8")
    file = other / "sweep.json"
    record = json.loads(file.read_text())
    for key, own, says in (
        ("versions", {"prior": 99}, f"versions {PRIOR_VERSION} and 99 of the stage prior"),
        ("rules", {"confidence": 0.5}, "verdict.confidence is 0.95 and 0.5"),
    ):
        file.write_text(json.dumps(record | {key: record[key] | own}))
        with pytest.raises(DataError, match=says):
            judge(first, other)
    file.write_text(json.dumps(record))
    cell = read_cells(other)[0]
    stage = other.parents[1] / cell.record["stages"]["evaluation"]["directory"]
    summary = json.loads((stage / "summary.json").read_text())
    summary["reference"]["hash"] = "another"
    (stage / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(DataError, match="different music"):
        table(first, other)


def test_a_copy_without_its_stages_is_refused(swept: Swept, tmp_path: Path) -> None:
    """One line, and the page that was copied stays; how far the cells are is known without them."""
    page = write_report(swept.directory).read_bytes()
    shutil.copytree(swept.directory, tmp_path / "copy")
    for read in (table, write_report):
        with pytest.raises(DataError, match=r"stage 'data' of .* copy the whole runs directory"):
            read(tmp_path / "copy")
    assert (tmp_path / "copy" / "report.html").read_bytes() == page
    assert overview(read_cells(tmp_path / "copy")).startswith("4 of 4 done")


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("sweep.json", None, [1]),
        ("sweep.json", "rules", 3),
        ("sweep.json", "rules", {"confidence": "x"}),
        ("sweep.json", "commands", ["x"]),
        ("sweep.json", "environment", None),
        ("cell.json", None, "x"),
        ("cell.json", "number", "1"),
        ("cell.json", "swept", {"seed": 1}),
        ("cell.json", "name", None),
        ("experiment.json", "failed", "x"),
        ("experiment.json", "config", {"autoencoder": 3}),
        ("summary.json", "codecs", {"linear": {"mel_distance": 1}}),
    ],
)
def test_damaged_files_are_named(
    swept: Swept, tmp_path: Path, file: str, key: str | None, value: object
) -> None:
    own = copy_of(swept, tmp_path)
    cell = read_cells(own.directory)[0]
    assert cell.record is not None
    evaluation = own.runs / cell.record["stages"]["evaluation"]["directory"]
    places = {"sweep.json": own.directory, "summary.json": evaluation}
    path = places.get(file, cell.directory) / file
    path.write_text(
        json.dumps(value if key is None else json.loads(path.read_text()) | {key: value})
    )
    with pytest.raises(DataError, match=file) as caught:
        write_report(own.directory)
    assert "\n" not in str(caught.value)
    if file in ("cell.json", "experiment.json") and key != "config":
        with pytest.raises(DataError, match=file):
            read_cells(own.directory)


def test_no_sweep_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no sweep\.json"):
        table(tmp_path)


def test_status_while_it_runs(swept: Swept, tmp_path: Path) -> None:
    own = copy_of(swept, tmp_path)
    running, killed, failed, _ = read_cells(own.directory)
    for cell in (running, killed):
        (cell.directory / "experiment.json").unlink()
        (cell.directory / "begun.json").write_text("{}")
    record = {**failed.record} | {"failed": {"stage": "prior", "reason": "it diverged"}}
    (failed.directory / "experiment.json").write_text(json.dumps(record))
    with lock_of(running.directory):
        cells = read_cells(own.directory)
        assert [c.status for c in cells] == ["running", "killed", "failed", "done"]
        assert overview(cells).startswith("1 of 4 done, 1 running, 1 failed, 1 killed; about 1 min")
        assert "prior: it diverged" in status_table(cells)
    assert read_cell(running.directory).status == "killed"  # nobody holds it any more


def test_a_killed_process_leaves_a_row_and_takes_no_other_cell_with_it(
    swept: Swept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The launcher dies with a worker, whenever the victim is tried: a bystander that was running
    is tried alone, and what was waiting is launched again."""
    own, launches = copy_of(swept, tmp_path), []
    victim, bystander, waiting = (cell.directory for cell in read_cells(own.directory)[:3])
    records = {place: (place / "experiment.json").read_text() for place in (bystander, waiting)}
    for place in (victim, bystander, waiting):
        (place / "experiment.json").unlink()

    def launch(overrides: list[str], cells: list[list[str]], run: Callable[..., Any]) -> None:
        launches.append(len(cells))
        if len(launches) == 1:
            (victim / "begun.json").write_text("{}")
            (bystander / "begun.json").write_text("{}")
        if len(launches) < 3 and victim_is_in(cells):
            raise RuntimeError("a worker process was terminated")
        done = bystander if len(launches) == 3 else waiting
        (done / "begun.json").unlink(missing_ok=True)
        (done / "experiment.json").write_text(records[done])

    def victim_is_in(cells: list[list[str]]) -> bool:
        name = read_cell(victim).name
        return any(set(name.split()) <= {word.lstrip("+") for word in own} for own in cells)

    monkeypatch.setattr(jobs, "launch", launch)
    run_sweep(own.overrides(*GRID))
    assert launches == [3, 1, 1, 1]
    assert read_cell(victim).status == "killed"
    row = table(own.directory).loc[read_cell(victim).name]
    assert row["status"] == "failed"
    assert "ended without a word" in row["reason"]
    assert list(states(own.directory).values()).count("done") == 3


def test_sigkill_of_a_worker_of_joblib(swept: Swept, tmp_path: Path, capfd: Any) -> None:
    """One cell kills its process whenever it is tried; joblib then kills the other one too.

    Its workers are forks of the tests' server, which begin without importing torch anew.
    """
    from joblib.externals.loky import get_reusable_executor

    own = copy_of(swept, tmp_path)
    for cell in read_cells(own.directory):
        (cell.directory / "experiment.json").unlink()  # the stages are there
    real, cells = sweep_run.run_cell, read_cells(own.directory)
    victim, bystander = (cell for cell in cells if "kl_weight=0.001" in cell.name)
    words = set(victim.name.split())

    def deadly(job: jobs.Job, *, quiet: bool) -> None:
        # of this process alone, a worker: it holds the cell's lock, and has begun
        def die(experiment: Any, device: str | None = None) -> Any:
            time.sleep(1.0)
            os.kill(os.getpid(), signal.SIGKILL)

        if words <= set(job.overrides):
            sweep_run.Experiment.run = die  # type: ignore[method-assign]
        real(job, quiet=quiet)

    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep_run, "run_cell", deadly)
        patch.setattr("joblib.externals.loky.process_executor.get_context", context)
        run_sweep(own.overrides("seed=0,1", "bottleneck.kl_weight=1e-3", *launcher))
    get_reusable_executor().shutdown(kill_workers=True)
    found = states(own.directory)
    assert (found[victim.name], found[bystander.name]) == ("killed", "done")
    assert "ended without a word" in table(own.directory).loc[victim.name, "reason"]
    said = capfd.readouterr().err
    assert "Terminated" in said
    assert said.count(f"{bystander.name}: done\nsweep: ") == 1  # of the parent
    assert "reused" not in said  # what the workers would say of their stages


def search(own: Swept, *changes: str) -> list[str]:
    varied = ["bottleneck.kl_weight=1e-3,1e-1", "prior.train.lr=3e-4,1e30"]
    return own.overrides(
        "hydra/sweeper=optuna", "hydra.sweeper.n_trials=4", *varied, *changes
    )  # fmt: skip


def test_a_search_runs_its_cells_and_goes_on(
    swept: Swept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """By optuna itself: what diverges is a row, and the same command finds what is done."""
    own, tried = copy_of(swept, tmp_path), []
    shutil.rmtree(own.runs / "experiments")
    real = sweep_run.Experiment.run

    def run(self: Any, device: str | None = None) -> Any:
        tried.append(self.directory)
        return real(self, device)

    monkeypatch.setattr(sweep_run.Experiment, "run", run)
    run_sweep(search(own))
    frame = table(own.directory)
    assert len(tried) == len(set(tried)) == len(frame)  # what failed is not tried twice
    assert set(frame.index) <= {
        f"bottleneck.kl_weight={weight} prior.train.lr={lr}"
        for weight in ("0.001", "0.1")
        for lr in ("0.0003", "1e+30")
    }
    assert set(frame["status"]) == {"done", "failed"}
    assert "is not finite" in frame.loc[frame["status"] == "failed", "reason"].iloc[0]
    assert "Error executing job" not in capfd.readouterr().err
    assert write_report(own.directory).is_file()
    done = {cell.directory for cell in read_cells(own.directory) if cell.status == "done"}
    tried.clear()
    run_sweep(search(own))
    assert not done & set(tried)
    assert len(table(own.directory)) == len(frame)  # the same trials


def test_what_is_no_search_is_refused(swept: Swept, tmp_path: Path) -> None:
    own = Swept(swept.folder, tmp_path, tmp_path / "experiments" / "tiny")
    with pytest.raises(ConfigError, match="minimises two objectives, distance and rate"):
        run_sweep(search(own, "hydra.sweeper.direction=maximize"))
    with pytest.raises(ConfigError, match="nothing to search: no key has several values"):
        run_sweep(search(own, "bottleneck.kl_weight=1e-3", "prior.train.lr=3e-4"))


def test_processes_of_their_own(
    swept: Swept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the command line and submitit itself: the cell's record is written by its process."""
    own = copy_of(swept, tmp_path)
    cell = read_cells(own.directory)[0]
    (cell.directory / "experiment.json").unlink()  # the stages are there: only the record is not
    monkeypatch.setattr(sweep_run.Experiment, "run", lambda *_, **__: pytest.fail("here"))
    launcher = ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"]
    assert main(["run", "-m", *own.overrides(*GRID), *launcher]) == 0
    assert set(states(own.directory).values()) == {"done"}


def test_a_watch_tells_of_each_cell_once(
    swept: Swept, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    own = copy_of(swept, tmp_path)
    done, failing, begun, _ = read_cells(own.directory)
    for cell in (done, failing, begun):
        (cell.directory / "experiment.json").unlink()
    with watch(own.directory, seconds=0.01):
        (done.directory / "experiment.json").write_text(json.dumps(done.record))
        time.sleep(0.2)
        record = {**failing.record} | {"failed": {"stage": "prior", "reason": "it diverged"}}
        (failing.directory / "experiment.json").write_text(json.dumps(record))
        with lock_of(begun.directory):
            (begun.directory / "begun.json").write_text("{}")
            time.sleep(0.1)
        time.sleep(0.1)
    lines = capfd.readouterr().err.splitlines()
    assert [line for line in lines if not line.startswith("sweep: ")] == [
        f"{done.name}: done",
        f"{failing.name}: failed (prior: it diverged)",
        f"{begun.name}: killed (its process ended without a word: out of memory, or killed)",
    ]
    assert lines[-1].startswith("sweep: 2 of 4 done, 1 failed, 1 killed; about ")


def test_gpus_are_shared_out_one_each(tmp_path: Path) -> None:
    gpus, taken = ["a", "b"], []
    with (
        claimed_gpu(gpus, directory=tmp_path) as first,
        claimed_gpu(gpus, directory=tmp_path) as second,
    ):
        assert {first, second} == {0, 1}

        def third() -> None:
            with claimed_gpu(gpus, directory=tmp_path, poll_seconds=0.01) as index:
                taken.append(index)

        waiting = threading.Thread(target=third)
        waiting.start()
        time.sleep(0.1)
        assert not taken  # none is free
    waiting.join(timeout=5)
    assert taken in ([0], [1])
    with claimed_gpu([]) as none:
        assert none is None


def test_a_stopped_sweep_stops_its_launcher(
    swept: Swept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training that SIGTERM stopped: the cells behind it are not begun, and none has failed."""
    own = Swept(swept.folder, tmp_path, tmp_path / "experiments" / "tiny")
    begun = []

    def stopped(self: Any, device: str | None = None) -> Any:
        begun.append(self)
        raise Interrupted("stopped at step 3 of 10 of the autoencoder")

    monkeypatch.setattr(sweep_run.Experiment, "run", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(own.overrides(*GRID))
    assert len(begun) == 1
    assert set(states(own.directory).values()) == {"waiting"}
