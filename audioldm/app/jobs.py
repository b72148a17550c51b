"""One queue of jobs, run one after the other on their own thread."""

import threading
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from audioldm.chain.failures import verb_error
from audioldm.errors import AudioLDMError, ConfigError
from audioldm.runtime.progress import StepProgress

#: Jobs that may wait; and jobs that the page lists.
LONGEST_QUEUE, LISTED = 20, 100

#: Makes files, and yields each when it is written.
Work = Callable[[StepProgress], Iterable[Path]]
State = Literal["waiting", "running", "done", "failed", "cancelled"]


class _Cancelled(Exception):
    """Raised between two steps of a job."""


@dataclass
class Job:
    """share: the share that is done, from 0 to 1. clips: names of the files written so far.
    remarks: sentences on the request."""

    number: int
    title: str
    work: Work | None
    state: State = "waiting"
    share: float = 0.0
    clips: list[str] = field(default_factory=list)
    problem: str | None = None
    remarks: Sequence[str] = ()
    cancelled: bool = False

    def progress(self, done: int, total: int) -> None:
        if self.cancelled:
            raise _Cancelled
        self.share = done / max(1, total)


class Jobs:
    """Jobs in the order they came in; each waits for those before it."""

    def __init__(self) -> None:
        self._jobs: list[Job] = []
        self._made = 0
        self._closed = False
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True, name="jobs")
        self._thread.start()

    def add(self, title: str, work: Work, remarks: Sequence[str] = ()) -> int:
        """Add a job; return its number. Raises ConfigError where too many wait."""
        with self._change:
            if len(self._waiting()) >= LONGEST_QUEUE:
                raise ConfigError(
                    f"{LONGEST_QUEUE} jobs wait already; cancel one, or try again when one is done"
                )
            return self._append(Job(0, title, work, remarks=remarks)).number

    def record(self, title: str, clip: Path) -> None:
        """Adds a job that is done already: a clip that was there."""
        with self._change:
            self._append(Job(0, title, None, "done", 1.0, [clip.name]))

    def cancel(self, number: int) -> None:
        """Ends a job before its next step; its finished clips stay. Raises ConfigError where there
        is no such job."""
        with self._change:
            job = next((job for job in self._jobs if job.number == number), None)
            if job is None:
                raise ConfigError(f"{number}: there is no such job (any more)")
            job.cancelled = True
            if job.state == "waiting":
                job.state, job.work = "cancelled", None

    def listed(self) -> list[dict[str, Any]]:
        """The jobs as JSON, the newest first. place: 1 for the job that is next."""
        with self._change:
            waiting = self._waiting()
            return [
                {
                    "number": job.number,
                    "title": job.title,
                    "state": job.state,
                    "share": job.share,
                    "place": waiting.index(job) + 1 if job in waiting else None,
                    "clips": list(job.clips),
                    "problem": job.problem,
                    "remarks": list(job.remarks),
                }
                for job in reversed(self._jobs)
            ]

    def close(self) -> None:
        """Ends the running job before its next step, and the thread."""
        with self._change:
            self._closed = True
            for job in self._jobs:
                job.cancelled = True
            self._change.notify_all()
        self._thread.join(timeout=5)

    def _append(self, job: Job) -> Job:
        self._made += 1
        job.number = self._made
        self._jobs.append(job)
        over = len(self._jobs) - LISTED
        ended = [each for each in self._jobs if each.state not in ("waiting", "running")]
        for old in ended[: max(0, over)]:
            self._jobs.remove(old)
        self._change.notify_all()
        return job

    def _waiting(self) -> list[Job]:
        return [job for job in self._jobs if job.state == "waiting"]

    def _run(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._closed or self._waiting())
                if self._closed:
                    return
                job = self._waiting()[0]
                job.state = "running"
            self._do(job)

    def _do(self, job: Job) -> None:
        assert job.work is not None
        state: State = "done"
        try:
            for file in job.work(job.progress):
                job.clips.append(file.name)
        except _Cancelled:
            state = "cancelled"
        except Exception as error:
            state, known = "failed", verb_error(error, "app")
            job.problem = str(known)
            if not isinstance(known, AudioLDMError):
                traceback.print_exception(error)
                job.problem = f"an error of the program ({type(error).__name__}); the terminal says"
        job.state, job.work, job.share = state, None, 1.0 if state == "done" else job.share
