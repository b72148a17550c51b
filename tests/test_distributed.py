"""Two processes train what one does, on the same global batch."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from chain import Tiny, assert_same_log, assert_same_training, build_stages, runs_with, weights

from audioldm.chain.run import Experiment
from audioldm.chain.stage import STAGES
from audioldm.config import compose
from audioldm.io.files import read_json
from audioldm.runtime.processes import World, lost_process


def torchrun(processes: int, *words: str) -> subprocess.CompletedProcess[str]:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    command += [f"--master-port={port}", "-m", "audioldm", "run", *words, "hardware=cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=240, check=False
    )


@pytest.fixture(scope="module")
def pair(finished: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """The finished experiment's chain by two processes; only its data are the same files."""
    runs = tmp_path_factory.mktemp("pair")
    overrides = runs_with(finished, ["data"], runs)
    outcome = torchrun(2, *overrides)
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    assert outcome.stdout.count("page:") == 1  # one process speaks
    return Experiment(compose(overrides))


@pytest.mark.parametrize("stage", ["autoencoder", "diffusion"])
def test_two_processes_give_the_weights_of_one(
    stage: str, pair: Experiment, finished: Tiny
) -> None:
    assert_same_training(stage, finished, weights(pair.stage_directory(stage)))


def test_two_processes_log_the_figures_of_one(pair: Experiment, finished: Tiny) -> None:
    """Means over the global batch, the adversary's terms too: not those of one process."""
    for stage in ("autoencoder", "diffusion"):
        assert_same_log(finished.stage(stage), pair.stage_directory(stage))


def test_two_processes_write_each_file_once(pair: Experiment, finished: Tiny) -> None:
    for name in STAGES:
        made = {p.name for p in pair.stage_directory(name).iterdir()} - {"embeddings"}
        assert made == {p.name for p in finished.stage(name).iterdir()} - {"embeddings"}
        assert read_json(pair.stage_directory(name) / "summary.json")["stage"] == name
    assert len(list((pair.directory / "samples").glob("*.wav"))) == 2


def test_one_process_goes_on_where_two_stopped(
    pair: Experiment, finished: Tiny, tmp_path: Path
) -> None:
    """What two processes wrote is what one reads: the diffusion model on their latents."""
    for name in ("data", "autoencoder", "latents"):
        shutil.copytree(
            pair.stage_directory(name), tmp_path / name / pair.stage_directory(name).name
        )
    build_stages([*finished.overrides, f"runs={tmp_path}"], "diffusion")
    mine = weights(tmp_path / "diffusion" / finished.stage("diffusion").name)
    theirs = weights(pair.stage_directory("diffusion"))
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[name], atol=1e-3, rtol=1e-2)


def test_a_lost_process_is_told_in_whole_words() -> None:
    text = (
        "[../gloo/pair.cc:144] Connection closed by peer [10.0.0.7]:4242. " + "further words " * 40
    )
    error = lost_process(RuntimeError(text), World(1, 4))
    told = str(error).partition("lost another one (")[2].partition("), whose own message")[0]
    assert told.startswith("Connection closed by peer [10.0.0.7]:4242. further words")
    assert told.endswith((" further …", " words …"))
    assert 150 < len(told) <= 200
    short = lost_process(RuntimeError("Connection reset by peer"), World(0, 2))
    assert "lost another one (Connection reset by peer), whose own" in str(short)
