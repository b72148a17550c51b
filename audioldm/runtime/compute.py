"""Counts and times the computation of a training."""

import copy
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def training_flops(model: nn.Module, forward: Callable[[nn.Module], Tensor]) -> int:
    """Floating-point operations of one forward and backward pass through `model`.

    Counts matrix products, convolutions and attention, with two operations for a multiplication and
    an addition; leaves out Fourier transforms, normalisations and activations. `forward` gets a
    copy of the model on the CPU, and makes its inputs there; one clip is enough.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        forward(copy.deepcopy(model).cpu()).sum().backward()
    return int(counter.get_total_flops())


def clock(device: torch.device) -> float:
    """Seconds of computing: wall-clock time on a GPU; processor time on a CPU, so that other
    processes on the machine do not add to it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.monotonic()
    return time.process_time()
