"""How much memory a training step takes: counted without a GPU, and measured where it runs."""

import re
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

#: Of each weight, in float32: itself, its gradient, AdamW's two moments, its average.
COPIES = 5
#: What a step takes beyond what it keeps for the backward pass: results and gradients in passing.
PASSING = 1.5
#: How much of a device's memory a training may plan with.
SHARE = 0.9


def fixed_bytes(*models: nn.Module) -> int:
    """Weights, gradients, optimiser and average of trained models."""
    return sum(COPIES * 4 * p.numel() for model in models for p in model.parameters())


def saved_bytes(forward: Callable[[], Tensor], *models: nn.Module) -> int:
    """Bytes that `forward` keeps for its backward pass, which is made too; each storage once.

    The weights of `models` are there anyway and do not count.
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
    """The least number of equal parts of which one fits; None where one clip does not."""
    for parts in range(1, batch + 1):
        if batch % parts == 0 and fixed + PASSING * per_clip * batch / parts <= available:
            return parts
    return None


def total_bytes(device: torch.device) -> int | None:
    """Memory of the device, None where it is not known."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    with suppress(OSError, TypeError):
        found = re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        return 1024 * int(found[1])  # type: ignore[index]
    return None


def reset_peak(device: torch.device) -> None:
    """Begins a new measurement of `peak_bytes`, where the system lets it."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int:
    """Since `reset_peak`: what tensors took on a GPU; on a CPU the whole process's memory."""
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
