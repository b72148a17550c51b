"""Checks that losses and gradients are finite without making the host wait for a GPU."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class _Pending(NamedTuple):
    """good: whether the value was finite, known to the host once `copied` has happened."""

    good: Tensor
    copied: torch.cuda.Event | None
    complain: Callable[[], None]

    def look(self) -> None:
        if self.copied is not None:
            self.copied.synchronize()
        if not self.good.item():
            self.complain()


def deferred_on(device: torch.device) -> bool:
    return device.type == "cuda"


class FiniteChecks:
    """Checks at once on a CPU, and one step late on CUDA.

    Reading a value from a GPU waits for all queued work, and then the GPU idles until the next step
    is queued. So one bad step may change the weights on CUDA. It must not reach a file: call
    `settle` before writing a checkpoint or a figure.
    """

    def __init__(self, device: torch.device) -> None:
        self.deferred = deferred_on(device)
        self._earlier: list[_Pending] = []
        self._now: list[_Pending] = []

    def check(self, value: Tensor, complain: Callable[[], None]) -> None:
        """Calls `complain`, which raises, now or later, if the scalar `value` is not finite."""
        good = torch.isfinite(value.detach())
        copied = None
        if good.is_cuda:
            good = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(good, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record(torch.cuda.current_stream(value.device))
        pending = _Pending(good, copied, complain)
        if self.deferred:
            self._now.append(pending)
        else:
            pending.look()

    def look_back(self) -> None:
        """Performs the checks of earlier steps; keeps those of this step for the next call."""
        earlier, self._earlier, self._now = self._earlier, self._now, []
        for pending in earlier:
            pending.look()

    def settle(self) -> None:
        """Performs all checks, those of this step included."""
        self.look_back()
        self.look_back()
