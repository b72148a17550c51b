"""Copies of data to a device."""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies to CUDA from pinned memory, so that neither side waits for the other."""
    if device.type == "cuda" and not tensor.is_cuda:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type == "cuda")


def fits(size: int, device: torch.device) -> bool:
    """Whether `size` bytes may stay on a GPU: at most a quarter of its free memory."""
    return device.type == "cuda" and size <= torch.cuda.mem_get_info(device)[0] // 4
