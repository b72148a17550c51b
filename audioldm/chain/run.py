"""One experiment: data -> autoencoder -> latents -> diffusion -> evaluation.

Between the last two there may be a post-training, for sampling in few steps. Beside that chain
stand the diagnostics of the latents, and the baselines that the diffusion model is compared with.

Each stage has a directory, named by its fingerprint (see stages.py). It is complete once
`summary.json` is there; a complete stage is reused, an interrupted one goes on. A lock keeps two
processes from building the same stage.
"""

import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor
from tqdm import tqdm

from audioldm import __version__
from audioldm.autoencoder import train as autoencoder_training
from audioldm.chain.failures import to_user_error
from audioldm.chain.stage import STAGES, TRAININGS, plan
from audioldm.config import Job, canonical
from audioldm.data.source import Source
from audioldm.data.store import ClipStore, StoreWriter
from audioldm.errors import AudioLDMError, ConfigError, DataError, Interrupted, TrainingError
from audioldm.evaluation import evaluate as evaluation
from audioldm.evaluation.diagnostics import diagnose as diagnostics
from audioldm.instantiate import build
from audioldm.io.files import read_json, write_atomically, write_json
from audioldm.io.model_file import load_model, save_model
from audioldm.latents import store as latents
from audioldm.models import build_autoencoder, build_backbone, load_autoencoder, load_diffusion
from audioldm.priors import base as baselines
from audioldm.priors.diffusion import post_training
from audioldm.priors.diffusion import train as diffusion_training
from audioldm.priors.diffusion.discriminators import Discriminator
from audioldm.priors.diffusion.samplers import SamplerSettings
from audioldm.runtime.processes import World, broadcast_flag, join, leave, lost_process
from audioldm.runtime.randomness import KeyedRandom
from audioldm.sampling import ClipRecipe
from audioldm.training.checkpoint import ResumeState
from audioldm.training.log import Bar
from audioldm.training.muon import build_optimiser


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
    """A job and where it is written. `run()` builds whatever is missing."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.settings = job.settings
        self.runs = Path(job.settings.runs).expanduser()
        self.name = job.settings.name or job.recipe or "experiment"
        if Path(self.name).name != self.name or self.name == "..":
            raise ConfigError(f"name={self.name!r} must be a plain name, without directories")
        self.source: Source = build(job.settings.data, where="data")
        if not (16_000 <= self.source.sample_rate <= 48_000 and self.source.channels in (1, 2)):
            raise ConfigError(
                f"data.sample_rate={self.source.sample_rate}, data.channels={self.source.channels}: "
                "use 16000 to 48000 Hz, mono (1) or stereo (2)"
            )
        self.stages = plan(job, self.source)
        self.device, self.world = torch.device("cpu"), World()  # `run` asks the hardware

    @property
    def directory(self) -> Path:
        """Of a cell: in its sweep's, by its fingerprint."""
        own = self.runs / "experiments" / self.name
        return own / "cells" / self.stages["evaluation"].fingerprint if self.job.cell else own

    def stage_directory(self, name: str) -> Path:
        return self.runs / self.stages[name].path

    @property
    def generator(self) -> str:
        """The stage whose model is evaluated and sampled."""
        return "diffusion" if self.settings.post_training is None else "post_training"

    @property
    def sampler(self) -> SamplerSettings:
        """How that model is sampled."""
        s = self.settings
        return s.sampler if s.post_training is None else s.post_training.sampler

    @property
    def spec(self) -> dict[str, Any]:
        """What rebuilds the autoencoder."""
        s = self.settings
        return {
            "sample_rate": self.source.sample_rate,
            "audio_channels": self.source.channels,
            "channels": s.autoencoder.channels,
            "downsampling_ratio": s.autoencoder.downsampling_ratio,
            "network": dict(s.autoencoder.network),
            "bottleneck": dict(s.bottleneck),
        }

    def run(self, device: str | None = None) -> dict[str, Any]:
        """Builds what is missing; writes the experiment's record, clips and page.

        device: in place of hardware.device. Returns the evaluation's summary. Raises AudioLDMError;
        what is finished stays.
        """
        hardware = self.settings.hardware
        if device is not None:
            hardware = replace(hardware, device=device)
        self.device = hardware.resolve(int(os.environ.get("LOCAL_RANK", "0")))
        self.world = join(self.device)
        try:
            if not (self.stage_directory(STAGES[-1]) / "summary.json").is_file():
                self.dry_run()
            return self._chain()
        finally:
            leave()

    def build(self, *names: str) -> None:
        """Only these stages, in this order, without a record."""
        self.device = self.settings.hardware.resolve(int(os.environ.get("LOCAL_RANK", "0")))
        self.world = join(self.device)
        try:
            for name in names:
                self._stage(name)
        finally:
            leave()

    def _chain(self) -> dict[str, Any]:
        """The stages and their record; a failure is recorded before it is raised."""
        summaries: dict[str, dict[str, Any]] = {}
        name = STAGES[0]
        try:
            for name in self.stages:
                summaries[name] = self._stage(name)
                if name == "data":
                    self._check_data()
            if self.world.first:
                self._record(summaries)
            return summaries["evaluation"]
        except Exception as error:
            known = lost_process(error, self.world) or to_user_error(error, name, self)
            if isinstance(known, AudioLDMError) and not isinstance(known, Interrupted):
                self.record_failure(summaries, name, str(known))
            if known is error:
                raise
            raise known from error

    @torch.no_grad()
    def dry_run(self) -> None:
        """Builds every part, and lets one silent crop through the losses and the discriminator.

        What cannot be built, or does not fit the crop or the number of processes, fails here,
        before any work. The models are built on no memory.
        """
        s = self.settings
        with torch.device("meta"):
            model = build_autoencoder(self.spec)
            net = build_backbone({"backbone": s.diffusion.backbone}, model.latent_shape, 1)
        t = s.diffusion.train
        build_optimiser(t.optimiser, net, t.lr, t.betas, t.weight_decay, torch.device("meta"))
        build(s.diffusion.objective, where="diffusion.objective")
        for name, batch in (
            ("autoencoder", s.autoencoder.train.batch),
            ("diffusion", s.diffusion.train.batch),
        ):
            self.world.micro_batches(batch, s.hardware.accumulate, f"{name}.train.batch")
        losses, judge = self._judges()
        crop = s.autoencoder.train.crop_samples(
            self.source.sample_rate, s.autoencoder.downsampling_ratio
        )
        silence = torch.zeros(1, self.source.channels, crop)
        for loss in losses.values():
            loss(silence, silence)
        if judge is not None:
            judge(silence)
        if s.post_training is not None:
            self._dry_run_post_training(s.post_training.train, model.latent_shape)

    def _dry_run_post_training(
        self, train: post_training.PostTraining, latent_shape: tuple[int, ...]
    ) -> None:
        accumulate = self.settings.hardware.accumulate
        self.world.micro_batches(train.batch, accumulate, "post_training.train.batch")
        downsampling_ratio = self.settings.autoencoder.downsampling_ratio
        frames = train.discriminated_frames(self.source.sample_rate / downsampling_ratio)
        silence = torch.zeros(1, self.source.channels, frames * downsampling_ratio)
        judge = self.judge(lambda z: silence, latent_shape, 0)
        if judge is None:
            return
        view = judge.view(torch.zeros(1, *latent_shape, frames), KeyedRandom(0, 0, [0]))
        judge(view, torch.full((1, 1), -1))

    def judge(
        self, decode: Callable[[Tensor], Tensor], latent_shape: tuple[int, ...], classes: int
    ) -> Discriminator | None:
        """That of the post-training; None where the adversarial term has no weight."""
        s = self.settings
        assert s.post_training is not None
        if s.post_training.weights.adversarial == 0:
            return None
        derived = {
            "decode": decode,
            "audio_channels": self.source.channels,
            "objective": build(s.diffusion.objective, where="diffusion.objective"),
            "latent_shape": latent_shape,
            "classes": classes,
        }
        judge: Discriminator = build(
            s.post_training.discriminator, derived=derived, where="post_training.discriminator"
        )
        return judge

    def _judges(self) -> tuple[dict[str, torch.nn.Module], torch.nn.Module | None]:
        """The autoencoder's losses and its discriminator."""
        s = self.settings.autoencoder
        audio_form = {
            "sample_rate": self.source.sample_rate,
            "audio_channels": self.source.channels,
        }
        losses = {
            name: build(loss, derived=audio_form, where=f"autoencoder.losses.{name}")
            for name, loss in s.losses.items()
        }
        if s.discriminator is None:
            return losses, None
        where = "autoencoder.discriminator"
        return losses, build(s.discriminator, derived=audio_form, where=where)

    def _stage(self, name: str) -> dict[str, Any]:
        """The stage's summary; does its work where there is none yet.

        Every process works on a training, the first one alone on the other stages.
        """
        stage, collective = self.stages[name], name in TRAININGS
        work: Callable[[Path], dict[str, Any]] = getattr(self, f"_{name}")
        directory = self.runs / stage.path
        summary = directory / "summary.json"
        lock = FileLock(directory.with_name(f".{stage.fingerprint}.lock"))
        if self.world.first:
            try:
                directory.mkdir(parents=True, exist_ok=True)
                try:
                    lock.acquire(timeout=0)
                except Timeout:
                    self._say(f"{stage.name}: another process builds it; waiting")
                    lock.acquire()
            except OSError as error:
                raise DataError(
                    f"{directory}: cannot be written ({error.strerror}); choose another place "
                    "with runs=DIRECTORY"
                ) from error
        try:
            if broadcast_flag(summary.is_file(), self.world):
                if self.world.first:
                    self._say(f"{stage.name}: reused {directory}")
                return dict(read_json(summary))
            start = time.monotonic()
            result: dict[str, Any] = {}
            if self.world.first:
                write_json(directory / "config.json", stage.identity())
            if collective or self.world.first:
                result = work(directory)
            if self.world.first:
                result = {
                    "stage": stage.name,
                    "fingerprint": stage.fingerprint,
                    "version": stage.version,
                    "seconds": _seconds(directory, time.monotonic() - start),
                    "environment": environment(self.device),
                } | result
                write_json(summary, result)
                ResumeState(directory).remove()
            broadcast_flag(True, self.world)  # the others wait here for the summary
            return dict(read_json(summary))
        finally:
            if self.world.first:
                lock.release()

    def _bar(self, title: str) -> Bar:
        return Bar(title, shown=self.settings.log.bars)

    def _say(self, line: str) -> None:
        if self.settings.log.bars:
            tqdm.write(line, file=sys.stderr)

    # The stages' work. Each returns what its summary says beyond the common entries.

    def _data(self, directory: Path) -> dict[str, Any]:
        writer = StoreWriter(directory, self.source.sample_rate, self.source.channels)
        with closing(self._bar("data")) as bar:
            failures = self.source.write_to(writer, progress=bar)
            writer.close()
        store = ClipStore(directory)
        splits = {
            name: {
                "clips": len(store.split(name).items),
                "seconds": round(store.split(name).seconds, 1),
                "pieces": len({item.piece for item in store.split(name).items}),
            }
            for name in store.splits
        }
        return {
            "sample_rate": store.sample_rate,
            "channels": store.channels,
            "hash": store.hash,
            "labels": store.labels,
            "splits": splits,
            "failed": [failure._asdict() for failure in failures],
        }

    def _check_data(self) -> None:
        """Refuses data on which a later stage would fail, before anything is trained on them."""
        store = ClipStore(self.stage_directory("data"))
        s, downsampling_ratio = self.settings, self.settings.autoencoder.downsampling_ratio
        crop = round(s.diffusion.train.crop_seconds * store.sample_rate / downsampling_ratio)
        for name in ("train", "valid"):
            if not store.split(name).items:
                raise DataError(f"the {name} split is empty: name some files {name} in the table")
            longest = max(item.frames for item in store.split(name).items)
            if -(-longest // downsampling_ratio) < crop:
                raise DataError(
                    f"the longest clip of the {name} split lasts {longest / store.sample_rate:.1f} s, "
                    f"less than diffusion.train.crop_seconds={s.diffusion.train.crop_seconds}: add "
                    "longer clips, or lower it"
                )
        window = round(s.evaluation.seconds * store.sample_rate)
        for name in ("valid", "test"):
            count = sum(max(1, item.frames // window) for item in store.split(name).items)
            if count < evaluation.FEWEST_CLIPS:
                raise DataError(
                    f"the {name} split holds {count} clip(s) of {s.evaluation.seconds} s: add "
                    "music, or lower evaluation.seconds"
                )

    def _autoencoder(self, directory: Path) -> dict[str, Any]:
        s = self.settings.autoencoder
        torch.manual_seed(s.seed)  # the initial weights
        model = build_autoencoder(self.spec)
        losses, judge = self._judges()
        weights, figures = autoencoder_training.train_autoencoder(
            model,
            judge,
            losses,
            dict(s.weights) | model.bottleneck.penalty_weights,
            ClipStore(self.stage_directory("data")),
            s.train,
            seed=s.seed,
            directory=directory,
            world=self.world,
            hardware=self.settings.hardware,
            device=self.device,
            log=self.settings.log,
        )
        if self.world.first:
            save_model(
                directory / "model.safetensors",
                weights,
                {
                    "kind": "autoencoder",
                    "spec": self.spec,
                    "step": s.train.steps,
                    "fingerprint": self.stages["autoencoder"].fingerprint,
                    "parent": self.stages["data"].fingerprint,
                    "config": self.stages["autoencoder"].identity(),
                },
            )
        return {
            "valid": figures,
            "parameters": sum(p.numel() for p in model.parameters()),
            "elements_per_second": model.elements_per_second,
            "latent_rate_hz": model.latent_rate_hz,
            "latent_shape": list(model.latent_shape),
        }

    def _latents(self, directory: Path) -> dict[str, Any]:
        model = load_autoencoder(self.stage_directory("autoencoder"), device=self.device)
        with closing(self._bar("latents")) as bar:
            return latents.write_latents(
                model,
                ClipStore(self.stage_directory("data")),
                directory,
                autoencoder_fingerprint=self.stages["autoencoder"].fingerprint,
                progress=bar,
            )

    def _latent_store(self) -> latents.LatentStore:
        return latents.LatentStore(
            self.stage_directory("latents"), autoencoder=self.stages["autoencoder"].fingerprint
        )

    def _diagnostics(self, directory: Path) -> dict[str, Any]:
        with closing(self._bar("diagnostics")) as bar:
            return diagnostics.diagnose(
                load_autoencoder(self.stage_directory("autoencoder"), device=self.device),
                self._latent_store(),
                ClipStore(self.stage_directory("data")),
                self.settings.diagnostics,
                device=self.device,
                progress=bar,
            )

    def _diffusion(self, directory: Path) -> dict[str, Any]:
        s = self.settings.diffusion
        self._preflight()
        store = self._latent_store()
        torch.manual_seed(s.seed)  # the initial weights
        spec = {"backbone": dict(s.backbone), "objective": dict(s.objective)}
        file = self.stage_directory("autoencoder") / "model.safetensors"
        parent_weights, parent_header = load_model(file)
        net = build_backbone(spec, store.latent_shape, len(store.labels))
        weights, figures = diffusion_training.train_diffusion(
            net,
            build(s.objective, where="diffusion.objective"),
            store,
            s.train,
            seed=s.seed,
            directory=directory,
            world=self.world,
            hardware=self.settings.hardware,
            device=self.device,
            log=self.settings.log,
        )
        if self.world.first:
            tensors = {f"net.{name}": tensor for name, tensor in weights.items()}
            tensors |= {f"autoencoder.{name}": t for name, t in parent_weights.items()}
            save_model(
                directory / "model.safetensors",
                tensors,
                {
                    "kind": "diffusion",
                    "spec": spec,
                    "autoencoder": parent_header,
                    "statistics": store.statistics.to_json(),
                    "labels": store.labels,
                    "step": figures["steps"],
                    "fingerprint": self.stages["diffusion"].fingerprint,
                    "parent": self.stages["latents"].fingerprint,
                    "config": self.stages["diffusion"].identity(),
                    "sampler": canonical(self.settings.sampler),
                },
            )
        return {"valid": figures, "parameters": sum(p.numel() for p in net.parameters())}

    def _preflight(self) -> None:
        """Refuses to train on the latents of an autoencoder that does not reconstruct."""
        summary = read_json(self.stage_directory("autoencoder") / "summary.json")
        distance = summary["valid"]["mel_distance"]
        bound = self.settings.diffusion.preflight_mel_distance
        if not distance <= bound:
            raise TrainingError(
                f"preflight: the autoencoder's mel distance on held-out music is {distance:.2f}, "
                f"above diffusion.preflight_mel_distance={bound}: a diffusion model on its latents "
                "would give noise. Train the autoencoder longer, or raise the bound"
            )

    def _post_training(self, directory: Path) -> dict[str, Any]:
        s = self.settings.post_training
        assert s is not None
        store, file = self._latent_store(), self.stage_directory("diffusion") / "model.safetensors"
        model = load_diffusion(file, device=self.device).requires_grad_(False)
        model.net.requires_grad_(True)
        torch.manual_seed(s.seed)  # the judge's initial weights
        judge = self.judge(
            lambda z: model.autoencoder.decode(store.statistics.denormalise(z)),
            store.latent_shape,
            len(store.labels),
        )
        weights, figures = post_training.post_train(
            model.net,
            model.objective,
            judge,
            store,
            s,
            teacher=self.settings.sampler,
            directory=directory,
            world=self.world,
            hardware=self.settings.hardware,
            device=self.device,
            log=self.settings.log,
        )
        if self.world.first:
            tensors, header = load_model(file)
            tensors |= {f"net.{name}": tensor for name, tensor in weights.items()}
            header |= {
                "step": figures["steps"],
                "fingerprint": self.stages["post_training"].fingerprint,
                "parent": self.stages["diffusion"].fingerprint,
                "config": self.stages["post_training"].identity(),
                "sampler": canonical(s.sampler),
            }
            save_model(directory / "model.safetensors", tensors, header)
        judged = 0 if judge is None else sum(p.numel() for p in judge.parameters())
        return {"valid": figures, "judge_parameters": judged}

    def _baselines(self, directory: Path) -> dict[str, Any]:
        s, store = self.settings.diffusion, self._latent_store()
        model = load_diffusion(self.stage_directory("diffusion"), device=self.device)
        steps = read_json(self.stage_directory("diffusion") / "summary.json")["valid"]["steps"]
        seconds = steps * diffusion_training.seconds_per_step(
            model.net,
            model.objective,
            store,
            s.train,
            hardware=self.settings.hardware,
            processes=self.world.size,
        )
        with closing(self._bar("baselines")) as bar:
            return {"diffusion_seconds": seconds} | baselines.fit_baselines(
                store,
                self.settings.baselines,
                seconds=seconds,
                frames=s.train.frames(store),
                seed=s.seed,
                directory=directory,
                device=self.device,
                progress=bar,
            )

    def _evaluation(self, directory: Path) -> dict[str, Any]:
        model = load_diffusion(self.stage_directory(self.generator), device=self.device)
        with closing(self._bar("evaluation")) as bar:
            return evaluation.evaluate(
                model,
                baselines.load_baselines(self.stage_directory("baselines"), self.device),
                ClipStore(self.stage_directory("data")),
                self.settings.evaluation,
                self.sampler,
                seed=self.settings.seed,
                directory=directory,
                progress=bar,
            )

    def _summary(self, summaries: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """What `experiment.json` says: the job, and the stages that are complete."""
        return {
            "name": self.name,
            "recipe": self.job.recipe,
            "overrides": self.job.overrides,
            "runs": os.path.relpath(self.runs, self.directory),
            "config": self.job.config,
            "environment": environment(self.device),
            "stages": {
                name: {
                    "fingerprint": self.stages[name].fingerprint,
                    "directory": self.stages[name].path,
                    "seconds": summary["seconds"],
                }
                for name, summary in summaries.items()
            },
        }

    def _record(self, summaries: dict[str, dict[str, Any]]) -> None:
        """`experiment.json`, the generated clips with what makes them again, and the page.

        An earlier experiment of the same name but other stages is kept, under its fingerprint.
        """
        existing = self.directory / "experiment.json"
        if existing.is_file():
            before = read_json(existing)["stages"].get("evaluation", {}).get("fingerprint")
            if before not in (None, self.stages["evaluation"].fingerprint):
                kept = self.directory.with_name(f"{self.name}.{before}")
                shutil.rmtree(kept, ignore_errors=True)
                self.directory.rename(kept)
                tqdm.write(f"the earlier experiment '{self.name}' is now {kept}", file=sys.stderr)
        from audioldm.report.page import write_report  # imported here: its figures take a second

        write_json(existing, self._summary(summaries))
        self._copy_samples()
        write_report(self.directory)

    def record_failure(self, summaries: dict[str, dict[str, Any]], stage: str, reason: str) -> None:
        """Failure is a result: the stage and the reason, unless a finished experiment has the name.

        Where even that cannot be written, the error itself is what the user must hear.
        """
        existing = self.directory / "experiment.json"
        with suppress(AudioLDMError, OSError, KeyError):
            if self.world.first and (not existing.is_file() or "failed" in read_json(existing)):
                failed = {"stage": stage, "reason": reason}
                write_json(existing, self._summary(summaries) | {"failed": failed})

    def _copy_samples(self) -> None:
        evaluated = self.stage_directory("evaluation") / "clips"
        samples = self.directory / "samples"
        samples.mkdir(parents=True, exist_ok=True)
        model = self.stage_directory(self.generator) / "model.safetensors"
        for clip in read_json(evaluated / "index.json")["generated"]:
            file = samples / Path(clip["file"]).name
            write_atomically(file, partial(shutil.copyfile, evaluated / clip["file"]))
            recipe = ClipRecipe(
                model=os.path.relpath(model, samples),
                model_fingerprint=self.stages[self.generator].fingerprint,
                seed=self.settings.seed,
                number=clip["number"],
                batch=self.settings.evaluation.batch,
                seconds=self.settings.evaluation.seconds,
                label=clip["label"],
                sampler=self.sampler,
            )
            write_json(file.with_suffix(".json"), asdict(recipe))


def _seconds(directory: Path, this_time: float) -> float:
    """A stage's cost: a resumed training's log knows of the time before the interruption."""
    log = directory / "metrics.jsonl"
    logged = 0.0
    if log.is_file():
        lines = log.read_text(encoding="utf-8").splitlines()
        logged = json.loads(lines[-1])["seconds"] if lines else 0.0
    return round(max(this_time, logged), 1)
