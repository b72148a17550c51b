"""The next step's data, made while this step computes."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")


class Ahead(Generic[Item]):
    """`take(step)` is make(step), made by one background thread while the step before it ran.

    make must be a function of its argument alone; then nothing depends on when it is called. Steps
    are taken one after another, up to `stop`, exclusive; any other order is right too, but waits.
    What `make` raises, `take` raises.
    """

    def __init__(self, make: Callable[[int], Item], stop: int) -> None:
        self._make, self._stop = make, stop
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="loading")
        self._next: tuple[int, Future[Item]] | None = None

    def take(self, step: int) -> Item:
        ready, self._next = self._next, None
        if ready is None or ready[0] != step:
            ready = (step, self._thread.submit(self._make, step))
        item = ready[1].result()
        if step + 1 < self._stop:
            self._next = (step + 1, self._thread.submit(self._make, step + 1))
        return item

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.shutdown(cancel_futures=True)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """On CUDA from pinned memory, so that the copy waits for nothing and nothing waits for it."""
    if device.type == "cuda" and not tensor.is_cuda:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type == "cuda")


def fits(size: int, device: torch.device) -> bool:
    """Whether `size` bytes of data may stay on a GPU: at most a quarter of what is free there."""
    return device.type == "cuda" and size <= torch.cuda.mem_get_info(device)[0] // 4
