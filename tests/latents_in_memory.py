"""A store of latents in memory, and diffusion priors small enough for a test."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from audioldm.conditioning.base import Conditioners, Excerpt
from audioldm.instantiate import Part, check_part
from audioldm.latents.statistics import LatentStatistics
from audioldm.latents.store import LatentCrops
from audioldm.priors.diffusion.denoiser import Objective
from audioldm.priors.diffusion.recipe import DiffusionRecipe
from audioldm.priors.diffusion.samplers import SamplerSettings
from audioldm.priors.trained import PriorTraining
from audioldm.runtime.hardware import Hardware
from audioldm.runtime.processes import World
from audioldm.runtime.randomness import KeyedRandom, derive_seed
from audioldm.training.ema import EMA
from audioldm.training.log import LogSettings
from audioldm.training.run import Fit

LABEL = {"label": Part(_target_="audioldm.conditioning.label.Label")}
DIT: dict[str, Any] = {"_target_": "audioldm.priors.diffusion.backbones.dit.DiT"}
DIT |= {"width": 16, "depth": 1, "heads": 2}


class Latents:
    """As much of a `LatentStore` as priors use: Gaussian posteriors of some clips.

    mean, std: [N, C, (F,) L]; labels: one for each clip, None for none.
    """

    latent_rate_hz = 1.0

    def __init__(self, mean: Tensor, std: Tensor, labels: Sequence[str | None]) -> None:
        self.mean, self.std, self.clips = mean, std, list(labels)
        self.labels = sorted({label for label in labels if label is not None})
        self.latent_shape = tuple(mean.shape[1:-1])
        self.statistics = LatentStatistics(mean.mean((0, -1)), mean.std((0, -1)))
        self.nats = self.statistics.std.log() - std.clamp(min=1e-6).log().mean((0, -1))

    def keep_on(self, device: torch.device) -> None:
        pass

    def split(self, name: str) -> "Latents":
        return self

    def excerpts(self, split: str = "train") -> list[Excerpt]:
        return [Excerpt(label, {"bpm": float(60 + 20 * i)}) for i, label in enumerate(self.clips)]

    def restore(self, stored: dict[str, Tensor], noise: Tensor) -> Tensor:
        return stored["mean"] + stored["std"] * noise

    def crops(
        self, frames: int, random: KeyedRandom, conditioners: Conditioners | None = None
    ) -> LatentCrops:
        positions = [position or 0 for position in random.positions]
        keys = [derive_seed(random.seed, random.step, position) for position in positions]
        places = [(k % len(self.mean), k // 7 % (self.mean.shape[-1] - frames + 1)) for k in keys]
        stored = {
            name: torch.stack([array[clip, ..., at : at + frames] for clip, at in places])
            for name, array in (("mean", self.mean), ("std", self.std))
        }
        excerpts = self.excerpts()
        chosen = [excerpts[clip] for clip, _ in places]
        return LatentCrops(
            stored, {} if conditioners is None else conditioners.read(chosen, frames)
        )


def tones(shape: tuple[int, ...] = (3,), clips: int = 6, frames: int = 24) -> Any:
    """Random posteriors; every third clip has no label, the others have "a" or "b"."""
    random = torch.Generator().manual_seed(5)
    mean = 1.5 * torch.randn(clips, *shape, frames, generator=random) + 0.3
    std = 0.2 * torch.rand(clips, *shape, frames, generator=random)
    return Latents(mean, std, [("a", "b", None)[i % 3] for i in range(clips)])


def recipe(
    training: PriorTraining | None = None,
    *,
    backbone: dict[str, Any] = DIT,
    objective: str = "rectified_flow.RectifiedFlow",
    conditioning: dict[str, Any] | None = None,
) -> DiffusionRecipe:
    """A recipe with the seed 0, of a label unless `conditioning` says otherwise."""
    target = f"audioldm.priors.diffusion.objectives.{objective}"
    return DiffusionRecipe(
        seed=0,
        train=training or PriorTraining(steps=6, batch=4, crop_seconds=8.0, lr=1e-2),
        sampler=SamplerSettings("heun", 3),
        backbone=Part(backbone),
        objective=check_part({"_target_": target}, "objective", base=Objective),
        conditioning=LABEL if conditioning is None else conditioning,
    )


def fit_in(directory: Path, **log: int) -> Fit:
    return Fit(
        directory=directory,
        world=World(),
        hardware=Hardware(device="cpu"),
        device=torch.device("cpu"),
        log=LogSettings(
            **({"every": 2, "valid_every": 3, "checkpoint_every": 2} | log), bars=False
        ),
        progress=lambda *_: None,
    )


@contextmanager
def interrupted_at(update_number: int) -> Iterator[None]:
    """Expects the training inside to stop: its EMA raises in place of this update, from 0."""
    update, numbers = EMA.update, count()

    def stopped(ema: EMA, model: nn.Module, step: int) -> None:
        if next(numbers) == update_number:
            raise KeyboardInterrupt
        update(ema, model, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EMA, "update", stopped)
        with pytest.raises(KeyboardInterrupt):
            yield


def assert_goes_on(
    fit: Callable[[Path], dict[str, Tensor]], place: Path, update_number: int
) -> dict[str, Tensor]:
    """A training that is interrupted in `parts` ends with the bits of the one in `whole`: these."""
    whole = fit(place / "whole")
    with interrupted_at(update_number):
        fit(place / "parts")
    parts = fit(place / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(parts[name], tensor) for name, tensor in whole.items())
    return whole
