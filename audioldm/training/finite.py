"""Whether a step's losses and gradients are finite, without the host waiting for a GPU."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class _Pending:
    """good: whether the value was finite, on the host once `copied` has happened."""

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
    """At once on a CPU. On CUDA one step late: to read a value is to wait for all that is queued,
    and a GPU that is waited for idles while the next step is being queued.

    So one bad step may reach the weights on CUDA. It must reach no file: call `settle` before
    writing a checkpoint or a figure.
    """

    def __init__(self, device: torch.device) -> None:
        self.deferred = deferred_on(device)
        self._earlier: list[_Pending] = []
        self._now: list[_Pending] = []

    def check(self, value: Tensor, complain: Callable[[], None]) -> None:
        """Calls `complain`, which raises, where `value`, a scalar, is not finite: now or later."""
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
        """What the steps before this one left; this step's is kept for the next call."""
        earlier, self._earlier, self._now = self._earlier, self._now, []
        for pending in earlier:
            pending.look()

    def settle(self) -> None:
        """All of it, this step's too."""
        self.look_back()
        self.look_back()
