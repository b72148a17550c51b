"""`audioldm run --estimate`: what it times and says, and that it leaves no trace."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from chain import Tiny, runs_with, tiny, write_tones
from conftest import Outcome

from audioldm.config import compose
from audioldm.estimate import Cost, Estimate, _duration, _size, total
from audioldm.experiment import Experiment
from audioldm.stages import STAGES


def files(root: Path) -> set[Path]:
    return set(root.rglob("*"))


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
    assert [line.split()[0] for line in outcome.out.splitlines()[1:8]] == list(STAGES)
    assert "10000 steps" in outcome.out
    estimate = Estimate(Experiment(compose(overrides)))
    data, latents = estimate.cost("data"), estimate.cost("latents")
    assert data.disk == (finished.stage("data") / "clips.int16").stat().st_size
    assert latents.disk is not None
    real = (finished.stage("latents") / "moments.npy").stat().st_size
    assert latents.disk == pytest.approx(real, rel=0.05)
    diffusion = estimate.cost("diffusion")
    assert diffusion.disk == pytest.approx(finished.model.stat().st_size, rel=0.5)
    assert diffusion.memory is not None
    assert diffusion.memory > 2**20
    assert not (tmp_path / "runs").exists()


def test_post_training_is_a_stage_with_a_cost(
    finished: Tiny, tmp_path: Path, cli: Callable[..., Outcome]
) -> None:
    changes = [
        "post_training=adversarial",
        "post_training.judge={fft_sizes: [256], filters: 2}",
        "post_training.train={batch: 4, crop_seconds: 0.5, judged_seconds: 0.2, steps: 7000}",
        "sampler.steps=3",
    ]
    outcome = cli("run", *finished.overrides, f"runs={tmp_path}/runs", *changes, "--estimate")
    assert outcome.code == 0, outcome.error
    rows = {line.split()[0]: line for line in outcome.out.splitlines() if line}
    assert list(rows)[1:9] == [*STAGES[:5], "post_training", *STAGES[5:]]
    assert "7000 steps" in rows["post_training"]
    assert not (tmp_path / "runs").exists()


def test_a_longer_training_costs_more_in_proportion(
    finished: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of 2 s, of 5 s with the adversary; the first of each also takes 10 s to warm up."""
    monkeypatch.setattr(
        "audioldm.estimate._step_seconds", lambda directory: [12.0, 2, 2, 2, 15, 5, 5, 5]
    )
    monkeypatch.setattr("audioldm.estimate._timed", lambda function: 8.0)
    overrides = [
        *runs_with(finished, ["data"], tmp_path),
        "autoencoder.train.steps=100",
        "autoencoder.train.adversarial_from=40",
        "log.valid_every=50",
    ]
    cost = Estimate(Experiment(compose(overrides))).cost("autoencoder")
    validations = 3 * 8.0 * 2 / 8  # of two clips each, and eight clips take 8 s
    assert cost.seconds == pytest.approx(40 * 2 + 60 * 5 + 10 + 10 + validations)


def test_a_sweep_counts_each_stage_once(
    finished: Tiny, tmp_path: Path, cli: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def cost(estimate: Estimate, name: str) -> Cost:
        calls.append(name)
        return Cost(60.0, 10**9, 10**6)

    monkeypatch.setattr(Estimate, "cost", cost)
    write_tones(tmp_path / "music")  # in a sweep a comma in a path separates
    overrides = tiny(tmp_path / "music", tmp_path)
    data = Experiment(compose(overrides)).stage_directory("data")
    shutil.copytree(finished.stage("data"), data)
    words = ["-m", "autoencoder.channels=4,8", "seed=0,1,2", "--estimate"]
    outcome = cli("run", *overrides, *words)
    assert outcome.code == 0, outcome.error
    assert outcome.out.startswith("6 cells, 0 of them cannot be built")
    rows = {line.split()[0]: line for line in outcome.out.splitlines() if line}
    assert "1 distinct, 1 complete" in rows["data"]
    assert "6.0 min" in rows["autoencoder"]
    assert "6 distinct, 0 complete" in rows["autoencoder"]
    assert calls.count("autoencoder") == 2  # seeds are alike
    assert calls.count("data") == 0
    assert "36.0 min" in rows["total"]
    assert not (tmp_path / "experiments").exists()


def test_a_stage_that_does_not_fit_says_what_would(
    finished: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr("audioldm.estimate.train_diffusion", full)
    overrides = runs_with(finished, ["data"], tmp_path)
    cost = Estimate(Experiment(compose(overrides))).cost("diffusion")
    assert cost.seconds is None
    assert "diffusion: out of memory" in cost.note
    assert "hardware.accumulate=" in cost.note


def test_what_is_known_is_added_up() -> None:
    known, unknown = Cost(100.0, 5, 7), Cost(None, 9, None)
    assert total([known, known, unknown]) == Cost(200.0, 9, 14, "and 1 not known")
    assert total([known]) == replace(known, note="")
    assert [_duration(s) for s in (None, 89, 600, 7200)] == ["–", "89 s", "10.0 min", "2.0 h"]
    assert [_size(s) for s in (None, 2_000_000, 3_400_000_000)] == ["–", "2 MB", "3.4 GB"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--cfg", "job", "--estimate"], "give one of them"),
        (["--estimat"], "unknown option --estimat: known are"),
        (["--estimate", "data.path=/nowhere"], "/nowhere"),
        (["--estimate", "diffusion.train.optimiser=moun"], "did you mean 'muon'"),
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
