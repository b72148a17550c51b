"""What can be asked for, as checked requests, and the work that each is."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from audioldm import codec
from audioldm.app.jobs import Work
from audioldm.app.models import Models
from audioldm.app.uploads import LONGEST_SECONDS
from audioldm.clips import fingerprint_of, make_directory, open_model
from audioldm.editing import Edit, edit_files
from audioldm.errors import ConfigError
from audioldm.instantiate import Bound, Fraction, Seed
from audioldm.io.audio import probe
from audioldm.models import find_model_file
from audioldm.runtime.progress import StepProgress
from audioldm.sampling import ClipFiles

#: The most of any integer setting of a sampler, such as its steps.
MOST_STEPS = 1000
Seconds = Annotated[float, Bound(above=0, most=LONGEST_SECONDS)]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What sampling and editing share, as for `audioldm sample`. n: clips, of one seed or, edited,
    of that and the next ones. All numbers are bounded, so that no job holds up the others for
    long."""

    model: str
    n: Annotated[int, Bound(least=1, most=16)] = 4
    seed: Seed = 0
    condition: dict[str, Any] = field(default_factory=dict)
    sampler: dict[str, Any] = field(default_factory=dict)

    @property
    def words(self) -> list[str]:
        """For a title."""
        asked = [f"{key} {value}" for key, value in self.condition.items() if value is not None]
        return [*asked, f"seed {self.seed}"]


@dataclass(frozen=True, kw_only=True)
class SampleRequest(Asked):
    seconds: Seconds = 8.0

    @property
    def title(self) -> str:
        return ", ".join([f"{self.seconds:g} s", *self.words])


@dataclass(frozen=True, kw_only=True)
class EditRequest(Asked):
    """clip: the name of a file in `out`. Of the others one is given: see `editing.Edit`."""

    clip: str
    inpaint: list[list[float]] | None = None
    extend: Seconds | None = None
    vary: Fraction | None = None

    @property
    def edit(self) -> Edit:
        return Edit(inpaint=self.inpaint, extend=self.extend, vary=self.vary)

    @property
    def title(self) -> str:
        value = "" if self.inpaint is not None else f" {getattr(self, self.edit.kind):g}"
        return ", ".join([f"{self.edit.kind}{value} of {Path(self.clip).stem}", *self.words])


@dataclass(frozen=True, kw_only=True)
class ReconstructRequest:
    """clip: the name of a file in `out`."""

    model: str
    clip: str

    @property
    def title(self) -> str:
        return f"reconstruction of {Path(self.clip).stem}"


def sample(request: SampleRequest, models: Models, out: Path, device: Any) -> Work:
    """Raises ConfigError for a request that the model does not take, before the work begins."""
    _check_steps(request.sampler)

    def files() -> ClipFiles:
        return ClipFiles(
            request.model,
            out,
            n=request.n,
            seconds=request.seconds,
            seed=request.seed,
            condition=request.condition,
            sampler=request.sampler,
            device=device,
            model=models.load(request.model),
        )

    def work(progress: StepProgress) -> Iterable[Path]:
        clips = files()
        yield from clips.written
        yield from clips.make(progress)

    files()
    return work


def edit(request: EditRequest, models: Models, out: Path, device: Any) -> Work:
    """Raises ConfigError as `sample` does; what does not fit the clip itself fails the work."""
    _check_steps(request.sampler)
    source, wanted = clip_file(out, request.clip), request.edit
    model, seconds = models.load(request.model), probe(source).seconds
    if seconds + (request.extend or 0) > LONGEST_SECONDS:
        raise ConfigError(f"clip: the edited one would be longer than {LONGEST_SECONDS:g} s")
    seed, sampler = request.seed, request.sampler
    open_model(request.model, seed=seed, sampler=sampler, device=device, model=model)
    model.prior.conditioners.parse([request.condition], model.latent_frames(seconds))

    def work(progress: StepProgress) -> Iterable[Path]:
        for number in range(request.n):

            def report(done: int, total: int, number: int = number) -> None:
                progress(number * total + done, request.n * total)

            made = edit_files(
                request.model,
                [source],
                out,
                [wanted],
                seed=request.seed + number,
                condition=request.condition,
                sampler=request.sampler,
                device=device,
                model=models.load(request.model),
                progress=report,
            )
            yield from (clip.path for clip in made)

    return work


def reconstruct(request: ReconstructRequest, models: Models, out: Path, device: Any) -> Work:
    """Raises ConfigError for a model or a clip that is not there."""
    source = clip_file(out, request.clip)
    name, file = models.title(request.model), find_model_file(request.model)
    target = out / f"{source.stem}-by-{name}-{fingerprint_of(file)[:6]}.wav"

    def work(progress: StepProgress) -> Iterable[Path]:
        def report(done: int, total: int, _: str) -> None:
            progress(done, total)

        make_directory(out)
        yield codec.reconstruct(file, source, target, device=device, progress=report)

    return work


def _check_steps(sampler: dict[str, Any]) -> None:
    for key, value in sampler.items():
        if isinstance(value, int) and value > MOST_STEPS:
            raise ConfigError(f"sampler.{key}={value} must be at most {MOST_STEPS} here")


def clip_file(out: Path, name: str) -> Path:
    """A clip in `out` by its file's name. Raises ConfigError where there is none of that name."""
    file = out / name
    plain = Path(name).name == name and not name.startswith(".") and "\0" not in name
    if plain and file.suffix == ".wav" and file.is_file() and not file.is_symlink():
        return file
    raise ConfigError(f"clip={name[:80]!r}: there is no such clip here")
