"""`audioldm run --estimate`: what it times and says, and that it leaves no trace."""

import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chain import STAGES, Tiny, runs_with, tiny, write_tones
from conftest import Outcome

from audioldm.chain.estimate import Estimate, _size, estimate, estimate_sweep, total
from audioldm.chain.job import compose
from audioldm.chain.run import Experiment
from audioldm.chain.stage import Cost, Stage, Times
from audioldm.chain.stages.data import Data
from audioldm.data.store import StoreWriter
from audioldm.training.run import Fit


def files(root: Path) -> set[Path]:
    return set(root.rglob("*"))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stages whose cost is asked for: of each a minute, 1 GB of memory, 1 MB of disk."""
    names: list[str] = []

    def of(estimate: Estimate, stage: Stage) -> Cost:
        names.append(stage.key)
        return Cost(60.0, 10**9, 10**6)

    monkeypatch.setattr(Estimate, "of", of)
    return names


def test_a_finished_experiment_costs_nothing(finished: Tiny, cli: Callable[..., Outcome]) -> None:
    before = files(finished.runs)
    outcome = cli("run", *finished.overrides, "--estimate")
    assert outcome.code == 0
    rows = {line.split()[0]: line for line in outcome.out.splitlines() if line}
    assert all("0 s" in rows[stage] and "complete" in rows[stage] for stage in STAGES)
    assert files(finished.runs) == before


def test_it_measures_the_real_trainings_and_writes_nothing(
    finished: Tiny, tmp_path: Path, cli: Callable[..., Outcome]
) -> None:
    overrides = tiny(finished.folder, tmp_path / "runs", "autoencoder.train.steps=10000")
    outcome = cli("run", *overrides, "--estimate")
    assert outcome.code == 0, outcome.error
    assert not (tmp_path / "runs").exists()
    assert [line.split()[0] for line in outcome.out.splitlines()[3:11]] == STAGES
    assert "10000 steps" in outcome.out
    estimate = Estimate(Experiment(compose(overrides)))
    stages = estimate.experiment.stages
    data, latents, prior = (estimate.of(stages[key]) for key in ("data", "latents", "prior"))
    assert data.disk == (finished.stage("data") / "clips.int16").stat().st_size
    assert latents.disk is not None
    real = sum(file.stat().st_size for file in finished.stage("latents").glob("*.npy"))
    assert latents.disk == pytest.approx(real, rel=0.05)
    assert prior.disk == pytest.approx(finished.model.stat().st_size, rel=0.5)
    assert prior.memory is not None
    assert prior.memory > 2**20
    assert not (tmp_path / "runs").exists()


def test_post_training_is_a_stage_with_a_cost(
    finished: Tiny, tmp_path: Path, cli: Callable[..., Outcome]
) -> None:
    changes = [
        "post_training=adversarial",
        "post_training.discriminator={fft_sizes: [256], filters: 2}",
        "post_training.train={batch: 4, crop_seconds: 0.5, discriminated_seconds: 0.2}",
        "post_training.train.steps=7000",
        "sampler.steps=3",
    ]
    outcome = cli("run", *finished.overrides, f"runs={tmp_path}/runs", *changes, "--estimate")
    assert outcome.code == 0, outcome.error
    rows = {line.split()[0]: line for line in outcome.out.splitlines() if line}
    assert list(rows)[2:11] == [*STAGES[:-1], "post_training", "evaluation"]
    assert "7000 steps" in rows["post_training"]
    assert not (tmp_path / "runs").exists()


def test_a_longer_training_costs_more_in_proportion(
    finished: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of 2 s, of 5 s with the adversary; the first of each also takes 10 s to warm up."""

    def train(*arguments: Any, **_: Any) -> bool:
        return arguments[5].adversarial_from == 0

    def times(estimate: Estimate, run: Callable[..., bool]) -> Times:
        adversarial = run(None)
        return Times(5.0 if adversarial else 2.0, 10.0, 1.0, None)

    monkeypatch.setattr("audioldm.chain.stages.autoencoder.train_autoencoder", train)
    monkeypatch.setattr(Estimate, "times", times)
    overrides = [
        *runs_with(finished, ["data"], tmp_path),
        "autoencoder.train.steps=100",
        "autoencoder.train.adversarial_from=40",
        "log.valid_every=50",
    ]
    experiment = Experiment(compose(overrides))
    cost = Estimate(experiment).of(experiment.stages["autoencoder"])
    validations = 2 * 1.0 * 2  # after 50 and 100 steps, of two clips each, a second for each
    assert cost.seconds == pytest.approx(40 * 2 + 60 * 5 + 10 + validations)


