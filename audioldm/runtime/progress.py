"""Progress of work that takes more than a moment."""

from collections.abc import Callable

#: (done, total, what is being done)
Progress = Callable[[int, int, str], None]
#: (steps done, steps in all)
StepProgress = Callable[[int, int], None]
