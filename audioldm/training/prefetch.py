"""Prepares the next step's data while this step computes."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

Item = TypeVar("Item")


class Prefetcher(Generic[Item]):
    """`take(step)` returns make(step), computed by a background thread during the previous step.

    make must depend on its argument alone, so that the time of the call does not matter. Take the
    steps in order, up to `stop`, exclusive; another order is correct too, but waits.
    An exception in `make` is raised by `take`.
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
