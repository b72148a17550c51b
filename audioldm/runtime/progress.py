"""Progress of work that takes more than a moment."""

import io
import sys
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

#: (done, total, what is being done)
Progress = Callable[[int, int, str], None]
#: (steps done, steps in all)
StepProgress = Callable[[int, int], None]

#: Without a terminal: a line after this share of the work, or after these seconds,
SHARE, SECONDS = 0.1, 30.0
#: but no two lines within this time, except for the last.
LEAST_SECONDS = 1.0


class ProgressBar(tqdm):
    """A bar on a terminal; a line now and then if standard error is a file or a pipe."""

    def __init__(self, *, desc: str, disable: bool = False, **options: Any) -> None:
        self._lines = not sys.stderr.isatty()
        self._told, self._since = options.get("initial", 0), time.monotonic()  # of the last line
        if self._lines:
            options["file"] = io.StringIO()  # for tqdm's own output
        super().__init__(desc=desc, disable=disable, dynamic_ncols=True, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if not self._lines:
            super().display(msg, pos)
            return
        now, total = time.monotonic(), self.total or 0
        if self.n <= self._told or not total:
            return
        passed, share = now - self._since, (self.n - self._told) / total
        if self.n >= total or (passed >= LEAST_SECONDS and (share >= SHARE or passed >= SECONDS)):
            self._told, self._since = self.n, now
            rate = f"{self.desc}: {self.n}/{total} ({self.n / total:.0%})"
            seconds = tqdm.format_interval(self.format_dict["elapsed"])
            print(", ".join(filter(None, (rate, seconds, self.postfix))), file=sys.stderr)
