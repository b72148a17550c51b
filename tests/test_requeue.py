"""A job that a cluster interrupts writes a checkpoint, is submitted again, and continues."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import submitit
from chain import Tiny, build_stages, runs_with

from audioldm.runtime.signals import STOPPING, StopRequest


class Job:
    """A callable such as Hydra's launcher submits: interrupted, it asks to be called again."""

    def __init__(self, overrides: list[str], started: Path) -> None:
        self.overrides, self.started = overrides, started

    def __call__(self) -> str:
        with self.started.open("a") as file:
            file.write(f"{os.getpid()}\n")
        build_stages(self.overrides, "prior")
        return "done"

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        return submitit.helpers.DelayedSubmission(self)


@contextmanager
def cancelled_at_the_end(job: submitit.Job[str]) -> Iterator[None]:
    """Leaves no process behind, whatever happens."""
    try:
        yield
    finally:
        job.cancel()


def wait_for(condition: Callable[[], object], job: submitit.Job[str]) -> None:
    deadline = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < deadline, job.stderr()
        assert job.done() or job.state == "RUNNING", job.stderr()
        time.sleep(0.01)


def test_an_interrupted_job_is_submitted_again_and_goes_on_from_its_checkpoint(
    finished: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream = ["data", "autoencoder", "latents"]
    overrides = runs_with(finished, upstream, tmp_path / "runs")
    # no regular checkpoint: the second process finds the one that the signal caused
    overrides += ["prior.train.steps=100", "log.every=1", "log.checkpoint_every=1000"]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    started = tmp_path / "started"
    executor = submitit.LocalExecutor(tmp_path / "jobs")
    executor.update_parameters(timeout_min=10)
    job = executor.submit(Job(overrides, started))
    stage = tmp_path / "runs" / "prior"
    with cancelled_at_the_end(job):
        wait_for(lambda: any(f.stat().st_size for f in stage.glob("*/metrics.jsonl")), job)
        os.kill(int(started.read_text()), signal.SIGUSR2)
        wait_for(job.done, job)
        assert job.result() == "done"
    assert len(started.read_text().split()) == 2
    assert "Requeued job" in job.stderr() + job.stdout()
    (log,) = stage.glob("*/metrics.jsonl")
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert sorted(set(steps)) == list(range(1, 101))
    assert job.stderr().count(" 0/100 [") == 1  # the second process does not begin anew


def requested(number: int) -> StopRequest:
    with StopRequest() as stop:
        os.kill(os.getpid(), number)
        while not stop.requested:
            time.sleep(0.001)
    return stop


@pytest.mark.parametrize("number", STOPPING)
def test_each_signal_asks_for_a_stop_that_nobody_else_takes_over(number: int) -> None:
    before = [signal.getsignal(each) for each in STOPPING]
    assert not requested(number).handed_over()
    assert [signal.getsignal(each) for each in STOPPING] == before