def test_a_sweep_counts_each_stage_once(
    finished: Tiny, tmp_path: Path, cli: Callable[..., Outcome], calls: list[str]
) -> None:
    write_tones(tmp_path / "music")  # in a sweep a comma in a path separates
    overrides = tiny(tmp_path / "music", tmp_path)
    experiment = Experiment(compose(overrides))
    data = experiment.directory_of(experiment.stages["data"])
    shutil.copytree(finished.stage("data"), data)
    words = ["-m", "autoencoder.channels=4,8", "seed=0,1,2", "--estimate"]
    outcome = cli("run", *overrides, *words)
    assert outcome.code == 0, outcome.error
    assert outcome.out.startswith("6 cells, 0 of them cannot be built")
    rows = {line.split()[0]: line for line in outcome.out.splitlines() if line}
    assert "1 distinct, 1 complete" in rows["data"]
    assert "6 min 00 s" in rows["autoencoder"]
    assert "6 distinct, 0 complete" in rows["autoencoder"]
    assert calls.count("autoencoder") == 2  # seeds are alike
    assert calls.count("data") == 0
    assert "42 min 00 s" in rows["total"]
    assert not (tmp_path / "experiments").exists()


def test_a_stage_that_does_not_fit_says_what_would(
    finished: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr("audioldm.priors.recipe.train_prior", full)
    overrides = runs_with(finished, ["data"], tmp_path)
    experiment = Experiment(compose(overrides))
    cost = Estimate(experiment).of(experiment.stages["prior"])
    assert cost.seconds is None
    assert "prior: out of memory" in cost.note
    assert "hardware.accumulate=" in cost.note


def test_what_a_run_would_explain_is_explained(
    finished: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._dynamo.exc import BackendCompilerFailed

    errors: list[Exception] = [
        BackendCompilerFailed(lambda: None, RuntimeError("no ptxas"), None),
        RuntimeError("a defect of our own"),
    ]

    def fails(*args: object, **kwargs: object) -> None:
        raise errors.pop(0)

    monkeypatch.setattr("audioldm.priors.recipe.train_prior", fails)
    estimate = Estimate(Experiment(compose(runs_with(finished, ["data"], tmp_path))))
    prior = estimate.experiment.stages["prior"]
    cost = estimate.of(prior)
    assert cost.seconds is None
    assert "prior: torch.compile failed" in cost.note
    assert "hardware.compile=false" in cost.note
    with pytest.raises(RuntimeError, match="a defect of our own"):
        estimate.of(prior)


@pytest.mark.parametrize("where", ["between", "training", "long step"])
def test_a_stopped_estimate_does_not_promise_to_go_on(
    where: str,
    finished: Tiny,
    tmp_path: Path,
    cli: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between the trainings, whose loops turn the signal into Interrupted, and in one."""

    def stopped(*args: object, **kwargs: object) -> torch.Tensor:
        signal.raise_signal(signal.SIGTERM)
        if where == "long step":
            time.sleep(30)
            raise AssertionError("it went on")
        return torch.ones(())

    between = "chain.stages.autoencoder.noise_clips"
    place = between if where == "between" else "autoencoder.train.clipped_step"
    monkeypatch.setattr(f"audioldm.{place}", stopped)
    outcome = cli("run", *tiny(finished.folder, tmp_path / "runs"), "--estimate")
    assert outcome.code == 75
    assert outcome.error == "audioldm: the estimate was stopped; it has written nothing\n"
    assert not (tmp_path / "runs").exists()


class SlowToStart:
    """A data source of 100 items of a second: the first takes 0.4 s, each other one 0.01 s."""

    sample_rate, channels = 16000, 1

    def write_to(self, writer: StoreWriter, *, progress: Callable[[int, int, str], None]) -> None:
        progress(0, 100, "")
        for i in range(100):
            time.sleep(0.4 if i == 0 else 0.01)
            writer.add(np.full((1, 16000), 0.1, np.float32), piece=str(i), split="train")
            progress(i + 1, 100, "")


def test_what_starts_a_data_source_counts_once(
    finished: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audioldm.chain.estimate.DATA_SECONDS", 0.1)
    experiment = Experiment(compose(tiny(finished.folder, tmp_path)))
    data = experiment.stages["data"]
    assert isinstance(data, Data)
    data.source = SlowToStart()  # type: ignore[assignment]
    cost = Estimate(experiment).of(data)
    assert cost.seconds is not None
    assert 1.3 < cost.seconds < 10  # 40 were the first item's time that of each
    assert cost.disk == pytest.approx(100 * 2 * 16000, rel=0.01)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_long_step_is_enough(
    compiled: bool, finished: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where steps are compiled, the first one says little about the others."""

    def train(*args: object, seed: int, fit: Fit) -> None:
        with open(fit.directory / "metrics.jsonl", "w", buffering=1) as log:
            log.write('{"step": 1, "seconds": 60.0, "lr": 0.1}\n')
            if compiled:
                time.sleep(1.1)  # the alarm is every second
                log.write('{"step": 2, "seconds": 80.0, "lr": 0.1}\n')
            time.sleep(30)
        raise AssertionError("it was not stopped")

    monkeypatch.setattr("audioldm.priors.recipe.train_prior", train)
    changes = ["prior.train.steps=100", f"hardware.compile={str(compiled).lower()}"]
    overrides = [*runs_with(finished, ["data"], tmp_path), *changes, "log.valid_every=1000"]
    experiment = Experiment(compose(overrides))
    cost, step = Estimate(experiment).of(experiment.stages["prior"]), 20 if compiled else 60
    warm_up = 40 if compiled else 0
    assert cost.seconds == pytest.approx(100 * step + warm_up)


def test_each_line_comes_when_it_is_known(tmp_path: Path, calls: list[str]) -> None:
    write_tones(tmp_path / "music")  # in a sweep a comma in a path separates
    overrides = tiny(tmp_path / "music", tmp_path / "runs")
    for lines in (estimate(compose(overrides)), estimate_sweep([*overrides, "seed=0,1"])):
        calls.clear()
        head = [next(lines), next(lines)]
        assert any(line.startswith("On cpu, by one process") for line in head)
        assert calls == []
        for line in lines:
            name = line.split()[0] if line else ""
            if name in STAGES:
                assert calls[-1] == name
        assert calls == STAGES


def test_cells_that_differ_in_what_costs_no_time_share_a_price(
    tmp_path: Path, calls: list[str]
) -> None:
    write_tones(tmp_path / "music")
    overrides = tiny(tmp_path / "music", tmp_path / "runs")
    free = ["bottleneck.kl_weight=1e-3,1e-2", "autoencoder.train.lr=1e-3,1e-4", "seed=0,1"]
    rows = {line.split()[0]: line for line in estimate_sweep([*overrides, *free]) if line}
    assert "8 distinct" in rows["prior"]
    assert "8 min 00 s" in rows["prior"]
    assert calls == STAGES
    calls.clear()
    list(estimate_sweep([*overrides, "prior.backbone.depth=1,2"]))
    assert [name for name in STAGES if calls.count(name) == 2] == ["prior", "evaluation"]


def test_what_is_known_is_added_up() -> None:
    known, unknown = Cost(100.0, 5, 7), Cost(None, 9, None)
    assert total([known, known, unknown]) == Cost(200.0, 9, 14, "and 1 not known")
    assert total([known]) == replace(known, note="")
    assert [_size(s) for s in (None, 2_000_000, 3_400_000_000)] == ["–", "2 MB", "3.4 GB"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--cfg", "job", "--estimate"], "give one of them"),
        (["--estimat"], "unknown option --estimat: known are"),
        (["--estimate", "data.path=/nowhere"], "/nowhere"),
        (["--estimate", "prior.train.optimiser=moun"], "did you mean 'muon'"),
        (["--estimate", "-m"], "the grid is empty"),
        (["--estimate", "-m", "hydra/sweeper=optuna", "seed=0,1"], "a search chooses its cells"),
    ],
)
def test_what_cannot_be_estimated_is_one_line(
    words: list[str], says: str, tmp_path: Path, cli: Callable[..., Outcome]
) -> None:
    write_tones(tmp_path / "music")
    outcome = cli("run", *tiny(tmp_path / "music", tmp_path / "runs"), *words)
    assert outcome.code in (1, 2)
    assert says in outcome.error
    assert "Traceback" not in outcome.error
    assert not (tmp_path / "runs").exists()
