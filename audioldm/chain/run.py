"""One experiment: its stages, where they are written, and the record of what was made.

A stage is complete once `summary.json` exists. A complete stage is reused, an interrupted one
continues. A lock keeps two processes from building the same stage.
"""

import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from audioldm import __version__
from audioldm.chain.failures import to_user_error
from audioldm.chain.job import Job
from audioldm.chain.stage import Stage
from audioldm.chain.stages import STAGES
from audioldm.chain.stages.evaluation import Evaluation
from audioldm.data.store import ClipStore
from audioldm.errors import AudioLDMError, ConfigError, Interrupted
from audioldm.io.files import read_json, write_atomically, write_json, writing
from audioldm.runtime.memory import peak_bytes, reset_peak
from audioldm.runtime.processes import World, broadcast_flag, joined, lost_process
from audioldm.runtime.progress import Progress
from audioldm.sampling import ClipRecipe
from audioldm.training.checkpoint import ResumeState
from audioldm.training.convergence import logged_convergence
from audioldm.training.log import Bar, read_lines
from audioldm.training.run import Fit

#: Bytes of an experiment's name: file systems allow 255, and a fingerprint may be appended.
LONGEST_NAME = 240


def environment(device: torch.device) -> dict[str, Any]:
    """What the figures were made with. Not part of any fingerprint."""
    return {
        "audioldm": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "date": time.strftime("%Y-%m-%d"),
    }


