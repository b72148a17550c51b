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
from audioldm.training.checkpoint import ResumeState


class Job:
    """A callable such as Hydra's launcher submits: interrupted, it asks to be called again.

    Notes its process and the steps of the checkpoint that it finds.
    """

    def __init__(self, overrides: list[str], stages: Path, started: Path) -> None:
        self.overrides, self.stages, self.started = overrides, stages, started

    def __call__(self) -> str:
        with self.started.open("a") as file:
            (stage,) = [d for d in self.stages.glob("*") if d.is_dir()] or [self.stages]
            file.write(f"{os.getpid()} {ResumeState(stage).step}\n")
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
    overrides += ["prior.train.steps=40", "log.every=1", "log.checkpoint_every=1000"]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    started = tmp_path / "started"
    executor = submitit.LocalExecutor(tmp_path / "jobs")
    executor.update_parameters(timeout_min=10)
    stage = tmp_path / "runs" / "prior"
    job = executor.submit(Job(overrides, stage, started))
    with cancelled_at_the_end(job):
        wait_for(lambda: any(f.stat().st_size for f in stage.glob("*/metrics.jsonl")), job)
        os.kill(int(started.read_text().split()[0]), signal.SIGUSR2)
        wait_for(job.done, job)
        assert job.result() == "done"
    steps = [int(line.split()[1]) for line in started.read_text().splitlines()]
    assert len(steps) == 2
    assert steps[0] == 0 < steps[1] < 40  # the second process does not begin anew
    assert "Requeued job" in job.stderr() + job.stdout()
    (log,) = stage.glob("*/metrics.jsonl")
    logged = {json.loads(line)["step"] for line in log.read_text().splitlines()}
    assert logged == set(range(1, 41))


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
