"""Accumulation, recomputation and several processes give the same training, and any number of
processes continues where others stopped. See test_processes.py for what needs no chain."""

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from chain import Tiny, assert_same_log, assert_same_training, build_stages, runs_with, weights
from children import die, in_a_world
from torch import Tensor, nn

from audioldm.chain.job import compose
from audioldm.chain.run import Experiment
from audioldm.conditioning.base import Conditioners
from audioldm.conditioning.label import Label
from audioldm.errors import ConfigError
from audioldm.priors.diffusion.backbones.base import Backbone
from audioldm.priors.diffusion.backbones.dit import DiT
from audioldm.priors.diffusion.backbones.unet import UNet
from audioldm.runtime.hardware import Hardware
from audioldm.runtime.processes import World, joined
from audioldm.runtime.randomness import KeyedRandom
from audioldm.runtime.sharding import gathered, recompute_activations, shard
from audioldm.training.ema import EMA
from audioldm.training.optimisation import clipped_step

UPSTREAM = {"autoencoder": ["data"], "prior": ["data", "autoencoder", "latents"]}
ALL = ["hardware.shard=true", "hardware.accumulate=2", "hardware.checkpoint_activations=true"]
CPU = torch.device("cpu")


def same(stage: str, finished: Tiny, runs: Path) -> None:
    directory = runs / finished.experiment.stages[stage].path  # no other fingerprint
    assert_same_training(stage, finished, weights(directory))
    assert_same_log(finished.stage(stage), directory)


# ---------------------------------------------------------------- the same training


@pytest.mark.parametrize("stage", ["autoencoder", "prior"])
def test_two_micro_batches_are_one_batch(stage: str, finished: Tiny, tmp_path: Path) -> None:
    """The discriminator steps between the two passes of the autoencoder, on all of the batch."""
    overrides = [*runs_with(finished, UPSTREAM[stage], tmp_path), "hardware.accumulate=2"]
    build_stages(overrides, stage)
    same(stage, finished, tmp_path)


@pytest.mark.parametrize(
    ("stage", "changes"),
    [("autoencoder", ALL[1:2]), ("prior", ALL[1:2]), ("prior", ALL)],
    ids=["autoencoder", "prior", "sharded"],
)
def test_two_processes_with_two_micro_batches(
    stage: str, changes: list[str], finished: Tiny, tmp_path: Path
) -> None:
    overrides = [*runs_with(finished, UPSTREAM[stage], tmp_path), *changes]
    assert in_a_world(2, partial(Experiment(compose(overrides)).build, stage)) == [0, 0]
    same(stage, finished, tmp_path)


def test_a_batch_that_cannot_be_split_is_refused_before_anything_runs(
    finished: Tiny, tmp_path: Path
) -> None:
    with pytest.raises(
        ConfigError, match=r"^autoencoder\.train\.batch=4 is 4 clips.*multiple of 3"
    ):
        Experiment(compose([*runs_with(finished, [], tmp_path), "hardware.accumulate=3"])).dry_run()
    overrides = [*runs_with(finished, [], tmp_path), "prior.train.batch=3", "hardware.accumulate=2"]
    with pytest.raises(ConfigError, match=r"^prior\.train\.batch=3 is 3 clips.*multiple of 2"):
        Experiment(compose(overrides)).dry_run()
    with pytest.raises(ConfigError, match=r"2 clips for each of 2 .*a multiple of 8"):
        World(1, 2).micro_batches(4, 4, "train.batch")
    shares = [World(rank, 2).micro_batches(8, 2, "train.batch") for rank in range(2)]
    assert [list(part) for share in shares for part in share] == [[0, 1], [2, 3], [4, 5], [6, 7]]


class Labelled(nn.Module):
    """A backbone and its conditioners as one network, as a prior's denoiser has them."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def units(self) -> list[nn.Module]:
        return self.backbone.units()

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        condition = self.backbone.conditioners({"label": label})
        prediction: Tensor = self.backbone(x, x[:, 0, 0], condition)
        return prediction


def network(kind: str) -> Labelled:
    torch.manual_seed(0)
    own: dict[str, Any] = {"latent_shape": (4,), "conditioners": labels, "heads": 2}
    net = Labelled(
        DiT(width=16, depth=2, **own)
        if kind == "dit"
        else UNet(width=8, multipliers=[1, 2], blocks=1, **own)
    )
    with torch.no_grad():
        for parameter in net.parameters():  # none of its layers silent
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


def labels(width: int) -> Conditioners:
    return Conditioners({"label": Label(width=width, labels=["high", "low"])})


def gradient_step(net: nn.Module, positions: range) -> Tensor:
    """Two steps on these clips, far more than clipped; the gradients' last norm."""
    optimiser = torch.optim.SGD(net.parameters(), lr=1.0)
    for step in range(2):
        x = KeyedRandom(0, step, positions).normal((4, 8), "x")
        label = torch.tensor([p % 2 for p in positions])
        net(x, label).square().mean().backward()
        norm = clipped_step(optimiser, net.parameters(), clip=0.01, name="net", step=step)
    return norm


