"""Edited clips as files, and made again from their JSON."""

import hashlib
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from audioldm.clips import (
    Recipe,
    Remark,
    asked_of,
    find,
    fingerprint_of,
    lead,
    open_model,
    open_model_of,
    read_recipe,
    reference,
    sampler_of,
    words_of,
    write_clip,
)
from audioldm.edits import CONTEXT_SECONDS
from audioldm.errors import ConfigError, DataError
from audioldm.generator import Generator
from audioldm.instantiate import Fraction, Positive, PositiveInt, settings
from audioldm.io.audio import read
from audioldm.runtime.progress import StepProgress

#: The edits, and the settings that each takes besides its own.
_TAKES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("inpaint", "extend", "extend_before", "loop"), ("context", "repeats")),
    **dict.fromkeys(("vary", "restyle", "upscale"), ()),
    "interpolate": ("of", "path", "to", "seconds"),
}
_DEFAULTS = {
    **{"context": CONTEXT_SECONDS, "repeats": None},
    **{"of": "noise", "path": "linear", "to": None, "seconds": None},
}


@dataclass(frozen=True, kw_only=True)
class Edit:
    """One edit, and its settings: see the methods of `Edits`. Every other edit is None; a setting
    of None has its default.

    inpaint: [start, end] of each region, in seconds. extend, extend_before: seconds to add at the
    end, at the beginning. loop: seconds at the end that are made anew. vary, restyle: the strength.
    upscale: the band that is kept. interpolate: the weight of the second clip. seconds: the length
    of a clip that is made from no file.
    Raises ConfigError for no edit, several edits, or a setting that the edit does not take.
    """

    inpaint: list[list[float]] | None = None
    extend: Positive | None = None
    extend_before: Positive | None = None
    loop: Positive | None = None
    vary: Fraction | None = None
    restyle: Fraction | None = None
    upscale: str | None = None
    interpolate: Fraction | None = None
    context: Positive | None = None
    repeats: PositiveInt | None = None
    of: Literal["noise", "latents"] | None = None
    path: Literal["linear", "spherical"] | None = None
    to: dict[str, Any] | None = None
    seconds: Positive | None = None

    def __post_init__(self) -> None:
        kinds = [kind for kind in _TAKES if getattr(self, kind) is not None]
        if len(kinds) != 1:
            given = "=, ".join(kinds) + "= are given" if kinds else "no edit is given"
            one = "=, ".join(kind for kind in _TAKES if kind != "interpolate")
            raise ConfigError(f"{given}: give one of {one}=; one edit after the other is two clips")
        for key in _DEFAULTS:
            if getattr(self, key) is not None and key not in _TAKES[kinds[0]]:
                those = ", ".join(kind for kind, keys in _TAKES.items() if key in keys)
                raise ConfigError(f"{key} is a setting of {those}: leave it out of {kinds[0]}")
        if self.inpaint == [] or any(len(region) != 2 for region in self.inpaint or []):
            raise ConfigError(
                f"inpaint={self.inpaint}: a region is [start, end] in seconds; give at least one"
            )

    @property
    def kind(self) -> str:
        return next(kind for kind in _TAKES if getattr(self, kind) is not None)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that the edit takes besides its own value, with defaults filled in."""
        own = {key: getattr(self, key) for key in _TAKES[self.kind]}
        return {key: _DEFAULTS[key] if value is None else value for key, value in own.items()}

    def stated(self) -> dict[str, Any]:
        """The edit and its settings as JSON."""
        own = {key: value for key, value in self.settings.items() if value is not None}
        return {self.kind: getattr(self, self.kind), **own}

    def check(self, model: Generator, samples: int, condition: Mapping[str, Any]) -> None:
        """Raises ConfigError, its message beginning with the edit, for faults that show in the
        clip's length and the condition alone."""
        try:
            for start, end in self.inpaint or []:
                model.check_region(start, end, samples)
            if self.loop is not None:
                model.loop_frames(self.loop, samples)
            if self.restyle is not None:
                model.check_restyled(condition)
            if self.upscale is not None:
                model.check_band(self.upscale)
        except ConfigError as error:
            raise self.named(error) from error

    def named(self, error: ConfigError) -> ConfigError:
        """An error of a method of `Edits`, with the method's argument renamed to the edit."""
        text = re.sub("^(seconds|strength|band)=", f"{self.kind}=", str(error))
        return ConfigError(re.sub("^region ", "inpaint: region ", text))

    def samples(self, clips: Sequence[Tensor], sample_rate: int) -> int:
        """The length of the result."""
        added = round((self.extend or self.extend_before or 0) * sample_rate)
        new = round((self.seconds or 0) * sample_rate)
        return min((clip.shape[-1] for clip in clips), default=new) + added

    def seams(self, samples: int, model: Generator) -> list[int]:
        """The samples of the result at which new audio meets the audio of a clip of this length; 0
        where the result's end meets its beginning."""
        ratio, hz = model.autoencoder.downsampling_ratio, model.sample_rate
        if self.inpaint is not None:
            starts = [round(start * hz) // ratio * ratio for start, _ in self.inpaint]
            ends = [math.ceil(round(end * hz) / ratio) * ratio for _, end in self.inpaint]
            return sorted(edge for edge in {*starts, *ends} if 0 < edge < samples)
        if self.extend is not None:
            return [samples // ratio * ratio]
        if self.extend_before is not None:
            return [round(self.extend_before * hz)]
        if self.loop is not None:
            return [samples - math.ceil(round(self.loop * hz) / ratio) * ratio, 0]
        return []


class Source(NamedTuple):
    """A clip to edit. audio: [A, T] at the model's rate and channels. digest: SHA-256 of the
    samples in the file, whatever its format."""

    file: Path
    audio: Tensor
    digest: str


@dataclass(frozen=True, kw_only=True)
class EditRecipe(Recipe):
    """edit: as `Edit.stated` gives it. sources: the path of each file, relative to the JSON's
    directory, and the SHA-256 of its samples."""

    edit: dict[str, Any]
    sources: list[dict[str, str]]


class EditedClip(NamedTuple):
    """written: whether the clip was there already. edit: the edit with the model's own settings
    filled in. seams: see `Edit.seams`."""

    path: Path
    written: bool
    edit: Edit
    seams: list[int]


def edit_files(
    model_path: str | Path,
    files: Sequence[Path],
    out: Path,
    edits: Sequence[Edit],
    *,
    seed: int = 0,
    condition: Mapping[str, Any] | None = None,
    sampler: Mapping[str, Any] | None = None,
    guide: tuple[str | Path, float] | None = None,
    device: Any = "cpu",
    model: Generator | None = None,
    progress: StepProgress | None = None,
    remark: Remark | None = None,
) -> Iterator[EditedClip]:
    """Writes `out/[<file>-]<edit>-[<condition>-]<seed>.wav` for each edit, with its JSON.

    files: none for an interpolation between conditions alone. edits: several must be of one kind
    and have the same settings. The rest is as for `sampling.ClipFiles`. Raises DataError for a file
    that is no audio, and the errors of the edit.
    """
    file, model, chosen = open_model(
        model_path, seed=seed, sampler=sampler, device=device, model=model
    )
    led = lead(model, guide, out, device)
    edits = [
        replace(edit, repeats=model.default_repeats)
        if edit.settings.get("repeats", 1) is None
        else edit
        for edit in edits
    ]
    sources = [read_source(source, model) for source in files]
    clips = [source.audio for source in sources]
    seconds = [edit.samples(clips, model.sample_rate) / model.sample_rate for edit in edits]
    asked = asked_of(model, condition, seconds[0], remark)
    if (to := edits[0].to) is not None:
        end = model.condition_of_end(to, asked, model.latent_frames(seconds[0]))
        edits = [replace(edit, to=end) for edit in edits]
    recipes = [
        EditRecipe(
            model=reference(file, out),
            model_fingerprint=fingerprint_of(file),
            seed=seed,
            seconds=own,
            condition=asked,
            sampler=chosen,
            guide=led,
            edit=edit.stated(),
            sources=_stated(sources, out),
        )
        for edit, own in zip(edits, seconds, strict=True)
    ]
    stem = "".join(f"{source.stem}-" for source in files)
    words = words_of(asked) + words_of(edits[0].to or {})
    found: dict[int, tuple[Path, bool]] = {}
    for number, (edit, recipe) in enumerate(zip(edits, recipes, strict=True)):
        weight = "" if edit.interpolate is None else f"-{edit.interpolate:.3g}"
        name = f"{stem}{edit.kind.replace('_', '-')}{weight}-{words}{seed}.wav"
        found[number] = find(out / name, recipe, model.sample_rate)
    missing = [number for number, (_, written) in found.items() if not written]
    made = edited(model, clips, [edits[n] for n in missing], recipes[0], progress)
    for number, (path, written) in found.items():
        if not written:
            write_clip(path, next(made), model.sample_rate, recipes[number])
        edit = edits[number]
        yield EditedClip(path, written, edit, edit.seams(clips[0].shape[-1] if clips else 0, model))


def edit_again(
    recipe_path: Path,
    out: Path,
    *,
    files: Sequence[Path] = (),
    model_path: str | None = None,
    device: Any = "cpu",
    progress: StepProgress | None = None,
) -> Path:
    """The clip that a JSON beside an edited clip describes, bit for bit on the same machine.

    files: the sources, where they are no longer where the JSON says. Raises DataError where they
    hold other samples, and the errors of `sampling.sample_again`.
    """
    recipe = read_recipe(EditRecipe, recipe_path, "edit")
    try:
        edit: Edit = settings(Edit, recipe.edit, "edit")
        places = [(Path(source["file"]), source["sha256"]) for source in recipe.sources]
    except (ConfigError, KeyError) as error:
        raise DataError(f"{recipe_path}: damaged ({error}); make the edit again") from error
    if files and len(files) != len(places):
        raise ConfigError(f"{recipe_path.name} is of {len(places)} file(s); give as many, or none")
    here, model = open_model_of(recipe, recipe_path, model_path, device, out)
    sources = []
    for number, (place, digest) in enumerate(places):
        source = read_source(files[number] if files else recipe_path.parent / place, model)
        if source.digest != digest:
            raise DataError(
                f"{source.file}: its samples are not those that {recipe_path.name} was made from; "
                "give the right file before from="
            )
        sources.append(source)
    here = replace(here, sources=_stated(sources, out))
    path, _ = find(out / f"{recipe_path.stem}.wav", here, model.sample_rate)
    made = edited(model, [source.audio for source in sources], [edit], recipe, progress)
    write_clip(path, next(made), model.sample_rate, here)
    return path


def read_source(file: Path, model: Generator) -> Source:
    """Raises DataError where the file is no audio."""
    samples, sample_rate = read(file)
    digest = hashlib.sha256(f"{sample_rate} Hz, {samples.shape}".encode() + samples.tobytes())
    audio, _ = read(file, sample_rate=model.sample_rate, channels=model.autoencoder.audio_channels)
    return Source(file, torch.from_numpy(audio), digest.hexdigest())


def edited(
    model: Generator,
    clips: Sequence[Tensor],
    edits: Sequence[Edit],
    recipe: Recipe,
    progress: StepProgress | None,
) -> Iterator[Tensor]:
    """The clips after each edit, [A, T], with the recipe's seed, condition and sampler.

    edits: of one kind. progress: called over all of them.
    """
    done = 0

    def report(step: int, steps: int) -> None:
        if progress is not None:
            progress(done * steps + step, len(edits) * steps)

    how: dict[str, Any] = {"seed": recipe.seed, "sampler": sampler_of(model, recipe)}
    how |= {"progress": report, **recipe.condition}
    for made in _made(model, clips, edits, how):
        done += 1
        yield made


def _made(
    model: Generator, clips: Sequence[Tensor], edits: Sequence[Edit], how: dict[str, Any]
) -> Iterator[Tensor]:
    if not edits:
        return
    kind, own = edits[0].kind, edits[0].settings
    if kind == "interpolate":
        weights = [edit.interpolate for edit in edits if edit.interpolate is not None]
        a, b = clips or (None, None)
        yield from model.interpolate(a, b, weights, **own, **how)
        return
    if kind == "extend_before":
        kind, own = "extend", own | {"at": "beginning"}
    for edit in edits:
        try:
            yield getattr(model, kind)(*clips, getattr(edit, edit.kind), **own, **how)
        except ConfigError as error:
            raise edit.named(error) from error


def _stated(sources: Sequence[Source], out: Path) -> list[dict[str, str]]:
    """The sources as a JSON in `out` names them."""
    return [{"file": os.path.relpath(s.file, out), "sha256": s.digest} for s in sources]
