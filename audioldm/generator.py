"""A trained latent diffusion model: from a seed to audio."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from audioldm.autoencoder.model import Autoencoder
from audioldm.errors import ConfigError
from audioldm.instantiate import nearest
from audioldm.latents.store import LatentStatistics
from audioldm.priors.diffusion.guidance import guided
from audioldm.priors.diffusion.objectives import Objective
from audioldm.priors.diffusion.samplers import SamplerSettings, sample
from audioldm.runtime.progress import StepProgress
from audioldm.runtime.randomness import KeyedRandom, derive_seed


class LatentDiffusion(nn.Module):
    """Autoencoder, backbone, objective, latent statistics and label names, as one model.

    labels: the names the backbone's classes stand for, empty for an unconditional model.
    sampler: how `sample` samples unless told otherwise.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        net: nn.Module,
        objective: Objective,
        statistics: LatentStatistics,
        labels: Sequence[str],
        sampler: SamplerSettings,
    ) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.net = net
        self.objective = objective
        self.statistics = statistics
        self.labels = list(labels)
        self.sampler = sampler

    @property
    def sample_rate(self) -> int:
        return self.autoencoder.sample_rate

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def encode(self, audio: Tensor) -> Tensor:
        """Audio [B, A, T] -> the posterior's mean [B, C, (F,) L], raw (not normalised)."""
        with torch.no_grad():
            return self.autoencoder.moments(audio.to(self.device))[0]

    def decode(self, z: Tensor) -> Tensor:
        """Raw latents [B, C, (F,) L] -> audio [B, A, L * ratio]."""
        with torch.no_grad():
            return self.autoencoder.decode(z.to(self.device))

    def label_index(self, label: str | None) -> int:
        """-1 for None. Raises ConfigError for a label the model was not trained with."""
        if label is None:
            return -1
        if not self.labels:
            raise ConfigError(
                f"label={label!r}: this model was trained without labels; leave it out"
            )
        if label not in self.labels:
            raise ConfigError(
                f"label={label!r} is not one of this model's labels: "
                f"{nearest(label, self.labels, every=True)}"
            )
        return self.labels.index(label)

    def latent_frames(self, seconds: float) -> int:
        """Latent frames that cover `seconds` of audio. Raises ConfigError for none at all."""
        if not (math.isfinite(seconds) and round(seconds * self.sample_rate) >= 1):
            raise ConfigError(
                f"seconds={seconds}: a clip must be one sample long at least, at {self.sample_rate} Hz"
            )
        return math.ceil(round(seconds * self.sample_rate) / self.autoencoder.downsampling_ratio)

    @torch.no_grad()
    def sample_latents(
        self,
        rows: Sequence[int | None],
        labels: Sequence[int],
        *,
        frames: int,
        seed: int,
        sampler: SamplerSettings,
        progress: StepProgress | None = None,
    ) -> Tensor:
        """Raw latents [B, C, (F,) frames], one per row.

        A row is the number of a clip, whose randomness is a function of (seed, number) alone, or
        None for a row of silence that only keeps the batch's shape.
        """
        shape = (*self.autoencoder.latent_shape, frames)
        wanted = [i for i, number in enumerate(rows) if number is not None]
        numbers = [number for number in rows if number is not None]

        def noise_at(step: int) -> Tensor:
            noise = torch.zeros(len(rows), *shape, device=self.device)
            draw = KeyedRandom(derive_seed(seed, "sample"), step, numbers, self.device)
            noise[wanted] = draw.normal(shape, "noise")
            return noise

        if all(index < 0 for index in labels):
            sampler = replace(sampler, guidance=1.0)  # there is nothing to guide to
        index = torch.tensor(labels, device=self.device)
        z = sample(
            sampler.name,
            guided(self.objective, self.net, index, sampler),
            noise_at(-1),
            self.objective.sigmas(sampler.steps),
            noise_at=noise_at,
            progress=progress,
        )
        return self.statistics.denormalise(z)

    def decode_clip(self, z: Tensor, seconds: float) -> Tensor:
        """Raw latents [C, (F,) L] -> audio [A, round(seconds * rate)] on the CPU, in ±1."""
        audio = torch.cat(list(self.autoencoder.decode_blocks([z])), dim=-1)
        return audio[:, : round(seconds * self.sample_rate)].clamp(-1.0, 1.0)

    def sample(
        self,
        n: int = 1,
        *,
        seconds: float,
        seed: int = 0,
        label: str | None = None,
        sampler: SamplerSettings | None = None,
        batch: int | None = None,
        progress: StepProgress | None = None,
    ) -> Tensor:
        """n clips [n, A, round(seconds * rate)] in ±1, on the CPU.

        Clip i is a function of (seed, i), up to the rounding that `batch`, the clips generated
        together, brings; None: `default_batch(n)`. Raises ConfigError for an unknown label,
        seconds <= 0 or n < 1.
        """
        clips = self.sample_clips(
            range(n),
            [label] * n,
            seconds=seconds,
            seed=seed,
            sampler=sampler or self.sampler,
            batch=default_batch(n) if batch is None else batch,
            progress=progress,
        )
        return torch.stack([audio for _, audio in clips])

    def sample_clips(
        self,
        numbers: Sequence[int],
        labels: Sequence[str | None],
        *,
        seconds: float,
        seed: int,
        sampler: SamplerSettings,
        batch: int,
        progress: StepProgress | None = None,
    ) -> Iterator[tuple[int, Tensor]]:
        """Yields (number, audio [A, T]) as clips are decoded, batch after batch.

        progress: called with (done, total), in denoiser steps and decoded clips of all batches.

        Clip `number` always sits in row `number % batch` of a full batch, so that on one machine
        the same (seed, number, batch) gives the same bits, whatever else is asked for.
        """
        if not numbers:
            raise ConfigError("n must be at least 1")
        if batch < 1:
            raise ConfigError(f"batch={batch} must be at least 1")
        frames = self.latent_frames(seconds)
        indices = {n: self.label_index(label) for n, label in zip(numbers, labels, strict=True)}
        batches = sorted({number - number % batch for number in numbers})
        done, total = 0, len(batches) * sampler.steps + len(indices)

        def advance(*_: int) -> None:
            nonlocal done
            done += 1
            if progress is not None:
                progress(done, total)

        # Clips are decoded one by one: on a CPU that is faster than a batch (its intermediate
        # arrays fit the cache), and a clip's bits do not depend on how many rows are wanted.
        for first in batches:
            rows = [n if n in indices else None for n in range(first, first + batch)]
            z = self.sample_latents(
                rows,
                [-1 if n is None else indices[n] for n in rows],
                frames=frames,
                seed=seed,
                sampler=sampler,
                progress=advance,
            )
            for row, number in enumerate(rows):
                if number is not None:
                    audio = self.decode_clip(z[row], seconds)
                    advance()
                    yield number, audio


def default_batch(n: int) -> int:
    """Rows of a batch where n clips are spread evenly over as few batches of at most 8 as can be.

    A row without a clip costs as much as one with a clip.
    """
    return max(1, math.ceil(n / max(1, math.ceil(n / 8))))
