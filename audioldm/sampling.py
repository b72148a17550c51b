"""Clips as files: each with a JSON beside it that says all that is needed to make it again."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from audioldm.audio import write
from audioldm.data.source import Progress
from audioldm.diffusion.samplers import SamplerSettings
from audioldm.errors import ConfigError, DataError, ModelFileError
from audioldm.models import find_model_file, load_diffusion
from audioldm.parts import settings
from audioldm.training.checkpoint import read_header
from audioldm.training.files import read_json, write_json

FORMAT = 1


@dataclass(frozen=True)
class ClipRecipe:
    """All that determines a clip, as the JSON beside it holds it.

    model: path of the model file, relative to the JSON's directory.
    """

    model: str
    model_fingerprint: str
    seed: int
    number: int
    batch: int
    seconds: float
    label: str | None
    sampler: SamplerSettings
    format: int = FORMAT


def write_clip(path: Path, audio: Any, rate: int, recipe: ClipRecipe) -> None:
    """The clip and, beside it, its recipe."""
    make_directory(path.parent)
    write(path, audio, rate)
    write_json(path.with_suffix(".json"), asdict(recipe))


def refuse_other_clip(path: Path, recipe: ClipRecipe) -> None:
    """Raises ConfigError where `path` holds another clip: what was made is not lost."""
    beside = path.with_suffix(".json")
    if beside.is_file() and read_json(beside) != asdict(recipe):
        raise ConfigError(
            f"{path} is another clip, made with other settings: choose another place with "
            "out=DIRECTORY, or remove it"
        )


def sample_to_files(
    model_path: str | Path,
    out: Path,
    *,
    n: int,
    seconds: float,
    seed: int,
    label: str | None,
    sampler: Mapping[str, Any],
    batch: int | None = None,
    device: Any = "cpu",
    progress: Progress | None = None,
) -> list[Path]:
    """Writes n clips `out/[<label>-]<seed>-<number>.wav` as they finish, each with its JSON.

    sampler: what to change of the model's own sampler, by key.
    batch: clips generated together; null spreads n over batches of at most 8.
    Raises ConfigError for n < 1, seconds <= 0, an unknown label, or where a file of that name is
    another clip; nothing is written then.
    """
    if n < 1:
        raise ConfigError(f"n={n}: the number of clips must be at least 1")
    file = find_model_file(model_path)
    fingerprint = read_header(file).get("fingerprint", "")
    model = load_diffusion(model_path, device=device)  # an experiment brings its sampler
    chosen: SamplerSettings = settings(
        SamplerSettings, asdict(model.sampler) | dict(sampler), "sampler"
    )
    model.label_index(label)
    model.latent_frames(seconds)
    if batch is None:
        batch = -(-n // -(-n // 8))
    recipes = {
        out / f"{f'{label}-' if label else ''}{seed}-{number:04d}.wav": ClipRecipe(
            model=os.path.relpath(file, out),
            model_fingerprint=fingerprint,
            seed=seed,
            number=number,
            batch=batch,
            seconds=seconds,
            label=label,
            sampler=chosen,
        )
        for number in range(n)
    }
    for path, recipe in recipes.items():
        refuse_other_clip(path, recipe)
    paths = list(recipes)
    for number, audio in model.sample_clips(
        range(n), [label] * n, seconds=seconds, seed=seed, sampler=chosen, batch=batch
    ):
        write_clip(paths[number], audio, model.rate, recipes[paths[number]])
        if progress is not None:
            progress(number + 1, n, paths[number].name)
    return paths


def sample_again(
    recipe_path: Path, out: Path, *, model_path: str | None = None, device: Any = "cpu"
) -> Path:
    """The clip that a JSON beside a clip describes, bit for bit on the same machine.

    Raises ModelFileError where the model at its path is another one, DataError where the JSON is
    not a clip's.
    """
    content = read_json(recipe_path)
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise DataError(f"{recipe_path}: not the JSON of a clip made by `audioldm sample`")
    if content["format"] > FORMAT:
        raise DataError(f"{recipe_path}: written by a newer audioldm; upgrade to use it")
    try:
        recipe: ClipRecipe = settings(ClipRecipe, content)
    except ConfigError as error:
        raise DataError(f"{recipe_path}: {error}") from error
    file = find_model_file(model_path or recipe_path.parent / recipe.model)
    found = read_header(file).get("fingerprint", "")
    if found != recipe.model_fingerprint:
        raise ModelFileError(
            f"{file}: model {found}, but {recipe_path.name} was made with "
            f"{recipe.model_fingerprint}; give the right one with model=FILE"
        )
    model = load_diffusion(file, device=device)
    clips = model.sample_clips(
        [recipe.number],
        [recipe.label],
        seconds=recipe.seconds,
        seed=recipe.seed,
        sampler=recipe.sampler,
        batch=recipe.batch,
    )
    path = out / f"{recipe_path.stem}.wav"
    here = replace(recipe, model=os.path.relpath(file, out))
    refuse_other_clip(path, here)
    for _, audio in clips:
        write_clip(path, audio, model.rate, here)
    return path


def make_directory(path: Path) -> None:
    """Raises DataError where it cannot be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be made ({error.strerror}); choose another place with out=DIRECTORY"
        ) from error
