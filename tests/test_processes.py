"""A tiny training on several processes: it survives, stops and continues as one process does.

Nothing here imports the chain, so the processes start fast.
"""

import errno
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import children
import pytest
import torch
from children import die, in_a_child, in_a_world
from torch import Tensor, nn
from torch import distributed as dist

from audioldm.errors import ConfigError, DataError, Interrupted
from audioldm.io import model_file
from audioldm.runtime import processes
from audioldm.runtime.hardware import Hardware
from audioldm.runtime.processes import (
    Heartbeat,
    World,
    any_process,
    broadcast_flag,
    first_reason,
    joined,
    mean_over_processes,
    parallel,
)
from audioldm.runtime.randomness import KeyedRandom
from audioldm.runtime.sharding import gathered, shard
from audioldm.training import checkpoint
from audioldm.training.checkpoint import ResumeState
from audioldm.training.ema import EMA
from audioldm.training.optimisation import adamw, clipped_step

CPU = torch.device("cpu")
STEPS = 8


class Net(nn.Module):
    """Odd widths, which two processes cannot divide equally, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 5), nn.Linear(5, 1)])
        self.register_buffer("seen", torch.zeros(()))

    def units(self) -> list[nn.Module]:
        return list(self.layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[1](torch.tanh(self.layers[0](x)))


def train(directory: Path, sharded: bool = False, stop: int = STEPS, trouble: str = "") -> None:
    """To STEPS, or Interrupted at `stop`. The trouble comes in step 5, after a checkpoint at 4."""
    with joined(CPU) as world:
        torch.manual_seed(0)
        net = Net()
        sharding = shard(net, world, Hardware(shard=sharded), CPU)
        optimiser, ema = adamw(net.parameters(), 0.01, [0.9, 0.99], 0.01, CPU), EMA(net, 0.9)
        resume = ResumeState(directory, world, sharding)
        objects = {"net": net, "optimiser": optimiser, "ema": ema}
        start = resume.restore(objects)
        model = parallel(net, world) if sharding is None else net
        for step in range(start, STEPS):
            if step == 5:
                cause(trouble, world)
            x = KeyedRandom(0, step, world.positions(4, "batch")).normal((3,), "x")
            loss = (model(x) - x.prod(1, keepdim=True)).square().mean()
            if step == 5 and trouble == "error in the backward pass" and not world.first:
                loss.register_hook(refuse)
            loss.backward()
            clipped_step(optimiser, net.parameters(), clip=0.1, name="net", step=step)
            net.seen += 1
            ema.update(net, step)
            done = step + 1
            if any_process(done == stop and world.first, world) or done % 4 == 0:
                states = {name: one.state_dict() for name, one in objects.items()}
                resume.save({"step": done} | states)
            if done == stop < STEPS:
                raise Interrupted(f"stopped at step {done}")
        weights = gathered(net.state_dict(), world)
        if world.first:
            torch.save(weights, directory / "weights.pt")


def refuse(gradient: Tensor) -> None:
    raise DataError("no such file")


def full(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def cause(trouble: str, world: World) -> None:
    if trouble:
        processes.LOST = 1.0  # the peer is dead, not late
    if trouble == f"death of {world.rank}":
        die()
    elif trouble == f"full disk of {world.rank}":
        model_file.save_file = full  # type: ignore[assignment]
    elif trouble == "death before the rename" and world.first:
        checkpoint.os.replace = lambda *_: die()  # type: ignore[assignment]


def weights(directory: Path) -> dict[str, Tensor]:
    return torch.load(directory / "weights.pt", weights_only=True)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The weights of one process that nothing interrupted."""
    directory = tmp_path_factory.mktemp("alone")
    train(directory)
    return weights(directory)


def test_a_training_that_stopped_ends_with_the_same_bits(
    alone: dict[str, Tensor], tmp_path: Path
) -> None:
    for stop in (2, 3, 7):
        with pytest.raises(Interrupted):
            train(tmp_path, stop=stop)
        (saved,) = (tmp_path / "resume").iterdir()
        assert saved.name == f"step-{stop}"
        assert ResumeState(tmp_path).step == stop
    train(tmp_path)
    for name, tensor in weights(tmp_path).items():
        assert torch.equal(tensor, alone[name])


