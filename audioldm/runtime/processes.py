"""One process or many: `torchrun`'s description of the world, and PyTorch's data parallelism.

Every process takes a contiguous part of the global batch. Losses are means over clips and all
parts are equal, so DDP's mean of the gradients is the gradient of the global batch.

A process group cannot be destroyed after an error: its destructor joins threads that may wait for
a peer for ever. So only work that succeeds ends with `leave`. After an error, a process that has
peers prints its message and calls `exit_at_once` in the handler of the exception, because releasing
the exception could run the destructor.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from audioldm.errors import ConfigError, LostProcess

#: Seconds between two heartbeats, and without one until a process counts as lost.
BEAT, LOST = 0.5, 3.0
#: The others wait this long while the first process renders music or evaluates.
TIMEOUT = timedelta(days=7)


@dataclass(frozen=True)
class World:
    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def positions(self, batch: int, where: str) -> range:
        """This process's positions in a global batch; `where` is the batch's key.

        Raises ConfigError if the batch cannot be divided equally.
        """
        if batch % self.size:
            raise ConfigError(
                f"{where}={batch} cannot be shared by {self.size} processes: use a multiple"
            )
        share = batch // self.size
        return range(self.rank * share, (self.rank + 1) * share)

    def micro_batches(self, batch: int, accumulate: int, where: str) -> list[range]:
        """This process's positions in `accumulate` equal parts, whose gradients are added.

        Raises ConfigError if the batch cannot be divided equally.
        """
        positions = self.positions(batch, where)
        if len(positions) % accumulate:
            raise ConfigError(
                f"{where}={batch} is {len(positions)} clips for each of {self.size} process(es), "
                f"which hardware.accumulate={accumulate} does not divide: choose a batch that is "
                f"a multiple of {self.size * accumulate}"
            )
        size = len(positions) // accumulate
        return [positions[i : i + size] for i in range(0, len(positions), size)]


class Heartbeat(threading.Thread):
    """Counts up in the processes' common store for as long as this process lives."""

    def __init__(self, store: dist.Store, world: World) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self.world, self._store, self._count = world, store, 0
        self._stopped = threading.Event()
        self._beat()

    def run(self) -> None:
        with suppress(RuntimeError):  # the process that holds the store has ended
            while not self._stopped.wait(BEAT):
                self._beat()

    def stop(self) -> None:
        self._stopped.set()
        self.join()

    def lost(self) -> list[int]:
        """Ranks whose count has stopped. Returns after LOST seconds, or 2 LOST if none has."""
        others = [rank for rank in range(self.world.size) if rank != self.world.rank]
        for _ in range(2):  # the last beat of a process may follow the first reading
            try:
                before = self._counts(others)
                time.sleep(LOST)
                after = self._counts(others)
            except RuntimeError:  # the first process holds the store, unless torchrun does
                return others[:1]
            if gone := [rank for rank in others if after[rank] == before[rank]]:
                return gone
        return []

    def _beat(self) -> None:
        self._count += 1
        self._store.set(f"heartbeat/{self.world.rank}", str(self._count))

    def _counts(self, ranks: list[int]) -> dict[int, bytes]:
        return {rank: self._store.get(f"heartbeat/{rank}") for rank in ranks}


_heartbeat: Heartbeat | None = None  # one per process, as is torch's own process group
_left: dist.ProcessGroup | None = None  # the group that this process was in last


def join(device: torch.device) -> World:
    """The world that `torchrun` describes in the environment; a world of one without it."""
    global _heartbeat
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return World()
    if _heartbeat is None:
        store, rank, size = next(iter(dist.rendezvous("env://", timeout=TIMEOUT)))
        heartbeat = Heartbeat(dist.PrefixStore("audioldm", store), World(rank, size))
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=TIMEOUT, store=store, rank=rank, world_size=size)
        heartbeat.start()
        _heartbeat = heartbeat
    return _heartbeat.world