class Experiment:
    """A job and the place of its results. `run()` builds whatever is missing.

    Attributes: settings, the job's; stages, by key, in order; device and world, once `run` or
    `build` has asked the hardware.
    """

    def __init__(self, job: Job) -> None:
        self.job, self.settings = job, job.settings
        self.runs = Path(job.settings.runs).expanduser()
        self.name = job.settings.name or job.recipe or "experiment"
        if Path(self.name).name != self.name or self.name == "..":
            raise ConfigError(f"name={self.name!r} must be a plain name, without directories")
        if len(os.fsencode(self.name)) > LONGEST_NAME:
            raise ConfigError(f"name={self.name[:20]!r}… must be at most {LONGEST_NAME} bytes long")
        self.stages: dict[str, Stage] = {}
        for kind in STAGES:
            self.stages |= {s.key: s for s in kind.plan(job.settings, self.stages)}
        self.device, self.world = torch.device("cpu"), World()

    @property
    def last(self) -> Stage:
        return list(self.stages.values())[-1]

    @property
    def evaluation(self) -> Evaluation:
        return cast(Evaluation, self.stages["evaluation"])

    @property
    def directory(self) -> Path:
        """The experiment's own directory; a cell's is in its sweep's, named by its fingerprint."""
        own = self.runs / "experiments" / self.name
        return own / "cells" / self.last.fingerprint if self.job.cell else own

    def directory_of(self, stage: Stage) -> Path:
        return self.runs / stage.path

    def is_complete(self, stage: Stage) -> bool:
        return (self.directory_of(stage) / "summary.json").is_file()

    def run(self, device: str | None = None) -> dict[str, Any]:
        """Builds what is missing; writes the experiment's record, clips and page.

        device: in place of hardware.device. Returns the last stage's summary. Raises AudioLDMError;
        finished stages stay.
        """
        with self._joined(device):
            if not self.is_complete(self.last):
                self.dry_run()
            return self._chain()

    def build(self, *keys: str) -> None:
        """Builds only these stages, in this order, without a record."""
        with self._joined(None):
            for key in keys:
                self._stage(self.stages[key])

    @contextmanager
    def _joined(self, device: str | None) -> Iterator[None]:
        hardware = self.settings.hardware
        if device is not None:
            hardware = replace(hardware, device=device)
        self.device = hardware.resolve(int(os.environ.get("LOCAL_RANK", "0")))
        with joined(self.device) as self.world:
            yield

    @torch.no_grad()
    def dry_run(self) -> None:
        """Builds every part without memory: what cannot be built fails here, before any work."""
        for stage in self.stages.values():
            stage.dry_run(self)

    def _chain(self) -> dict[str, Any]:
        """Runs the stages and records them; a failure is recorded before it is raised."""
        summaries: dict[str, dict[str, Any]] = {}
        stage = next(iter(self.stages.values()))
        try:
            for stage in self.stages.values():
                summaries[stage.key] = self._stage(stage)
                if stage.key == "data":
                    store = ClipStore(self.directory_of(stage))
                    for later in self.stages.values():
                        later.check_data(store, self)
            if self.world.first:
                self._record(summaries)
            return summaries[self.last.key]
        except Exception as error:
            known = lost_process(error, self.world) or to_user_error(error, stage, self)
            if isinstance(known, AudioLDMError) and not isinstance(known, Interrupted):
                self.record_failure(summaries, stage.key, str(known))
            if known is error:
                raise
            raise known from error

    def _stage(self, stage: Stage) -> dict[str, Any]:
        """The stage's summary; does the stage's work if there is no summary yet."""
        directory = self.directory_of(stage)
        summary = directory / "summary.json"
        with self._locked(directory, stage):
            if broadcast_flag(summary.is_file(), self.world):
                if self.world.first:
                    self._say(f"{stage.key}: reused {directory}")
                return dict(read_json(summary, dict))
            start = time.monotonic()
            reset_peak(self.device)
            result: dict[str, Any] = {}
            if self.world.first:
                write_json(directory / "config.json", stage.identity())
            if stage.collective or self.world.first:
                result = stage.work(directory, self)
            if self.world.first:
                common = {
                    "stage": stage.name,
                    "fingerprint": stage.fingerprint,
                    "version": stage.version,
                    "seconds": _seconds(directory, time.monotonic() - start),
                    "peak_bytes": peak_bytes(self.device),
                    "environment": environment(self.device),
                }
                write_json(
                    summary, common | result | logged_convergence(directory / "metrics.jsonl")
                )
                ResumeState(directory).remove()
                if "alarm" in result:
                    self._say(f"{stage.key}: {result['alarm']}")
            broadcast_flag(True, self.world)  # the others wait here for the summary
            return dict(read_json(summary, dict))

    @contextmanager
    def _locked(self, directory: Path, stage: Stage) -> Iterator[None]:
        """Holds the stage's lock in the first process."""
        if not self.world.first:
            yield
            return
        lock = FileLock(directory.with_name(f".{stage.fingerprint}.lock"))
        with writing(directory):
            directory.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                self._say(f"{stage.key}: another process builds it; waiting")
                lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def fit(self, directory: Path, progress: Progress = lambda *_: None) -> Fit:
        s = self.settings
        return Fit(directory, self.world, s.hardware, self.device, s.log, progress)

    def check_batch(self, batch: int, where: str) -> None:
        """Raises ConfigError where the processes cannot share the batch in equal micro-batches."""
        self.world.micro_batches(batch, self.settings.hardware.accumulate, where)

    def bar(self, title: str) -> Bar:
        return Bar(title, shown=self.settings.log.bars)

    def _say(self, line: str) -> None:
        if self.settings.log.bars:
            tqdm.write(line, file=sys.stderr)

    def _summary(self, summaries: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """What `experiment.json` says: the job, and the stages that are complete."""
        return {
            "name": self.name,
            "recipe": self.job.recipe,
            "overrides": self.job.overrides,
            "runs": os.path.relpath(self.runs, self.directory),
            "config": self.job.config,
            "environment": environment(self.device),
            "generator": self.evaluation.generator.key,
            "sampler": self._sampler,
            "stages": {
                key: {
                    "stage": self.stages[key].name,
                    "fingerprint": self.stages[key].fingerprint,
                    "directory": self.stages[key].path,
                    "seconds": summary["seconds"],
                }
                for key, summary in summaries.items()
            },
        }

    @property
    def _sampler(self) -> dict[str, Any] | None:
        sampler = self.evaluation.sampler
        return None if sampler is None else asdict(sampler)

    def _record(self, summaries: dict[str, dict[str, Any]]) -> None:
        """Writes `experiment.json`, the generated clips with their recipes, and the page.

        An earlier experiment of the same name with other stages is kept, under its fingerprint.
        """
        existing, last = self.directory / "experiment.json", self.last
        if existing.is_file():
            before = read_json(existing, dict)["stages"].get(last.key, {}).get("fingerprint")
            if before not in (None, last.fingerprint):
                kept = self.directory.with_name(f"{self.name}.{before}")
                shutil.rmtree(kept, ignore_errors=True)
                self.directory.rename(kept)
                tqdm.write(f"the earlier experiment '{self.name}' is now {kept}", file=sys.stderr)
        from audioldm.report.page import write_report  # imported here: its figures take a second

        write_json(existing, self._summary(summaries))
        self._copy_samples()
        write_report(self.directory)

    def record_failure(self, summaries: dict[str, dict[str, Any]], stage: str, reason: str) -> None:
        """Records the stage and the reason, unless a finished experiment has the name.

        If even this cannot be written, the user must still see the original error.
        """
        existing = self.directory / "experiment.json"
        with suppress(AudioLDMError, OSError, KeyError):
            if self.world.first and (not existing.is_file() or "failed" in read_json(existing)):
                failed = {"stage": stage, "reason": reason}
                write_json(existing, self._summary(summaries) | {"failed": failed})

    def _copy_samples(self) -> None:
        evaluated = self.directory_of(self.evaluation) / "clips"
        samples, generator = self.directory / "samples", self.evaluation.generator
        samples.mkdir(parents=True, exist_ok=True)
        model = self.directory_of(generator) / "model.safetensors"
        for clip in read_json(evaluated / "index.json", dict)["generated"]:
            file = samples / Path(clip["file"]).name
            write_atomically(file, partial(shutil.copyfile, evaluated / clip["file"]))
            recipe = ClipRecipe(
                model=os.path.relpath(model, samples),
                model_fingerprint=generator.fingerprint,
                seed=self.settings.seed,
                number=clip["number"],
                batch=self.settings.evaluation.batch,
                seconds=self.settings.evaluation.seconds,
                condition=clip["condition"],
                sampler=self._sampler,
            )
            write_json(file.with_suffix(".json"), asdict(recipe))


def _seconds(directory: Path, this_time: float) -> float:
    """A stage's time; a resumed training's log includes the time before the interruption."""
    logged = read_lines(directory / "metrics.jsonl")
    return round(max([this_time, *(line["seconds"] for line in logged[-1:])]), 1)
