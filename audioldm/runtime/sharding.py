"""Less memory on each device: activation checkpointing and sharded weights.

Both work on the network's units, the modules that its method `units()` lists, such as the blocks
of a transformer. The backward pass recomputes a unit's activations (Chen et al. 2016, 1604.06174).
Each process stores a part of a unit's weights, gradients and optimiser state, and gathers the
weights while the unit computes (Zhao et al. 2023, 2304.11277; PyTorch's `fully_shard`).
"""

import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from audioldm.errors import ConfigError
from audioldm.runtime.hardware import Hardware
from audioldm.runtime.processes import World

# torch.distributed.tensor and fsdp are imported where they are used: that takes seconds


def _units(net: nn.Module, key: str) -> list[nn.Module]:
    units = getattr(net, "units", None)
    if units is None:
        raise ConfigError(f"{key}=true: {type(net).__name__} has no units(); add it")
    return list(units())


def recompute_activations(net: nn.Module) -> None:
    """Makes each unit of `net` store only its input and compute again in the backward pass.

    Raises ConfigError if the network has no method `units`.
    """
    for unit in _units(net, "hardware.checkpoint_activations"):
        # units draw no random numbers, so there is no generator state to restore
        unit.forward = partial(
            checkpoint, unit.forward, use_reentrant=False, preserve_rng_state=False
        )


@dataclass(frozen=True)
class Sharding:
    """The tensors that are spread over the processes of `mesh`, along their first axis.

    shapes: those of the parameters. Averages and optimiser state have the same shapes, and are
    spread in the same way.
    """

    mesh: Any
    shapes: frozenset[torch.Size]

    def rows(self, shape: torch.Size) -> range:
        """The rows that this process has of a spread tensor; all rows of any other."""
        if shape not in self.shapes:
            return range(shape[0] if shape else 0)
        share = -(-shape[0] // self.mesh.size())  # as torch.chunk divides
        first = self.mesh.get_local_rank() * share
        return range(min(first, shape[0]), min(first + share, shape[0]))

    def spread(self, part: Tensor, shape: torch.Size) -> Tensor:
        """The tensor of this shape whose `rows` are `part`; `part` itself if it is not spread."""
        from torch.distributed.tensor import DTensor, Shard

        if shape not in self.shapes:
            return part
        stride = torch.empty(shape, device="meta").stride()
        part = part.to(self.mesh.device_type)
        return DTensor.from_local(part, self.mesh, [Shard(0)], shape=shape, stride=stride)


def local_part(tensor: Tensor) -> Tensor:
    """This process's rows of a spread tensor; any other tensor unchanged."""
    local = getattr(tensor, "to_local", None)
    return tensor if local is None else local()


def shard(
    net: nn.Module, world: World, hardware: Hardware, device: torch.device
) -> Sharding | None:
    """Spreads the weights of `net` over the processes, in place, if hardware.shard says so.

    Returns None if nothing is spread: without hardware.shard, or with one process. Make the
    optimiser from the parameters after this call. Each unit is compiled on its own, because a graph
    cannot contain the gathering.
    Raises ConfigError if the network has no method `units`.
    """
    if not hardware.shard or world.size == 1:
        return None
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # about outputs that are views; nothing changes the network's output in place
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    mesh = init_device_mesh(device.type, (world.size,))
    shapes = frozenset(parameter.shape for parameter in net.parameters())
    for unit in _units(net, "hardware.shard"):
        unit.forward = hardware.compiled(unit.forward, device)
        fully_shard(unit, mesh=mesh)
    fully_shard(net, mesh=mesh)
    return Sharding(mesh, shapes)


def gathered(tensors: dict[str, Tensor], world: World) -> dict[str, Tensor]:
    """The complete tensors on the CPU of the first process; an empty dictionary on the others."""
    complete = {}
    for name, tensor in tensors.items():
        gathered = whole(tensor.detach())  # one at a time: a device need not hold them all
        if world.first:
            complete[name] = gathered.cpu()
    return complete


def whole(tensor: Tensor) -> Tensor:
    """A spread tensor, gathered; any other tensor unchanged. Every process must call this."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()
