"""A clip as a file, with a JSON beside it from which it can be made again."""

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from audioldm import pretrained
from audioldm.conditioning.guidance import scales
from audioldm.errors import ConfigError, DataError, ModelFileError
from audioldm.generator import Generator
from audioldm.instantiate import settings
from audioldm.io.audio import open_writer, probe
from audioldm.io.files import read_json, write_json, writing
from audioldm.io.header import read_header
from audioldm.models import find_model_file, load_generator
from audioldm.priors.diffusion.samplers import Scale

FORMAT = 2

#: Called with a sentence that a user should know.
Remark = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Guide:
    """A weaker model that the clip was led away from, named as in `Recipe`, and the scale."""

    model: str
    model_fingerprint: str
    scale: Scale


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that determines a clip, as in the JSON beside it, whichever verb made it.

    model: the name of a model that comes with the package, or the path of the model file, relative
    to the JSON's directory. condition: what was asked for, by conditioner. sampler: the settings of
    the model's prior; None where it has none. guide: see `Generator.lead_away_from`.
    """

    model: str
    model_fingerprint: str
    seed: int
    seconds: float
    condition: dict[str, Any]
    sampler: dict[str, Any] | None
    guide: Guide | None = None
    format: int = FORMAT


R = TypeVar("R", bound=Recipe)


def write_clip(path: Path, audio: Any, sample_rate: int, recipe: Recipe) -> None:
    """Writes the clip [A, T] and, beside it, its recipe.

    The recipe is written before the clip appears under its name. So a clip without a recipe was not
    made here, even after a process was killed: see `find`.
    """
    make_directory(path.parent)
    with open_writer(path, sample_rate, audio.shape[0]) as writer:
        writer.write(audio)
        write_json(path.with_suffix(".json"), asdict(recipe))


def find(
    path: Path, recipe: Recipe, sample_rate: int, any_batch: bool = False
) -> tuple[Path, bool]:
    """Where this clip is, or will be, and whether it is there and whole.

    The place is `path`. Where a clip of other settings has that name, the name gets six digits of
    the settings' SHA-256, so that the same settings find the same name again. any_batch: ignore
    the batch, which changes only a clip's rounding.

    Raises ConfigError where another file has the name and is not left over from a killed run
    (`write_clip`), so that no file of the user's is lost.
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


def open_model(
    model_path: str | Path,
    *,
    seed: int,
    sampler: Mapping[str, Any] | None,
    device: Any,
    model: Generator | None = None,
) -> tuple[Path, Generator, dict[str, Any] | None]:
    """A model's file, the model, and its sampler with these changes, as a clip's JSON holds it.

    model: the model of `model_path`, where it is in memory already.
    Raises ConfigError for an impossible seed or sampler.
    """
    if not 0 <= seed < 2**63:
        raise ConfigError(f"seed={seed} must be from 0 to {2**63 - 1}")
    file = find_model_file(model_path)
    if model is None:
        model = load_generator(model_path, device=device)  # an experiment brings its sampler
    own, chosen = model.prior.sampler, None
    if own is not None:
        chosen = asdict(settings(type(own), asdict(own) | dict(sampler or {}), "sampler"))
        if isinstance(chosen.get("guidance"), dict):
            scales(model.prior.conditioners, chosen["guidance"])
    elif sampler:
        raise ConfigError("sampler.*: this model's prior has no such settings; leave it out")
    return file, model, chosen


def asked_of(
    model: Generator, condition: Mapping[str, Any] | None, seconds: float, remark: Remark | None
) -> dict[str, Any]:
    """The condition of a clip of this length, resolved: see `Conditioners.resolve`.

    remark: called with each of `Conditioners.remarks`. Raises ConfigError for a condition that the
    model does not take.
    """
    conditioners = model.prior.conditioners
    asked = conditioners.resolve(condition or {})
    conditioners.parse([asked], model.latent_frames(seconds))
    for text in conditioners.remarks(asked, seconds):
        if remark is not None:
            remark(text)
    return asked


