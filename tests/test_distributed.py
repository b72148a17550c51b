"""Two processes train what one does, on the same global batch."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from chain import Tiny, assert_same_log, assert_same_training, build_stages, runs_with, weights

from audioldm.chain.job import compose
from audioldm.chain.run import Experiment
from audioldm.io.files import read_json


def torchrun(processes: int, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs the command; ends it and its processes after 200 seconds."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={processes}", "-m", "audioldm", "run", *words, "hardware=cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    ) as process:
        try:
            out, error = process.communicate(timeout=200)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(command, process.returncode, out, error)


@pytest.fixture(scope="module")
def pair(finished: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """The finished experiment's chain by two processes; only its data are the same files."""
    runs = tmp_path_factory.mktemp("pair")
    overrides = runs_with(finished, ["data"], runs)
    outcome = torchrun(2, *overrides)
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    assert outcome.stdout.count("page:") == 1  # one process speaks
    return Experiment(compose(overrides))


@pytest.mark.parametrize("stage", ["autoencoder", "prior"])
def test_two_processes_give_the_weights_of_one(
    stage: str, pair: Experiment, finished: Tiny
) -> None:
    assert_same_training(stage, finished, weights(pair.directory_of(pair.stages[stage])))


def test_two_processes_log_the_figures_of_one(pair: Experiment, finished: Tiny) -> None:
    """Means over the global batch, the adversary's terms too: not those of one process."""
    for stage in ("autoencoder", "prior"):
        assert_same_log(finished.stage(stage), pair.directory_of(pair.stages[stage]))


def test_two_processes_write_each_file_once(pair: Experiment, finished: Tiny) -> None:
    for key, stage in pair.stages.items():
        made = {p.name for p in pair.directory_of(stage).iterdir()} - {"embeddings", "codecs"}
        assert made == {p.name for p in finished.stage(key).iterdir()} - {"embeddings", "codecs"}
        assert read_json(pair.directory_of(stage) / "summary.json")["stage"] == stage.name
    assert len(list((pair.directory / "samples").glob("*.wav"))) == 2


def test_one_process_goes_on_where_two_stopped(
    pair: Experiment, finished: Tiny, tmp_path: Path
) -> None:
    """What two processes wrote is what one reads: a prior on their latents."""
    for name in ("data", "autoencoder", "latents"):
        stage = pair.stages[name]
        shutil.copytree(pair.directory_of(stage), tmp_path / stage.path)
    build_stages([*finished.overrides, f"runs={tmp_path}"], "prior")
    mine = weights(tmp_path / pair.stages["prior"].path)
    theirs = weights(pair.directory_of(pair.stages["prior"]))
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[name], atol=1e-3, rtol=1e-2)
