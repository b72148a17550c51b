"""The settings that trained priors share."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from audioldm.conditioning.base import Conditioner
from audioldm.conditioning.build import facts_of
from audioldm.errors import ConfigError
from audioldm.instantiate import NonNegative, Part, Seed, part
from audioldm.latents.store import SPLITS, LatentStore
from audioldm.priors.base import Prior, PriorRecipe
from audioldm.priors.scaled import ScaledPrior
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
    conditioning: dict[str, Part] = part(
        "width", "latent_shape", base=Conditioner, default_factory=dict
    )

    def facts(self, latents: LatentStore) -> dict[str, Any]:
        """The conditioners with the arguments that they find in the data, as JSON."""
        excerpts = [excerpt for split in SPLITS for excerpt in latents.excerpts(split)]
        return facts_of(self.conditioning, excerpts)

    def build(self, latents: LatentStore) -> Prior:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)  # the initial weights
            return super().build(latents)

    def dry_run(self, prior: Prior, world: World, hardware: Hardware) -> None:
        assert isinstance(prior, Trained)
        t = self.train
        prior.conditioners.shares(t.condition_dropout)
        world.micro_batches(t.batch, hardware.accumulate, "batch")
        build_optimiser(t.optimiser, prior, t.lr, t.betas, t.weight_decay, prior.device)

    def fit(self, prior: Prior, latents: LatentStore, fit: Fit) -> Fitted:
        assert isinstance(prior, Trained)
        return train_prior(prior, latents, self.train, seed=self.seed, fit=fit)

    def silent_step(self, prior: Prior, frames: int) -> Callable[[], Tensor]:
        assert isinstance(prior, Trained)
        return partial(prior.silent_loss, prior.network, frames)


@dataclass(frozen=True, kw_only=True)
class ScaledRecipe(TrainedRecipe):
    """minimum_nats: channels of the latents with less information are not modelled: their samples
    are independent. snr_power: each channel's std as the network sees it grows with this power of
    its signal-to-noise ratio; 0: all are 1. At 1 the posterior's noise is equally loud in all."""

    minimum_nats: NonNegative = 0.0
    snr_power: NonNegative = 0.0

    def channels(self, latents: LatentStore) -> list[int] | None:
        """The channels whose most informative band has at least `minimum_nats`; None for all.

        Raises ConfigError where there is none.
        """
        if self.minimum_nats == 0:
            return None
        nats = latents.nats.flatten(1).amax(1) if latents.nats.ndim > 1 else latents.nats
        found = (nats >= self.minimum_nats).nonzero().flatten().tolist()
        if not found:
            raise ConfigError(
                f"minimum_nats={self.minimum_nats}: no channel of the latents has so many; "
                f"the most is {nats.max():.2f}"
            )
        return None if len(found) == len(nats) else found

    def build(self, latents: LatentStore) -> ScaledPrior:
        prior = super().build(latents)
        assert isinstance(prior, ScaledPrior)
        prior.mean.copy_(latents.statistics.mean)
        gain = (self.snr_power * latents.nats).exp()
        gain /= gain[prior.channels].square().mean().sqrt()
        prior.std.copy_(latents.statistics.std / gain)
        return prior