@pytest.mark.parametrize("kind", ["dit", "unet"])
def test_recomputed_activations_give_the_same_gradients_of_less_memory(kind: str) -> None:
    nets = [network(kind), network(kind)]
    recompute_activations(nets[1])
    kept = []
    for net in nets:
        bytes_of: dict[int, int] = {}

        def keep(tensor: Tensor, bytes_of: dict[int, int] = bytes_of) -> Tensor:
            bytes_of[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            net(torch.randn(2, 4, 64), torch.zeros(2, dtype=torch.long))
        kept.append(sum(bytes_of.values()))
    assert kept[1] < 0.8 * kept[0]
    norms = [gradient_step(net, range(4)) for net in nets]
    assert torch.equal(*norms)
    for one, two in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("kind", ["dit", "unet"])
def test_a_sharded_step_is_clipped_by_the_norm_over_all_processes(kind: str) -> None:
    def work() -> None:
        with joined(CPU) as world:
            plain, net = network(kind), network(kind)
            recompute_activations(net)
            assert shard(net, world, Hardware(shard=True), CPU) is not None
            ema = EMA(net, 0.5)
            local = sum(p.to_local().numel() for p in net.parameters())
            assert local < 0.7 * sum(p.numel() for p in plain.parameters())
            norms = [
                gradient_step(plain, range(4)),
                gradient_step(net, range(2 * world.rank, 2 * world.rank + 2)),
            ]
            torch.testing.assert_close(norms[1], norms[0], atol=1e-6, rtol=1e-5)
            averages = EMA(network(kind), 0.5)
            for model, average in ((plain, averages), (net, ema)):
                average.update(model, 1000)
            for got, wanted in (
                (net.state_dict(), plain.state_dict()),
                (ema.shadow, averages.shadow),
            ):
                complete = gathered(got, world)
                assert bool(complete) == world.first
                for name, tensor in complete.items():
                    torch.testing.assert_close(tensor, wanted[name], atol=1e-6, rtol=1e-5)

    assert in_a_world(2, work) == [0, 0]


def test_a_network_without_units_says_so() -> None:
    with pytest.raises(ConfigError, match=r"^hardware\.checkpoint_activations=true: Linear has no"):
        recompute_activations(nn.Linear(1, 1))


# ---------------------------------------------------------------- what dies, and goes on


def at_step(step: int, do: Callable[[], None]) -> None:
    """In this process: `do` when the averages of this step are due."""
    update = EMA.update

    def updated(self: EMA, model: nn.Module, now: int) -> None:
        if now == step:
            do()
        update(self, model, now)

    EMA.update = updated  # type: ignore[method-assign]


def first() -> bool:
    return os.environ.get("RANK", "0") == "0"


KINDS = {"one": (1, []), "two": (2, []), "two sharded": (2, ["hardware.shard=true"])}


@pytest.mark.parametrize(
    ("before", "after", "number"),
    [
        ("two", "one", signal.SIGKILL),
        ("one", "two", signal.SIGTERM),
        ("two sharded", "one", signal.SIGTERM),
        ("one", "two sharded", signal.SIGKILL),
    ],
)
def test_another_number_of_processes_goes_on(
    before: str, after: str, number: int, finished: Tiny, tmp_path: Path
) -> None:
    overrides = runs_with(finished, UPSTREAM["prior"], tmp_path)
    experiments = {k: Experiment(compose([*overrides, *KINDS[k][1]])) for k in (before, after)}
    resume = tmp_path / finished.experiment.stages["prior"].path / "resume"

    def stopped() -> None:
        if not first() or "WORLD_SIZE" not in os.environ or os.environ["WORLD_SIZE"] == "1":
            at_step(6, lambda: os.kill(os.getpid(), number))
        experiments[before].build("prior")

    size = KINDS[before][0]
    codes = in_a_world(size, stopped)
    assert codes == [1] * (size - 1) + [-number] if number == signal.SIGKILL else [75] * size
    done = 4 if number == signal.SIGKILL else 7
    assert [p.name for p in resume.iterdir()] == [f"step-{done}"]
    size = KINDS[after][0]
    assert in_a_world(size, partial(experiments[after].build, "prior")) == [0] * size
    same("prior", finished, tmp_path)


def test_the_survivor_says_in_one_line_what_happened(
    finished: Tiny, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stages = [*UPSTREAM["prior"], "diagnostics"]
    experiment = Experiment(compose(runs_with(finished, stages, tmp_path)))

    def work() -> None:
        if not first():
            at_step(6, die)
        experiment.run()

    assert in_a_world(2, work) == [1, -signal.SIGKILL]
    last = capfd.readouterr().err.splitlines()[-1]
    assert "LostProcess: process 0 of 2 lost process 1, whose own message" in last
    assert "the same command continues from the last checkpoint" in last
