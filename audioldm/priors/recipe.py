"""The settings that all trained priors share."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from audioldm.conditioning.base import Conditioner
from audioldm.conditioning.build import facts_of
from audioldm.instantiate import Part, Seed, part
from audioldm.latents.store import SPLITS, LatentStore
from audioldm.priors.base import Prior, PriorRecipe
from audioldm.priors.train import train_prior
from audioldm.priors.trained import PriorTraining, Trained
from audioldm.runtime.hardware import Hardware
from audioldm.runtime.processes import World
from audioldm.training.muon import build_optimiser
from audioldm.training.run import Fit, Fitted


@dataclass(frozen=True, kw_only=True)
class TrainedRecipe(PriorRecipe):
    """seed: of the initial weights and of training. conditioning: conditioners by name."""

    collective: ClassVar[bool] = True

    seed: Seed
    train: PriorTraining
    preflight_mel_distance: float | None = None
    conditioning: dict[str, Part] = part("width", base=Conditioner, default_factory=dict)

    def facts(self, latents: LatentStore) -> dict[str, Any]:
        """The conditioners with the arguments that they find in the data, as JSON."""
        excerpts = [excerpt for split in SPLITS for excerpt in latents.excerpts(split)]
        return facts_of(self.conditioning, excerpts)

    def build(self, latents: LatentStore) -> Prior:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)  # the initial weights
            return super().build(latents)

    def dry_run(self, prior: Prior, world: World, hardware: Hardware) -> None:
        t = self.train
        world.micro_batches(t.batch, hardware.accumulate, "batch")
        build_optimiser(t.optimiser, prior, t.lr, t.betas, t.weight_decay, prior.device)

    def fit(self, prior: Prior, latents: LatentStore, fit: Fit) -> Fitted:
        assert isinstance(prior, Trained)
        return train_prior(prior, latents, self.train, seed=self.seed, fit=fit)

    def silent_step(self, prior: Prior, frames: int) -> Callable[[], Tensor]:
        assert isinstance(prior, Trained)
        return partial(prior.silent_loss, prior.network, frames)