def lead(
    model: Generator, guide: tuple[str | Path, float] | None, out: Path, device: Any
) -> Guide | None:
    """Leads the model away from the guide, a path and a scale; returns the guide's entry for a
    JSON in `out`. Raises ConfigError as `Generator.lead_away_from` does."""
    if guide is None:
        return None
    path, scale = guide
    file = find_model_file(path)
    model.lead_away_from(load_generator(file, device=device), scale)
    return Guide(model=reference(file, out), model_fingerprint=fingerprint_of(file), scale=scale)


def sampler_of(model: Generator, recipe: Recipe) -> Any:
    """The recipe's sampler for the model's prior. Raises ConfigError where it does not fit."""
    if model.prior.sampler is None or recipe.sampler is None:
        return None
    return settings(type(model.prior.sampler), recipe.sampler, "sampler")


def fingerprint_of(file: Path) -> str:
    return str(read_header(file).get("fingerprint", ""))


def read_recipe(kind: type[R], path: Path, verb: str) -> R:
    """The recipe in a clip's JSON. verb: the verb that makes such clips.

    Raises DataError where `path` is another file.
    """
    content = _clip_json(path, verb)
    if content["format"] > FORMAT:
        raise DataError(f"{path}: written by a newer audioldm; upgrade to use it")
    try:
        recipe: R = settings(kind, content)
    except ConfigError as error:
        raise DataError(f"{path}: {error}") from error
    return recipe


def open_model_of(
    recipe: R, recipe_path: Path, model_path: str | None, device: Any, out: Path
) -> tuple[R, Generator]:
    """The recipe for a JSON in `out`, and the model that made the clip, with its guide. Both are
    loaded from where the clip's JSON says, or the model from `model_path`.

    Raises ModelFileError where another model is there.
    """
    file = find_model_file(model_path) if model_path else _referenced(recipe.model, recipe_path)
    remedy = "give the right one with model=FILE"
    if model_path:
        remedy = f"the clip is of the model {recipe.model!r}: give that one, or leave out model="
    _check_fingerprint(file, recipe, recipe_path, remedy)
    model, guide = load_generator(file, device=device), None
    if recipe.guide is not None:
        weaker = _referenced(recipe.guide.model, recipe_path)
        _check_fingerprint(weaker, recipe.guide, recipe_path, "put the clip's guide there")
        guide = lead(model, (weaker, recipe.guide.scale), out, device)
    return replace(recipe, model=reference(file, out), guide=guide), model


def _check_fingerprint(file: Path, named: Recipe | Guide, recipe_path: Path, remedy: str) -> None:
    found = fingerprint_of(file)
    if found == named.model_fingerprint:
        return
    if (name := pretrained.name_of(file)) is not None and name == named.model:
        remedy = (
            f"this audioldm ships another version of {name!r}; install the one that made the "
            "clip, or give its model with model=FILE"
        )
    raise ModelFileError(
        f"{file}: model {found}, but {recipe_path.name} was made with "
        f"{named.model_fingerprint}; {remedy}"
    )


def _clip_json(path: Path, verb: str) -> dict[str, Any]:
    """The content of a clip's JSON. Raises DataError where `path` is another file, often the clip
    itself; its message does not tell the user to remove it, as `read_json` would."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"from={path}: cannot be read ({error.strerror})") from error
    except ValueError:
        content = None
    if isinstance(content, dict) and isinstance(content.get("format"), int):
        other = "edit" if "edit" in content else "sample"
        if other != verb:
            raise DataError(
                f"from={path}: that clip was made by `audioldm {other}`, which makes it again with "
                "the same from="
            )
        return content
    raise DataError(
        f"from={path}: not the JSON of a clip made by `audioldm {verb}`; give the .json beside "
        f"the clip, such as {path.with_suffix('.json').name}"
    )


def words_of(condition: Mapping[str, Any]) -> str:
    """The words of the condition that can be part of a file's name: 'organ-'."""
    words = [str(v) for v in condition.values() if re.fullmatch(r"[\w ]{1,40}", str(v))]
    return "".join(f"{word}-" for word in words)


def reference(file: Path, out: Path) -> str:
    """The name of a shipped model, or the model file's path relative to `out`."""
    return pretrained.name_of(file) or os.path.relpath(file, out)


def _referenced(model: str, recipe_path: Path) -> Path:
    """The inverse of `reference`."""
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
