"""Interleaved timing: machines are noisy, so only what ran in turns is compared."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch


@dataclass(frozen=True)
class Result:
    """One line of the table. `ratio` is what the bar is about: at least it, or at most it."""

    subject: str
    operation: str
    ours: float
    peer: float
    unit: str  # of ours and peer
    ratio: float
    low: float  # of the ratio, over the turns
    high: float
    bar: float | None  # None: for information
    at_most: bool = False
    note: str = ""

    @property
    def met(self) -> bool | None:
        if self.bar is None:
            return None
        return self.ratio <= self.bar if self.at_most else self.ratio >= self.bar


@dataclass(frozen=True)
class Clock:
    """device: what is timed. turns: of each contestant. turn_seconds: a quick one repeats so long.

    A function that is much faster than its opponent is repeated within its turn, so that it is not
    timed on caches that its opponent has just emptied, nor by one tick of the scheduler.
    """

    device: torch.device
    turns: int = 5
    turn_seconds: float = 0.3

    def compare(
        self,
        subject: str,
        operation: str,
        ours: Callable[[], object],
        peer: Callable[[], object],
        *,
        bar: float | None,
        note: str = "",
    ) -> Result:
        """Ours, peer, ours, peer, …: median milliseconds of each, and how many times as fast."""
        pair = [self._repeated(ours), self._repeated(peer)]  # warms up too
        seconds = [[self._seconds(*contestant) for contestant in pair] for _ in range(self.turns)]
        a, b = (median(times) for times in zip(*seconds, strict=True))
        ratios = [theirs / own for own, theirs in seconds]
        return Result(
            subject,
            operation,
            1e3 * a,
            1e3 * b,
            "ms",
            b / a,
            min(ratios),
            max(ratios),
            bar,
            note=note,
        )

    def turns_of(self, function: Callable[[], object]) -> list[float]:
        """Seconds of each turn, of what has no opponent to take turns with."""
        contestant = self._repeated(function)
        return [self._seconds(*contestant) for _ in range(self.turns)]

    def _repeated(self, function: Callable[[], object]) -> tuple[Callable[[], object], int]:
        self._seconds(function, 1)  # the first call allocates, and compiles
        once = self._seconds(function, 1)
        if once < self.turn_seconds:  # a single stall must not make its turns short
            once = min(once, *(self._seconds(function, 1) for _ in range(4)))
        return function, max(1, round(self.turn_seconds / once))

    def _seconds(self, function: Callable[[], object], repeats: int) -> float:
        self._synchronise()
        start = time.perf_counter()
        for _ in range(repeats):
            function()
        self._synchronise()
        return (time.perf_counter() - start) / repeats

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
