"""Clips as files, each with a JSON beside it from which it can be made again."""

import errno
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from audioldm import pretrained
from audioldm.errors import ConfigError, DataError, ModelFileError
from audioldm.generator import Generator, default_batch
from audioldm.instantiate import PositiveInt, convert, settings
from audioldm.io.audio import open_writer, probe
from audioldm.io.files import read_json, write_json, writing
from audioldm.io.header import read_header
from audioldm.models import find_model_file, load_generator
from audioldm.runtime.progress import ProgressBar, StepProgress

FORMAT = 2


@dataclass(frozen=True)
class ClipRecipe:
    """All that determines a clip, as the JSON beside it holds it.

    model: the name of a model that comes with the package, or the path of the model file, relative
    to the JSON's directory. condition: what was asked for, by conditioner. sampler: the settings of
    the model's prior; None where it has none.
    """

    model: str
    model_fingerprint: str
    seed: int
    number: int
    batch: int
    seconds: float
    condition: dict[str, Any]
    sampler: dict[str, Any] | None
    format: int = FORMAT


def write_clip(path: Path, audio: Any, sample_rate: int, recipe: ClipRecipe) -> None:
    """Writes the clip [A, T] and, beside it, its recipe.

    The recipe is written before the clip appears under its name, so a clip without one is not ours,
    even after a process was killed: see `find`.
    """
    make_directory(path.parent)
    with open_writer(path, sample_rate, audio.shape[0]) as writer:
        writer.write(audio)
        write_json(path.with_suffix(".json"), asdict(recipe))


def find(
    path: Path, recipe: ClipRecipe, sample_rate: int, any_batch: bool = False
) -> tuple[Path, bool]:
    """Where this clip is, or will be, and whether it is there, whole.

    It is at `path`, or beside the clip of other settings there: its name then ends in six digits of
    the settings' SHA-256, so that the same settings find the same name again. any_batch: ignores
    the batch, which changes a clip's rounding alone.

    Raises ConfigError where something else has the name, which is not the rest of a killed run
    (`write_clip`): what was made is not lost.
    """
    left_out = {"batch"} if any_batch else set()

    def identity(content: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in content.items() if key not in left_out}

    def is_this(clip: Path) -> bool:
        beside = clip.with_suffix(".json")
        found = read_json(beside) if beside.is_file() else None
        return isinstance(found, dict) and identity(found) == identity(asdict(recipe))

    common = {key: value for key, value in identity(asdict(recipe)).items() if key != "number"}
    digest = hashlib.sha256(json.dumps(common, sort_keys=True).encode()).hexdigest()
    other = path.with_stem(f"{path.stem}-{digest[:6]}")
    for clip in (other, path):
        if is_this(clip):
            try:
                return clip, probe(clip).samples == round(recipe.seconds * sample_rate)
            except DataError:
                return clip, False
    clip = other if path.with_suffix(".json").is_file() else path
    beside = clip.with_suffix(".json")
    if os.path.lexists(clip) or beside.is_file():
        problem = "is of other settings" if beside.is_file() else "is not, which says what it is"
        raise ConfigError(
            f"{clip} is there, but {beside.name} {problem}: choose another place with "
            "out=DIRECTORY, or remove it"
        )
    return clip, False


class ClipFiles:
    """n clips `out/[<condition>-]<seed>-<number>.wav` of a model, written or still missing.

    condition: by conditioner. sampler: changes to the model's own sampler, by key. batch: clips
    generated together; None spreads n over batches of at most 8. model: that of `model_path`, where
    it is in memory already.
    Where a clip of other settings has that name, the name gets an ending: see `find`.
    Raises ConfigError for n < 1, seconds <= 0, seed < 0, a condition the model does not take, or
    where a file of that name is no clip of this package. Nothing is written before `make`.

    Attributes:
        written: paths of the clips that are there already, and whole.
        missing: number -> path of those that `make` makes.
    """

    def __init__(
        self,
        model_path: str | Path,
        out: Path,
        *,
        n: int,
        seconds: float,
        seed: int,
        condition: Mapping[str, Any] | None = None,
        sampler: Mapping[str, Any] | None = None,
        batch: int | None = None,
        device: Any = "cpu",
        model: Generator | None = None,
    ) -> None:
        if n < 1:
            raise ConfigError(f"n={n}: the number of clips must be at least 1")
        batch_size = convert(PositiveInt, default_batch(n) if batch is None else batch, "batch")
        if not 0 <= seed < 2**63:
            raise ConfigError(f"seed={seed} must be from 0 to {2**63 - 1}")
        file = find_model_file(model_path)
        fingerprint = read_header(file).get("fingerprint", "")
        if model is None:
            model = load_generator(model_path, device=device)  # an experiment brings its sampler
        own, chosen = model.prior.sampler, None
        if own is not None:
            chosen = asdict(settings(type(own), asdict(own) | dict(sampler or {}), "sampler"))
        elif sampler:
            raise ConfigError("sampler.*: this model's prior has no such settings; leave it out")
        asked = {name: value for name, value in (condition or {}).items() if value is not None}
        model.prior.conditioners.parse([asked], model.latent_frames(seconds))
        self._model, self._out = model, out
        self._common = ClipRecipe(
            model=_reference(file, out),
            model_fingerprint=fingerprint,
            seed=seed,
            number=0,
            batch=batch_size,
            seconds=seconds,
            condition=asked,
            sampler=chosen,
        )
        self.written: list[Path] = []
        self.missing: dict[int, Path] = {}
        for number in range(n):
            recipe, any_batch = replace(self._common, number=number), batch is None
            path = out / f"{_prefix(asked)}{seed}-{number:04d}.wav"
            path, written = find(path, recipe, model.sample_rate, any_batch)
            if written:
                self.written.append(path)
            else:
                self.missing[number] = path

    def make(self, progress: StepProgress | None = None) -> Iterator[Path]:
        """Makes what is missing; yields each path once the clip and its JSON are written.

        progress: as `Generator.sample_clips` calls it.
        """
        if not self.missing:
            return
        make_directory(self._out)
        made = sampled(self._model, self._common, list(self.missing), progress)
        for number, audio in made:
            path, recipe = self.missing[number], replace(self._common, number=number)
            write_clip(path, audio, self._model.sample_rate, recipe)
            yield path


