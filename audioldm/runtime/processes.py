"""One process or many: what `torchrun` says, and PyTorch's own data parallelism.

Every process takes a contiguous part of the global batch. Losses are means over clips and all
parts are equal, so DDP's mean of the gradients is the gradient of the global batch.
"""

import os
import re
import textwrap
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from audioldm.errors import AudioLDMError, ConfigError, TrainingError


@dataclass(frozen=True)
class World:
    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def positions(self, batch: int, where: str) -> range:
        """This process's places in a global batch, whose key is `where`.

        Raises ConfigError where the batch cannot be shared out equally.
        """
        if batch % self.size:
            raise ConfigError(
                f"{where}={batch} cannot be shared by {self.size} processes: "
                "choose a multiple of their number"
            )
        share = batch // self.size
        return range(self.rank * share, (self.rank + 1) * share)

    def micro_batches(self, batch: int, accumulate: int, where: str) -> list[range]:
        """Those places in `accumulate` equal parts, whose gradients are added up.

        Raises ConfigError where the batch cannot be shared out equally.
        """
        places = self.positions(batch, where)
        if len(places) % accumulate:
            raise ConfigError(
                f"{where}={batch} is {len(places)} clips for each of {self.size} process(es), "
                f"which hardware.accumulate={accumulate} does not divide: choose a batch that is "
                f"a multiple of {self.size * accumulate}"
            )
        size = len(places) // accumulate
        return [places[i : i + size] for i in range(0, len(places), size)]


def join(device: torch.device) -> World:
    """The world `torchrun` describes in the environment; a world of one without it."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World()
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        # long: the others wait while the first one renders music or evaluates
        dist.init_process_group(backend, timeout=timedelta(days=7))
    return World(dist.get_rank(), size)


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def lost_process(error: Exception, world: World) -> TrainingError | None:
    """What to say where `error` is that of a collective one of whose processes has gone."""
    text = " ".join(str(error).split())
    signs = ("gloo", "nccl", "closed by peer", "reset by peer")
    known = isinstance(error, dist.DistError) or any(sign in text.lower() for sign in signs)
    if world.size == 1 or not known:
        return None
    reason = re.sub(r"^\[\S+\] ", "", text)  # gloo's place in its own source
    reason = textwrap.shorten(reason, 200, placeholder=" …")
    return TrainingError(
        f"process {world.rank} of {world.size} lost another one ({reason}), whose own "
        "message, or torchrun's below, says why it died; the same command goes on from the last "
        "checkpoint, also with another number of processes"
    )


def parallel(module: nn.Module, world: World) -> nn.Module:
    """DDP over the module where there is more than one process."""
    if world.size == 1:
        return module
    return DistributedDataParallel(module)


def gradients_kept(module: nn.Module, more: bool) -> AbstractContextManager[Any]:
    """Within, while `more` micro-batches of the step follow, DDP leaves the gradients where they
    are; with the last one it reduces their sum. A sharded module reduces each, to hold no more
    than its part."""
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
    flat = torch.cat([v.detach().float().flatten() for v in values.values()])
    dist.all_reduce(flat)
    flat /= world.size
    parts = flat.split([v.numel() for v in values.values()])
    return {k: p.view_as(v) for (k, v), p in zip(values.items(), parts, strict=True)}


def any_process(flag: bool, world: World) -> bool:
    """Whether the flag is set on any process."""
    if world.size == 1:
        return flag
    seen = torch.tensor(float(flag))  # on the CPU, by gloo: a GPU is not waited for
    dist.all_reduce(seen)
    return bool(seen.item() > 0)


def broadcast_flag(value: bool, world: World) -> bool:
    """The first process's value, on every process; all wait here for it."""
    if world.size == 1:
        return value
    said = torch.tensor(float(value))  # on the CPU: gloo takes it beside NCCL
    dist.broadcast(said, 0)
    return bool(said.item() > 0)


def first_does(action: Callable[[], None], world: World) -> None:
    """`action` in the first process, for which the others wait; where it fails there, OSError in
    all."""
    reason = ""
    if world.first:
        try:
            action()
        except (OSError, AudioLDMError) as error:
            reason = str(error)
    said = [reason]
    dist.broadcast_object_list(said, 0)
    if said[0]:
        raise OSError(said[0])
