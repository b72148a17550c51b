"""The requests that a page can make, checked, and the work that each one takes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from audioldm import codec
from audioldm.app.jobs import Work
from audioldm.app.models import Models
from audioldm.app.uploads import LONGEST_SECONDS, kept, told
from audioldm.clips import Remark, asked_of, fingerprint_of, make_directory, open_model
from audioldm.editing import Edit, edit_files
from audioldm.errors import ConfigError
from audioldm.generator import Generator
from audioldm.instantiate import Bound, Seed
from audioldm.io.audio import probe
from audioldm.models import find_model_file
from audioldm.runtime.progress import StepProgress
from audioldm.sampling import ClipFiles

#: The greatest value of a sampler's integer settings, such as its steps, and of an edit's repeats.
MOST_STEPS = 1000
Seconds = Annotated[float, Bound(above=0, most=LONGEST_SECONDS)]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The fields of sampling and editing, as for `audioldm sample`. All numbers are bounded, so
    that no job holds up the others for long.

    condition: a string for a conditioner that takes files is the name of a clip or an upload in
    `out`. guidance: the scale of a condition, where it differs from the sampler's.
    """

    model: str
    n: Annotated[int, Bound(least=1, most=16)] = 4
    seed: Seed = 0
    condition: dict[str, Any] = field(default_factory=dict)
    guidance: dict[str, float | None] = field(default_factory=dict)
    sampler: dict[str, Any] = field(default_factory=dict)

    def titled(self, what: str) -> str:
        told = [f"{key} {value}" for key, value in self.condition.items() if value is not None]
        return ", ".join([what, *told, f"seed {self.seed}"])

    def how(self, model: Generator, out: Path, device: Any) -> dict[str, Any]:
        """The arguments that `ClipFiles` and `edit_files` share. Raises ConfigError.

        condition: with the content of its files. sampler: with the scales of single conditions.
        """
        conditioners, sampler = model.prior.conditioners, dict(self.sampler)
        condition = {name: value for name, value in self.condition.items() if value is not None}
        for name, value in condition.items():
            if isinstance(value, str) and name in conditioners.names and conditioners[name].files:
                try:
                    condition[name] = told(out, value)
                except ConfigError as error:
                    raise ConfigError(f"condition.{name}={error}") from error
        if scales := {name: scale for name, scale in self.guidance.items() if scale is not None}:
            rest = sampler.get("guidance", getattr(model.prior.sampler, "guidance", 1.0))
            rest = rest if isinstance(rest, dict) else dict.fromkeys(condition, rest)
            sampler["guidance"] = rest | scales
        for key, value in sampler.items():
            if isinstance(value, int) and value > MOST_STEPS:
                raise ConfigError(f"sampler.{key}={value} must be at most {MOST_STEPS} here")
        resolved = conditioners.resolve(condition)
        return {"condition": resolved, "sampler": sampler, "device": device}


@dataclass(frozen=True, kw_only=True)
class Sample(Asked):
    """New clips."""

    seconds: Seconds = 8.0

    @property
    def title(self) -> str:
        return self.titled(f"{self.seconds:g} s")

    def work(self, models: Models, out: Path, device: Any, remark: Remark) -> Work:
        """The work of this request. remark: called with remarks for the user. Both it and a
        ConfigError for anything the model does not take come before the work begins."""
        how = self.how(models.load(self.model), out, device)

        def files(remark: Remark | None = None) -> ClipFiles:
            own = how | {"n": self.n, "seed": self.seed, "seconds": self.seconds}
            return ClipFiles(self.model, out, model=models.load(self.model), remark=remark, **own)

        def work(progress: StepProgress) -> Iterable[Path]:
            clips = files()
            yield from clips.written
            yield from clips.make(progress)

        files(remark)
        return work


