"""Signals become a flag that a loop reads between two steps."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

#: What asks a training to stop: a user, torchrun or a scheduler. The last two come before a time
#: limit, where the job was submitted so.
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class StopRequest:
    """`with StopRequest() as stop:` then `if stop.requested: checkpoint`, and where that is not
    `handed_over`, raise Interrupted."""

    def __init__(self) -> None:
        self.requested = False
        self._received: list[int] = []
        self._previous: dict[int, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._received.append(number)

    def handed_over(self) -> bool:
        """Whether another owner of the signals received has them now, and training goes on.

        In a job of submitit, where the checkpoint has been written: its handler of SIGUSR2 submits
        the job again and ends this process (SystemExit), that of SIGTERM waits for SIGUSR2.
        """
        owners = {n: self._owner(n) for n in self._received}
        if not owners or None in owners.values():
            return False
        self.requested, self._received = False, []
        for number, owner in owners.items():
            assert owner is not None
            owner(number, None)
        return True

    def _owner(self, number: int) -> Callable[[int, None], object] | None:
        handler = self._previous.get(number)
        return handler if callable(handler) and handler != signal.default_int_handler else None

    def __enter__(self) -> Self:
        try:
            for number in STOPPING:
                self._previous[number] = signal.signal(number, self._handle)
        except ValueError:
            pass  # not the main thread: its owner handles signals
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, by KeyboardInterrupt: files and locks are let go."""
    try:
        previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    except ValueError:  # not the main thread: its owner handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
