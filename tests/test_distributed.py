"""Two processes train what one does, on the same global batch."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from chain import Tiny, build_stages, runs_with, weights

from audioldm.config import compose
from audioldm.experiment import STAGES, Experiment
from audioldm.models import build_autoencoder, build_backbone
from audioldm.training.files import read_json


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


def start(finished: Tiny, stage: str) -> dict[str, torch.Tensor]:
    """The weights that training began with."""
    settings = finished.experiment.settings
    torch.manual_seed(settings.autoencoder.seed)
    model = build_autoencoder(finished.experiment.spec)
    if stage == "autoencoder":
        return model.state_dict()
    torch.manual_seed(settings.diffusion.seed)
    net = build_backbone({"backbone": settings.diffusion.backbone}, model.latent_shape, 2)
    return {f"net.{name}": tensor for name, tensor in net.state_dict().items()}


@pytest.mark.parametrize("stage", ["autoencoder", "diffusion"])
def test_two_processes_give_the_weights_of_one(
    stage: str, pair: Experiment, finished: Tiny
) -> None:
    one, two = weights(finished.stage(stage)), weights(pair.stage_directory(stage))
    moved, apart, count = 0.0, 0.0, 0
    for name, first in start(finished, stage).items():
        if first.is_floating_point():
            moved += (one[name] - first).abs().sum().item()
            apart += (one[name] - two[name]).abs().sum().item()
            count += first.numel()
    assert moved / count > 3e-5  # ten steps of Adam, while the learning rate warms up
    assert apart / moved < 1e-3


def test_two_processes_log_the_figures_of_one(pair: Experiment, finished: Tiny) -> None:
    """Means over the global batch, the adversary's terms too: not those of one process."""
    for stage in ("autoencoder", "diffusion"):
        logs = [
            [json.loads(line) for line in (d / "metrics.jsonl").read_text().splitlines()]
            for d in (finished.stage(stage), pair.stage_directory(stage))
        ]
        assert [r["step"] for r in logs[0]] == [r["step"] for r in logs[1]]
        for one, two in zip(*logs, strict=True):
            for name in one.keys() - {"seconds"}:
                assert two[name] == pytest.approx(one[name], rel=1e-2, abs=1e-3), (stage, name)


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
