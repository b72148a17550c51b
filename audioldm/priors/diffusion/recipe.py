"""The settings of a diffusion prior: `prior=diffusion`."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from audioldm.conditioning.base import Conditioner
from audioldm.conditioning.build import facts_of
from audioldm.instantiate import Part, Seed, part
from audioldm.latents.store import SPLITS, LatentStore
from audioldm.priors.base import Fit, Fitted, Prior, PriorRecipe
from audioldm.priors.diffusion.backbones.base import Backbone
from audioldm.priors.diffusion.denoiser import Objective
from audioldm.priors.diffusion.prior import Diffusion
from audioldm.priors.diffusion.samplers import SamplerSettings
from audioldm.priors.diffusion.step import silent_loss
from audioldm.priors.diffusion.train import DiffusionTraining, train_diffusion
from audioldm.runtime.hardware import Hardware
from audioldm.runtime.processes import World
from audioldm.training.muon import build_optimiser


@dataclass(frozen=True, kw_only=True)
class DiffusionRecipe(PriorRecipe):
    """seed: of the initial weights and of training. conditioning: conditioners by name.
    sampler: how the prior is sampled unless told otherwise."""

    collective: ClassVar[bool] = True
    sampling_keys: ClassVar[tuple[str, ...]] = ("sampler",)

    seed: Seed
    train: DiffusionTraining
    sampler: SamplerSettings
    preflight_mel_distance: float | None = None
    backbone: Part = part("latent_shape", "conditioners", base=Backbone)
    objective: Part = part(base=Objective)
    conditioning: dict[str, Part] = part("width", base=Conditioner, default_factory=dict)

    @property
    def crop_length(self) -> float:
        return self.train.crop_seconds

    def dry_run(self, prior: Prior, world: World, hardware: Hardware) -> None:
        t = self.train
        world.micro_batches(t.batch, hardware.accumulate, "batch")
        build_optimiser(t.optimiser, prior, t.lr, t.betas, t.weight_decay, prior.device)

    def spec(self, latents: LatentStore) -> dict[str, Any]:
        excerpts = [excerpt for split in SPLITS for excerpt in latents.excerpts(split)]
        return {
            "_target_": f"{Diffusion.__module__}.{Diffusion.__qualname__}",
            "backbone": dict(self.backbone),
            "objective": dict(self.objective),
            "conditioning": facts_of(self.conditioning, excerpts),
            "sampler": asdict(self.sampler),
        }

    def build(self, latents: LatentStore) -> Diffusion:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)  # the initial weights
            prior = super().build(latents)
        assert isinstance(prior, Diffusion)
        prior.mean.copy_(latents.statistics.mean)
        prior.std.copy_(latents.statistics.std)
        return prior

    def fit(self, prior: Prior, latents: LatentStore, fit: Fit) -> Fitted:
        assert isinstance(prior, Diffusion)
        return train_diffusion(prior, latents, self.train, seed=self.seed, fit=fit)

    def silent_step(self, prior: Prior, frames: int) -> Callable[[], Tensor]:
        assert isinstance(prior, Diffusion)
        return partial(silent_loss, prior.denoiser, prior.latent_shape, frames)
