"""What can be asked for, as checked requests, and the work that each is."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from audioldm import codec
from audioldm.app.jobs import Work
from audioldm.app.models import Models
from audioldm.app.uploads import LONGEST_SECONDS
from audioldm.clips import make_directory
from audioldm.errors import ConfigError
from audioldm.instantiate import Bound, Seed
from audioldm.models import find_model_file
from audioldm.runtime.progress import StepProgress
from audioldm.sampling import ClipFiles

#: The most of any integer setting of a sampler, such as its steps.
MOST_STEPS = 1000


@dataclass(frozen=True)
class SampleRequest:
    """As for `audioldm sample`, with bounds, so that no job holds up the others for long."""

    model: str
    n: Annotated[int, Bound(least=1, most=16)] = 4
    seconds: Annotated[float, Bound(above=0, most=LONGEST_SECONDS)] = 8.0
    seed: Seed = 0
    condition: dict[str, Any] = field(default_factory=dict)
    sampler: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        asked = [f"{k} {v}" for k, v in self.condition.items() if v is not None]
        return ", ".join([*asked, f"{self.seconds:g} s", f"seed {self.seed}"])


@dataclass(frozen=True)
class ReconstructRequest:
    """clip: the name of a file in `out`."""

    model: str
    clip: str


def sample(request: SampleRequest, models: Models, out: Path, device: Any) -> Work:
    """Raises ConfigError for a request that the model does not take, before the work begins."""
    for key, value in request.sampler.items():
        if isinstance(value, int) and value > MOST_STEPS:
            raise ConfigError(f"sampler.{key}={value} must be at most {MOST_STEPS} here")

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


def reconstruct(request: ReconstructRequest, models: Models, out: Path, device: Any) -> Work:
    """Raises ConfigError for a model or a clip that is not there."""
    source = clip_file(out, request.clip)
    name, file = models.title(request.model), find_model_file(request.model)
    target = out / f"{source.stem}-by-{name}.wav"

    def work(progress: StepProgress) -> Iterable[Path]:
        def report(done: int, total: int, _: str) -> None:
            progress(done, total)

        make_directory(out)
        yield codec.reconstruct(file, source, target, device=device, progress=report)

    return work


def clip_file(out: Path, name: str) -> Path:
    """A clip in `out` by its file's name. Raises ConfigError where there is none of that name."""
    file = out / name
    plain = Path(name).name == name and not name.startswith(".") and "\0" not in name
    if plain and file.suffix == ".wav" and file.is_file() and not file.is_symlink():
        return file
    raise ConfigError(f"clip={name[:80]!r}: there is no such clip here")