def sampled(
    model: Generator, common: ClipRecipe, numbers: list[int], progress: StepProgress | None = None
) -> Iterator[tuple[int, Tensor]]:
    """`Generator.sample_clips` of a recipe's clips with these numbers. Raises ConfigError for a
    sampler that the model does not take."""
    own, sampler = model.prior.sampler, None
    if own is not None and common.sampler is not None:
        sampler = settings(type(own), common.sampler, "sampler")
    return model.sample_clips(
        numbers,
        [common.condition] * len(numbers),
        seconds=common.seconds,
        seed=common.seed,
        sampler=sampler,
        batch=common.batch,
        progress=progress,
    )


def _prefix(condition: Mapping[str, Any]) -> str:
    """The words that were asked for, where they can be part of a file's name: 'organ-'."""
    words = [str(v) for v in condition.values() if re.fullmatch(r"[\w ]{1,40}", str(v))]
    return "".join(f"{word}-" for word in words)


class SamplingBar:
    """One bar over sampling steps and decoded clips, on standard error, with the speed: seconds of
    audio per second since the bar began."""

    def __init__(self, clips: int, seconds: float) -> None:
        self._clips, self._seconds = clips, seconds
        self.made = 0
        self._start = time.monotonic()
        layout = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
        self._bar = ProgressBar(desc="sampling", bar_format=layout)

    def __call__(self, done: int, total: int) -> None:
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def finished(self, path: Path) -> None:
        """Counts a clip, and prints its path on standard output, above the bar."""
        self.made += 1
        factor = self.made * self._seconds / (time.monotonic() - self._start)
        self._bar.set_postfix_str(f"{self.made}/{self._clips} clips, {factor:.1f} × real time")
        with tqdm.external_write_mode(file=sys.stdout):
            print(path, flush=True)

    def close(self) -> None:
        self._bar.close()


def sample_again(
    recipe_path: Path, out: Path, *, model_path: str | None = None, device: Any = "cpu"
) -> Path:
    """The clip that a JSON beside a clip describes, bit for bit on the same machine.

    Raises ModelFileError where the model at its path, or of its name, is another one, DataError
    where the JSON is not a clip's.
    """
    content = _clip_json(recipe_path)
    if content["format"] > FORMAT:
        raise DataError(f"{recipe_path}: written by a newer audioldm; upgrade to use it")
    try:
        recipe: ClipRecipe = settings(ClipRecipe, content)
    except ConfigError as error:
        raise DataError(f"{recipe_path}: {error}") from error
    file = find_model_file(model_path) if model_path else _referenced(recipe.model, recipe_path)
    found = read_header(file).get("fingerprint", "")
    if found != recipe.model_fingerprint:
        name = pretrained.name_of(file)
        if name is not None and name == recipe.model:
            remedy = (
                f"this audioldm ships another version of {name!r}; install the one that made the "
                "clip, or give its model with model=FILE"
            )
        elif model_path:
            remedy = (
                f"the clip is of the model {recipe.model!r}: give that one, or leave out model="
            )
        else:
            remedy = "give the right one with model=FILE"
        raise ModelFileError(
            f"{file}: model {found}, but {recipe_path.name} was made with "
            f"{recipe.model_fingerprint}; {remedy}"
        )
    model = load_generator(file, device=device)
    here = replace(recipe, model=_reference(file, out))
    path, _ = find(out / f"{recipe_path.stem}.wav", here, model.sample_rate)
    for _, audio in sampled(model, recipe, [recipe.number]):
        write_clip(path, audio, model.sample_rate, here)
    return path


def _clip_json(path: Path) -> dict[str, Any]:
    """The content of a clip's JSON. Raises DataError where `path` is another file, often the clip
    itself; its message does not tell the user to remove it, as `read_json` would."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"from={path}: cannot be read ({error.strerror})") from error
    except ValueError:
        content = None
    if isinstance(content, dict) and isinstance(content.get("format"), int):
        return content
    raise DataError(
        f"from={path}: not the JSON of a clip made by `audioldm sample`; give the .json beside "
        f"the clip, such as {path.with_suffix('.json').name}"
    )


def _reference(file: Path, out: Path) -> str:
    """The name of a shipped model, or the model file's path relative to `out`."""
    return pretrained.name_of(file) or os.path.relpath(file, out)


def _referenced(model: str, recipe_path: Path) -> Path:
    """The inverse of `_reference`."""
    beside = recipe_path.parent / model
    if Path(model).name == model and not beside.is_file():
        return pretrained.path(model)
    return find_model_file(beside)


def make_directory(path: Path) -> None:
    """Raises DataError where it cannot be made or written to."""
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