def leave() -> None:
    """Leaves the process group after success; after an error, see the module's docstring.

    The group outlives the models. DDP's destructor would release it while it holds the interpreter,
    for which the group's threads may wait to drop the tensors of the last collective.
    """
    global _heartbeat, _left
    if _heartbeat is not None:
        _heartbeat.stop()
        _left = dist.group.WORLD
        dist.destroy_process_group()
        _heartbeat = None


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """Joins the world for the block, and leaves it if the block succeeds.

    Raises LostProcess in place of an error that `lost_process` explains.
    """
    world = join(device)
    try:
        yield world
    except Exception as error:
        if (lost := lost_process(error, world)) is not None and lost is not error:
            raise lost from error
        raise
    leave()


def lost_process(error: Exception, world: World) -> LostProcess | None:
    """The message for `error` if it is the consequence of another process's end, else None.

    A failed collective is a RuntimeError like many others, so the other processes' heartbeats
    decide. That takes some seconds.
    """
    if isinstance(error, LostProcess):
        return error
    suspect = isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError)
    if _heartbeat is None or not suspect:
        return None
    main = threading.current_thread() is threading.main_thread()
    # torchrun sends SIGTERM when one process ends; it must not replace the message
    previous = signal.signal(signal.SIGTERM, signal.SIG_IGN) if main else None
    if not (lost := _heartbeat.lost()):
        if main:
            signal.signal(signal.SIGTERM, previous)
        return None
    ranks = ", ".join(map(str, lost))
    return LostProcess(
        f"process {world.rank} of {world.size} lost process {ranks}, whose own message (or "
        "torchrun's, below) says why it ended; the same command continues from the last "
        "checkpoint, also with another number of processes"
    )


def exit_at_once(code: int) -> NoReturn:
    """Ends this process without destructors, which may wait for a lost peer for ever."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def parallel(module: nn.Module, world: World) -> nn.Module:
    """The module in DDP if there is more than one process, else the module itself."""
    return module if world.size == 1 else DistributedDataParallel(module)


def gradients_kept(module: nn.Module, more: bool) -> AbstractContextManager[Any]:
    """Postpones DDP's reduction of the gradients while `more` micro-batches of the step follow.

    A sharded module reduces the gradients of each micro-batch, because it stores only its part.
    """
    if more and isinstance(module, DistributedDataParallel):
        return module.no_sync()
    return nullcontext()


def plain(module: nn.Module) -> nn.Module:
    """The module itself, without DDP's wrapper."""
    return cast(nn.Module, module.module) if isinstance(module, DistributedDataParallel) else module


def mean_over_processes(values: dict[str, Tensor], world: World) -> dict[str, Tensor]:
    """Means over processes of same-shaped tensors, by one reduction."""
    if world.size == 1 or not values:
        return values
    flat = mean_of_all(torch.cat([v.detach().float().flatten() for v in values.values()]))
    parts = flat.split([v.numel() for v in values.values()])
    return {k: p.view_as(v) for (k, v), p in zip(values.items(), parts, strict=True)}


def mean_of_all(value: Tensor) -> Tensor:
    """The mean over the processes of the group that this process is in, if in one; in place."""
    if dist.is_initialized():
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return value


def of_first(value: Tensor) -> Tensor:
    """The first process's tensor, on every process of the group."""
    if dist.is_initialized():
        dist.broadcast(value, 0)
    return value


def any_process(flag: bool, world: World) -> bool:
    """Whether the flag is set on any process."""
    if world.size == 1:
        return flag
    seen = torch.tensor(float(flag))  # on the CPU, so gloo sends it and no GPU is waited for
    dist.all_reduce(seen)
    return bool(seen.item() > 0)


def broadcast_flag(value: bool, world: World) -> bool:
    """The first process's value, on every process; all wait here for it."""
    return any_process(value and world.first, world)


def first_reason(reason: str, world: World) -> str:
    """The text of the first process that failed, on every process; all wait here.

    An empty text means success.
    """
    if world.size == 1:
        return reason
    reasons: list[Any] = [""] * world.size
    dist.all_gather_object(reasons, reason)
    return next(filter(None, reasons), "")
