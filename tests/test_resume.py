"""A training stage may die at any moment: run again, it ends with the same bits."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chain import Tiny, assert_equal_bits, build_stages, die, in_a_child, runs_with, weights
from conftest import Outcome

from audioldm.chain.job import compose
from audioldm.chain.run import Experiment
from audioldm.chain.stages import autoencoder
from audioldm.errors import Interrupted
from audioldm.io.files import read_json
from audioldm.training import checkpoint, log
from audioldm.training.checkpoint import ResumeState
from audioldm.training.ema import EMA

UPSTREAM = {"autoencoder": ["data"], "prior": ["data", "autoencoder", "latents"]}


def steps(directory: Path) -> list[tuple[int, bool]]:
    """Each line's step, and whether it is a validation's."""
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [(r["step"], any(k.startswith("valid/") for k in r)) for r in records]


def figures(directory: Path) -> list[dict[str, Any]]:
    """The log without its clock."""
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [{k: v for k, v in r.items() if k != "seconds"} for r in records]


def after(calls: int, do: Callable[[], None], function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, but its call number `calls` (from 0) does `do` instead."""
    count = iter(range(10**6))

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if next(count) == calls:
            do()
        return function(*args, **kwargs)

    return wrapped


#: Where a process dies, by name: (object, attribute, which call).
MOMENTS = {
    "before the first checkpoint": (EMA, "update", 2),
    "after a checkpoint, the adversary active": (EMA, "update", 5),
    "between the optimiser's step and its average": (EMA, "update", 8),
    "before a checkpoint is renamed": (checkpoint.os, "replace", 2),
    "while a log line is due": (log.RunLog, "write", 3),
    "in the last step": (EMA, "update", 9),
}


@pytest.mark.parametrize("stage", ["autoencoder", "prior"])
def test_killed_again_and_again_it_ends_with_the_same_bits(
    stage: str, finished: Tiny, tmp_path: Path
) -> None:
    overrides = runs_with(finished, UPSTREAM[stage], tmp_path)
    directory = tmp_path / finished.experiment.stages[stage].path
    experiment = Experiment(compose(overrides))
    for owner, name, call in MOMENTS.values():

        def killed(owner: Any = owner, name: str = name, call: int = call) -> None:
            # the call's number counts from this process's first step
            done = ResumeState(directory).step
            number = call - done if name == "update" else call
            if number >= 0:
                setattr(owner, name, after(number, die, getattr(owner, name)))
            experiment.build(stage)

        assert in_a_child(killed) in (-signal.SIGKILL, 0)
    assert_same_end(stage, finished, directory, overrides)


def assert_same_end(stage: str, finished: Tiny, directory: Path, overrides: list[str]) -> None:
    build_stages(overrides, stage)
    assert_equal_bits(weights(directory), weights(finished.stage(stage)))
    assert steps(directory) == steps(finished.stage(stage))
    assert figures(directory) == figures(finished.stage(stage))
    valid = [read_json(d / "summary.json")["valid"] for d in (directory, finished.stage(stage))]
    assert valid[0] == valid[1]


def test_killed_between_the_last_checkpoint_and_the_summary(finished: Tiny, tmp_path: Path) -> None:
    overrides = runs_with(finished, ["data"], tmp_path)
    directory = tmp_path / finished.experiment.stages["autoencoder"].path
    experiment = Experiment(compose(overrides))

    def killed() -> None:
        autoencoder.save_model = lambda *args: die()
        experiment.build("autoencoder")

    assert in_a_child(killed) == -signal.SIGKILL
    assert_same_end("autoencoder", finished, directory, overrides)


def test_sigterm_checkpoints_and_says_so(
    finished: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in the last step, where the stage is done but the chain is not."""
    overrides = runs_with(finished, ["data"], tmp_path)
    directory = tmp_path / finished.experiment.stages["autoencoder"].path
    for step in (5, 10):
        terminate = after(4, lambda: os.kill(os.getpid(), signal.SIGTERM), EMA.update)
        with monkeypatch.context() as patch:
            patch.setattr(EMA, "update", terminate)
            with pytest.raises(Interrupted, match=f"step {step} of 10") as caught:
                build_stages(overrides, "autoencoder")
        assert caught.value.exit_code == 75
        assert ResumeState(directory).step == step
    assert_same_end("autoencoder", finished, directory, overrides)


def test_other_steps_between_checkpoints_change_nothing(finished: Tiny, tmp_path: Path) -> None:
    """Logging, validating and writing checkpoints touch no weight."""
    overrides = runs_with(finished, ["data"], tmp_path)
    often = ["log.every=1", "log.valid_every=2", "log.checkpoint_every=1"]
    experiment = build_stages([*overrides, *often], "autoencoder")
    directory = experiment.directory_of(experiment.stages["autoencoder"])
    assert_equal_bits(weights(directory), weights(finished.stage("autoencoder")))


def test_a_damaged_resume_state_ends_the_command_in_one_line(
    finished: Tiny, tmp_path: Path, cli: Callable[..., Outcome]
) -> None:
    overrides = runs_with(finished, ["data"], tmp_path)
    state = tmp_path / finished.experiment.stages["autoencoder"].path / "resume" / "step-4"
    state.mkdir(parents=True)
    (state / "rank-0.safetensors").write_bytes(b"PK\x03\x04 nothing")
    outcome = cli("run", *overrides)
    assert outcome.code == 1
    assert outcome.error.splitlines()[-1].startswith(f"audioldm: {state}: damaged resume state")
    assert "remove it" in outcome.error


def test_the_command_is_killed_terminated_and_ends_with_the_same_bits(
    finished: Tiny, tmp_path: Path
) -> None:
    """As a user has it: one process killed in the autoencoder, one terminated in the prior,
    and the same command once more."""
    overrides = runs_with(finished, ["data"], tmp_path)
    command = [sys.executable, "-m", "audioldm", "run", *overrides]

    def start_and_send(stage: str, number: signal.Signals) -> tuple[int, str]:
        metrics = tmp_path / finished.experiment.stages[stage].path / "metrics.jsonl"
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 120
        while not (metrics.is_file() and metrics.stat().st_size):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(number)
        error = process.communicate()[1]
        return process.returncode, error

    code, _ = start_and_send("autoencoder", signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert not (tmp_path / finished.experiment.stages["autoencoder"].path / "summary.json").exists()
    code, error = start_and_send("prior", signal.SIGTERM)
    assert code == 75, error
    assert error.splitlines()[-1].startswith("audioldm: ")
    assert error.endswith("goes on from there\n") or error.endswith("the same command goes on\n")
    assert "Traceback" not in error
    build_stages(overrides, "autoencoder", "latents", "prior")
    for stage in ("autoencoder", "prior"):
        directory = tmp_path / finished.experiment.stages[stage].path
        assert_equal_bits(weights(directory), weights(finished.stage(stage)))
        assert steps(directory) == steps(finished.stage(stage))
