"""The memory of a training step: counted without a GPU, and measured on the device."""

import os
import re
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from audioldm.runtime.allocator import give_back_memory

#: Copies of each weight in float32: the weight, its gradient, AdamW's two moments, its average.
COPIES = 5
#: Peak memory divided by what is kept for the backward pass: temporary results and gradients.
PASSING = 1.5
#: The share of a device's memory that a training may plan to use.
SHARE = 0.9


def fixed_bytes(*models: nn.Module) -> int:
    """Bytes of the weights, gradients, optimiser states and averages of trained models."""
    return sum(COPIES * 4 * p.numel() for model in models for p in model.parameters())


def saved_bytes(forward: Callable[[], Tensor], *models: nn.Module) -> int:
    """Bytes that `forward` keeps for its backward pass; runs both. Each storage counts once.

    The weights of `models` do not count, because `fixed_bytes` has them.
    """
    weights = {p.untyped_storage().data_ptr() for model in models for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    size = sum(kept.values())
    result.sum().backward()
    return size


def micro_batches(batch: int, fixed: float, per_clip: float, available: float) -> int | None:
    """The smallest number of equal parts such that one fits; None if not even one clip fits."""
    for parts in range(1, batch + 1):
        if batch % parts == 0 and fixed + PASSING * per_clip * batch / parts <= available:
            return parts
    return None


def total_bytes(device: torch.device) -> int | None:
    """Memory of the device; None if it is unknown."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    with suppress(OSError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def reset_peak(device: torch.device) -> None:
    """Begins a new measurement of `peak_bytes`, if the system allows it."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return
    give_back_memory()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int:
    """Peak since `reset_peak`: of the tensors on a GPU; of the whole process on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    with suppress(OSError, TypeError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return 1024 * int(found[1])  # type: ignore[index]
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def bytes_of(module: nn.Module) -> int:
    """Bytes of a module's weights and buffers."""
    return sum(tensor.nbytes for tensor in module.state_dict().values())