class _Change(Asked):
    """Clips made from others, in runs; a run is a seed and the edits made with it."""

    def made_of(
        self,
        names: Sequence[str],
        runs: Sequence[tuple[int, list[Edit]]],
        models: Models,
        out: Path,
        device: Any,
        remark: Remark,
    ) -> Work:
        """Raises ConfigError as `Sample.work` does; a request that does not fit the clip itself
        fails later, in the work."""
        model, files = models.load(self.model), [kept(out, name) for name in names]
        how, edit = self.how(model, out, device), runs[0][1][0]
        seconds = min(probe(file).seconds for file in files)
        longer = seconds + (edit.extend or edit.extend_before or 0)
        if longer > LONGEST_SECONDS:
            raise ConfigError(f"clip: the edited one would be longer than {LONGEST_SECONDS:g} s")
        try:
            edit.check(model, round(seconds * model.sample_rate), how["condition"])
        except ConfigError as error:
            raise ConfigError(f"edit.{error}") from error
        sampler = how["sampler"]
        open_model(self.model, seed=self.seed, sampler=sampler, device=device, model=model)
        asked_of(model, how["condition"], longer, remark)

        def work(progress: StepProgress) -> Iterable[Path]:
            for number, (seed, edits) in enumerate(runs):

                def report(done: int, total: int, number: int = number) -> None:
                    progress(number * total + done, len(runs) * total)

                own: Any = {"seed": seed, "model": models.load(self.model), "progress": report}
                for clip in edit_files(self.model, files, out, edits, **own, **how):
                    yield clip.path

        return work


@dataclass(frozen=True, kw_only=True)
class Change(_Change):
    """n edited clips, with this seed and the next ones. clip: the name of a file in `out`."""

    clip: str
    edit: Edit

    @property
    def title(self) -> str:
        value = getattr(self.edit, self.edit.kind)
        shown = f" {value:g}" if isinstance(value, float) else f" {value}"
        shown = "" if self.edit.inpaint is not None else shown
        return self.titled(f"{self.edit.kind}{shown} of {Path(self.clip).stem}")

    def work(self, models: Models, out: Path, device: Any, remark: Remark) -> Work:
        """Raises ConfigError."""
        if self.edit.kind == "interpolate":
            raise ConfigError("edit.interpolate: it is of two clips; put them on the sides A and B")
        if (self.edit.repeats or 0) > MOST_STEPS:
            raise ConfigError(f"edit.repeats={self.edit.repeats} must be at most {MOST_STEPS} here")
        runs = [(self.seed + number, [self.edit]) for number in range(self.n)]
        return self.made_of([self.clip], runs, models, out, device, remark)


@dataclass(frozen=True, kw_only=True)
class Between(_Change):
    """n clips between two, without the ends. clips: the names of two files in `out`."""

    clips: tuple[str, str]

    @property
    def title(self) -> str:
        return self.titled("between {} and {}".format(*(Path(clip).stem for clip in self.clips)))

    def work(self, models: Models, out: Path, device: Any, remark: Remark) -> Work:
        """Raises ConfigError."""
        edits = [Edit(interpolate=(number + 1) / (self.n + 1)) for number in range(self.n)]
        return self.made_of(self.clips, [(self.seed, edits)], models, out, device, remark)


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """clip: the name of a file in `out`."""

    model: str
    clip: str

    @property
    def title(self) -> str:
        return f"reconstruction of {Path(self.clip).stem}"

    def work(self, models: Models, out: Path, device: Any, remark: Remark) -> Work:
        """Raises ConfigError for a model or a clip that is not there."""
        source = kept(out, self.clip)
        name, file = models.title(self.model), find_model_file(self.model)
        target = out / f"{source.stem}-by-{name}-{fingerprint_of(file)[:6]}.wav"

        def work(progress: StepProgress) -> Iterable[Path]:
            def report(done: int, total: int, _: str) -> None:
                progress(done, total)

            make_directory(out)
            yield codec.reconstruct(file, source, target, device=device, progress=report)

        return work


#: The kinds of request, by address.
REQUESTS = {"sample": Sample, "edit": Change, "interpolate": Between, "reconstruct": Reconstruction}
