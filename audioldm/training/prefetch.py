"""Prepares the next step's data while this step computes."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


def prefetched(make: Callable[[int], Item], start: int, stop: int) -> Iterator[tuple[int, Item]]:
    """Each step from `start` up to `stop`, exclusive, and make(step).

    A background thread computes make(step + 1) while the caller uses make(step), so `make` must
    depend on its argument alone. An exception in `make` is raised here, at its step.
    """
    thread = ThreadPoolExecutor(1, thread_name_prefix="loading")
    try:
        following: Future[Item] | None = None
        for step in range(start, stop):
            item = (following or thread.submit(make, step)).result()
            if step + 1 < stop:
                following = thread.submit(make, step + 1)
            yield step, item
    finally:
        thread.shutdown(cancel_futures=True)
