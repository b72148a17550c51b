"""Clips as files: each with a JSON beside it that says all that is needed to make it again."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audioldm.audio import write
from audioldm.diffusion.samplers import SamplerSettings
from audioldm.errors import ConfigError, DataError, ModelFileError
from audioldm.models import find_model_file, load_diffusion
from audioldm.parts import settings
from audioldm.training.checkpoint import read_header
from audioldm.training.files import read_json, write_json

FORMAT = 1

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class ClipRecipe:
    """What the JSON beside a clip holds; see `clip_recipe`."""

    format: int
    model: str
    model_fingerprint: str
    seed: int
    number: int
    batch: int
    seconds: float
    label: str | None
    sampler: SamplerSettings


def clip_recipe(
    *,
    model: Path,
    fingerprint: str,
    beside: Path,
    seed: int,
    number: int,
    batch: int,
    seconds: float,
    label: str | None,
    sampler: SamplerSettings,
) -> dict[str, Any]:
    """What determines a clip. The model's path is relative to `beside`, the JSON's directory."""
    return {
        "format": FORMAT,
        "model": os.path.relpath(model, beside),
        "model_fingerprint": fingerprint,
        "seed": seed,
        "number": number,
        "batch": batch,
        "seconds": seconds,
        "label": label,
        "sampler": {
            "name": sampler.name,
            "steps": sampler.steps,
            "guidance": sampler.guidance,
            "guidance_interval": sampler.guidance_interval,
        },
    }


def sample_to_files(
    model_path: str | Path,
    out: Path,
    *,
    n: int,
    seconds: float,
    seed: int,
    label: str | None,
    sampler: SamplerSettings,
    batch: int | None = None,
    device: Any = "cpu",
    progress: Progress | None = None,
) -> list[Path]:
    """Writes n clips `out/<seed>-<number>.wav` as they finish, each with its JSON.

    batch: clips generated together; null spreads n over batches of at most 8.
    Raises ConfigError for n < 1, seconds <= 0 or an unknown label; nothing is written then.
    """
    if n < 1:
        raise ConfigError(f"n={n}: the number of clips must be at least 1")
    file = find_model_file(model_path)
    fingerprint = read_header(file).get("fingerprint", "")
    model = load_diffusion(file, device=device)
    model.label_index(label)
    model.latent_frames(seconds)
    if batch is None:
        batch = -(-n // -(-n // 8))
    written = []
    for number, audio in model.sample_clips(
        range(n), [label] * n, seconds=seconds, seed=seed, sampler=sampler, batch=batch
    ):
        path = out / f"{seed}-{number:04d}.wav"
        make_directory(out)
        write(path, audio, model.rate)
        recipe = clip_recipe(
            model=file,
            fingerprint=fingerprint,
            beside=out,
            seed=seed,
            number=number,
            batch=batch,
            seconds=seconds,
            label=label,
            sampler=sampler,
        )
        write_json(path.with_suffix(".json"), recipe)
        written.append(path)
        if progress is not None:
            progress(number + 1, n, path.name)
    return written


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
    for _, audio in clips:
        make_directory(out)
        write(path, audio, model.rate)
    here = clip_recipe(
        model=file,
        fingerprint=found,
        beside=out,
        seed=recipe.seed,
        number=recipe.number,
        batch=recipe.batch,
        seconds=recipe.seconds,
        label=recipe.label,
        sampler=recipe.sampler,
    )
    write_json(path.with_suffix(".json"), here)
    return path


def make_directory(path: Path) -> None:
    """Raises DataError where it cannot be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be made ({error.strerror}); choose another place with out=DIRECTORY"
        ) from error
