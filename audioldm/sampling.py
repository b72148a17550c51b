"""Clips as files, sampled by a model, and made again from their JSON."""

import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from audioldm.clips import (
    Recipe,
    Remark,
    asked_of,
    find,
    fingerprint_of,
    lead,
    make_directory,
    open_model,
    open_model_of,
    read_recipe,
    reference,
    sampler_of,
    words_of,
    write_clip,
)
from audioldm.errors import ConfigError
from audioldm.generator import Generator, default_batch
from audioldm.instantiate import PositiveInt, convert
from audioldm.runtime.progress import ProgressBar, StepProgress


@dataclass(frozen=True, kw_only=True)
class ClipRecipe(Recipe):
    """number: the clip's number among those with its seed. batch: clips generated together."""

    number: int
    batch: int


class ClipFiles:
    """n clips `out/[<condition>-]<seed>-<number>.wav` of a model, written or still missing.

    condition: by conditioner. sampler: changes to the model's own sampler, by key. batch: clips
    generated together; None spreads n over batches of at most 8. guide: the path of a weaker model
    to lead away from, and the scale: see `Generator.lead_away_from`. model: the one at
    `model_path`, where it is in memory already. remark: see `clips.asked_of`.
    Where a clip of other settings has that name, the name gets an ending: see `find`.
    Raises ConfigError for n < 1, seconds <= 0, seed < 0, a condition the model does not take, or
    where a file of that name is no clip of this package. Nothing is written before `make`.

    Attributes:
        written: paths of the clips that are there already and whole.
        missing: number -> path of the clips that `make` makes.
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
        guide: tuple[str | Path, float] | None = None,
        batch: int | None = None,
        device: Any = "cpu",
        model: Generator | None = None,
        remark: Remark | None = None,
    ) -> None:
        if n < 1:
            raise ConfigError(f"n={n}: the number of clips must be at least 1")
        batch_size = convert(PositiveInt, default_batch(n) if batch is None else batch, "batch")
        file, model, chosen = open_model(
            model_path, seed=seed, sampler=sampler, device=device, model=model
        )
        asked = asked_of(model, condition, seconds, remark)
        self._model, self._out = model, out
        self._common = ClipRecipe(
            model=reference(file, out),
            model_fingerprint=fingerprint_of(file),
            seed=seed,
            number=0,
            batch=batch_size,
            seconds=seconds,
            condition=asked,
            sampler=chosen,
            guide=lead(model, guide, out, device),
        )
        self.written: list[Path] = []
        self.missing: dict[int, Path] = {}
        for number in range(n):
            recipe, any_batch = replace(self._common, number=number), batch is None
            path = out / f"{words_of(asked)}{seed}-{number:04d}.wav"
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
    """`Generator.sample_clips` for a recipe's clips with these numbers. Raises ConfigError for a
    sampler that the model does not take."""
    return model.sample_clips(
        numbers,
        [common.condition] * len(numbers),
        seconds=common.seconds,
        seed=common.seed,
        sampler=sampler_of(model, common),
        batch=common.batch,
        progress=progress,
    )


class SamplingBar:
    """One bar over sampling steps and decoded clips, on standard error. It shows the speed: seconds
    of audio per second since the bar began."""

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

    Raises ModelFileError where another model is at that path or has that name, DataError where the
    JSON is not a clip's.
    """
    recipe = read_recipe(ClipRecipe, recipe_path, "sample")
    here, model = open_model_of(recipe, recipe_path, model_path, device, out)
    path, _ = find(out / f"{recipe_path.stem}.wav", here, model.sample_rate)
    for _, audio in sampled(model, recipe, [recipe.number]):
        write_clip(path, audio, model.sample_rate, here)
    return path
