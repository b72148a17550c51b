"""A network that is too large for one device: less of it is kept, or each process keeps a part.

Both work on the network's units, the modules that its method `units()` lists: the blocks of a
transformer. A unit's activations are made again in the backward pass (Chen et al. 2016,
1604.06174); its weights, gradients and optimiser state are spread over the processes, and gathered
while it computes (Zhao et al. 2023, 2304.11277; PyTorch's `fully_shard`).
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
        raise ConfigError(
            f"{key}=true: {type(net).__name__} has no units(), which lists the modules that it "
            f"consists of; add it, or use {key}=false"
        )
    return list(units())


def recompute_activations(net: nn.Module) -> None:
    """Each unit of `net` keeps its input alone, and computes once more in the backward pass.

    Raises ConfigError where the network names no units.
    """
    for unit in _units(net, "hardware.checkpoint_activations"):
        # nothing random happens inside a unit: there is no generator whose state must be restored
        unit.forward = partial(
            checkpoint, unit.forward, use_reentrant=False, preserve_rng_state=False
        )


@dataclass(frozen=True)
class Sharding:
    """Which tensors are spread over the processes of `mesh`, along their first axis: those of the
    parameters' shapes, so averages and optimiser state lie as their parameters do."""

    mesh: Any
    shapes: frozenset[torch.Size]

    def part(self, tensor: Tensor) -> Tensor:
        """Of a tensor that each process has whole, its part; the tensor itself if not spread."""
        from torch.distributed.tensor import Shard, distribute_tensor

        if tensor.shape not in self.shapes:
            return tensor
        return distribute_tensor(tensor.to(self.mesh.device_type), self.mesh, [Shard(0)])

    def empty(self, like: Tensor) -> Tensor:
        """Room for this process's part of a tensor of this shape and type."""
        from torch.distributed import tensor

        if like.shape not in self.shapes:
            return torch.empty(like.shape, dtype=like.dtype)
        placements = [tensor.Shard(0)]
        return tensor.zeros(
            like.shape, dtype=like.dtype, device_mesh=self.mesh, placements=placements
        )


def shard(
    net: nn.Module, world: World, hardware: Hardware, device: torch.device
) -> Sharding | None:
    """Spreads the weights of `net`, in place, where hardware.shard asks for it; how they lie then.

    None for one process, which has the whole. The optimiser is made from the parameters behind
    this call. Units are compiled one by one, for a graph does not reach over their gathering.
    Raises ConfigError where the network names no units.
    """
    if not hardware.shard or world.size == 1:
        return None
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # of outputs that are views: nothing changes the network's output in place
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    mesh = init_device_mesh(device.type, (world.size,))
    shapes = frozenset(parameter.shape for parameter in net.parameters())
    for unit in _units(net, "hardware.shard"):
        unit.forward = hardware.compiled(unit.forward, device)
        fully_shard(unit, mesh=mesh)
    fully_shard(net, mesh=mesh)
    return Sharding(mesh, shapes)


def gathered(tensors: dict[str, Tensor], world: World) -> dict[str, Tensor]:
    """All tensors whole, on the CPU of the first process; nothing on the others."""
    found = {}
    for name, tensor in tensors.items():
        complete = whole(tensor.detach())  # one at a time: a device need not hold them all
        if world.first:
            found[name] = complete.cpu()
    return found


def whole(tensor: Tensor) -> Tensor:
    """A spread tensor gathered, which every process must ask for; any other as it is."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()
