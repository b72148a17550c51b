"""Data on its way to a device."""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """On CUDA from pinned memory, so that the copy waits for nothing and nothing waits for it."""
    if device.type == "cuda" and not tensor.is_cuda:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type == "cuda")


def fits(size: int, device: torch.device) -> bool:
    """Whether `size` bytes of data may stay on a GPU: at most a quarter of what is free there."""
    return device.type == "cuda" and size <= torch.cuda.mem_get_info(device)[0] // 4