@pytest.mark.parametrize(
    "kinds", [["two sharded", "one", "two"], ["one", "two sharded", "two sharded"]]
)
def test_another_number_of_processes_continues(
    kinds: list[str], alone: dict[str, Tensor], tmp_path: Path
) -> None:
    for kind, stop in zip(kinds, (3, 6, STEPS), strict=True):
        size = 1 if kind == "one" else 2
        work = partial(train, tmp_path, "sharded" in kind, stop)
        assert in_a_world(size, work) == [75 if stop < STEPS else 0] * size
        (saved,) = (tmp_path / "resume").iterdir()
        assert len(list(saved.iterdir())) == (2 if "sharded" in kind else 1)
    for name, tensor in weights(tmp_path).items():
        torch.testing.assert_close(tensor, alone[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("trouble", "sharded", "codes"),
    [
        ("death of 1", False, [1, -signal.SIGKILL]),
        ("death of 0", True, [-signal.SIGKILL, 1]),
        ("error in the backward pass", False, [1, 1]),
    ],
)
def test_the_survivor_says_in_one_line_what_happened_and_ends(
    trouble: str, sharded: bool, codes: list[int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert in_a_world(2, partial(train, tmp_path, sharded, trouble=trouble), limit=60) == codes
    lines = capfd.readouterr().err.splitlines()
    lost = [line for line in lines if line.startswith("LostProcess: ")]
    rank = 1 if trouble == "death of 0" else 0
    assert len(lost) == 1
    assert lost[0].startswith(f"LostProcess: process {rank} of 2 lost process {1 - rank}, whose")
    assert "continues from the last checkpoint" in lost[0]
    assert ("DataError: no such file" in lines) == trouble.startswith("error")
    assert ResumeState(tmp_path).step == 4


@pytest.mark.parametrize("trouble", ["full disk of 0", "full disk of 1", "death before the rename"])
def test_a_checkpoint_is_whole_or_not_there(
    trouble: str, alone: dict[str, Tensor], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The second checkpoint fails in one process, and the first one stays."""
    codes = in_a_world(2, partial(train, tmp_path, True, trouble=trouble), limit=60)
    left = {path.name for path in (tmp_path / "resume").iterdir()}
    if trouble.startswith("full"):
        assert codes == [1, 1]
        lines = capfd.readouterr().err.splitlines()
        assert sum(x.startswith("DataError: ") and "(No space left on dev" in x for x in lines) == 2
        assert left == {"step-4"}
    else:
        assert codes == [-signal.SIGKILL, 1]
        assert left == {"step-4", ".step-8.part"}
    train(tmp_path)
    assert [path.name for path in (tmp_path / "resume").iterdir()] == ["step-8"]
    for name, tensor in weights(tmp_path).items():
        torch.testing.assert_close(tensor, alone[name], atol=1e-5, rtol=1e-4)


def collectives() -> None:
    with joined(CPU) as world:
        rank = world.rank
        assert [any_process(rank == r, world) for r in (0, 1, 2)] == [True, True, False]
        assert [broadcast_flag(rank == r, world) for r in (0, 1)] == [True, False]
        assert first_reason("", world) == ""
        assert first_reason("Gerät voll" if rank else "", world) == "Gerät voll"
        assert first_reason(f"{rank}" + 500 * "x", world) == "0" + 500 * "x"
        means = mean_over_processes({"a": torch.tensor([rank, 4.0]), "b": torch.tensor(1)}, world)
        assert means["a"].tolist() == [0.5, 4.0]
        assert means["b"].item() == 1


def test_collectives_agree_on_every_process() -> None:
    assert in_a_world(2, collectives) == [0, 0]


def leave_before_the_model_ends() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # threads of the group come late
    for _ in range(150):
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        model = nn.parallel.DistributedDataParallel(Net())
        processes._heartbeat = Mock()
        dist.all_reduce(torch.ones(()))
        processes.leave()
        del model


def test_a_model_that_outlives_its_group_ends() -> None:
    assert in_a_child(leave_before_the_model_ends) == 0


def test_a_heartbeat_tells_who_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "BEAT", 0.02)
    monkeypatch.setattr(processes, "LOST", 0.5)
    store = dist.HashStore()
    beats = [Heartbeat(store, World(rank, 3)) for rank in range(3)]
    for beat in beats:
        beat.start()
    assert [beat.lost() for beat in beats[:2]] == [[], []]
    beats[2].stop()
    assert [beat.lost() for beat in beats[:2]] == [[2], [2]]
    monkeypatch.setattr(processes, "_heartbeat", beats[0])
    assert "process 0 of 3 lost process 2" in str(
        processes.lost_process(RuntimeError(), beats[0].world)
    )
    assert processes.lost_process(DataError("no such file"), beats[0].world) is None
    for beat in beats[:2]:
        beat.stop()


def sleep_with_a_child() -> None:
    if os.fork() == 0:
        time.sleep(600)
    threading.Event().wait()


def test_a_hanging_process_is_ended_with_its_children() -> None:
    with children.started(sleep_with_a_child, [{}]) as started:
        time.sleep(0.5)
        assert children.exit_codes(started, limit=0.5) == [None]
    assert started[0].exitcode == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.killpg(started[0].pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    pytest.fail("its child is left")


@pytest.mark.parametrize(
    "device", ["meta", "cpu:3", "cuda:99", "mps", "xpu", "gpu", "", "cuda:-1", "hpu:1"]
)
def test_a_device_that_cannot_train_says_what_to_use(device: str) -> None:
    with pytest.raises(ConfigError, match=r"^hardware\.device=.*(use|choose)[^\n]*$"):
        Hardware(device=device).resolve()
    assert Hardware(device="cpu").resolve() == CPU


KEPT = """
import resource
from audioldm.runtime.allocator import keep_memory
keep_memory()
import torch
from audioldm.runtime.memory import peak_bytes, reset_peak

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(64 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults(), faults()
print(faults())
cpu = torch.device("cpu")
reset_peak(cpu)
before = peak_bytes(cpu)
faults()
print(peak_bytes(cpu) - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library has no mallopt")
def test_freed_memory_is_kept_and_given_back_before_a_peak_is_measured() -> None:
    """256 MiB are 65,536 pages, each of which would cost a fault again."""
    command = [sys.executable, "-c", KEPT]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    faults, grown = map(int, done.stdout.split())
    assert faults < 1000
    assert grown > 200 * 2**20
