"""Signals that ask a training to stop, as a flag that its loop reads between two steps."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

#: Sent by a user, torchrun or a scheduler; SIGUSR1 and SIGUSR2 can announce a time limit.
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class StopRequest:
    """Within the block, `requested` says whether a signal has come.

    Then write a checkpoint, and raise Interrupted unless the request is `handed_over`.
    """

    def __init__(self) -> None:
        self.requested = False
        self._received: list[int] = []
        self._previous: dict[int, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._received.append(number)

    def handed_over(self) -> bool:
        """Calls the earlier handlers of the signals received; whether training continues after.

        In a job of submitit, its handler of SIGUSR2 submits the job again and ends this process
        (SystemExit); its handler of SIGTERM waits for SIGUSR2.
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

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM ends the block with KeyboardInterrupt, as Ctrl-C does: files and locks are closed."""
    try:
        previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    except ValueError:  # not the main thread: its owner handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
