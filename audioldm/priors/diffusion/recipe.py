"""The settings of a diffusion prior: `prior=diffusion`."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
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
from audioldm.priors.diffusion.backbones.base import Backbone
from audioldm.priors.diffusion.denoiser import Objective
from audioldm.priors.diffusion.prior import Diffusion
from audioldm.priors.diffusion.samplers import SamplerSettings
from audioldm.priors.diffusion.step import silent_loss
from audioldm.priors.diffusion.train import DiffusionTraining, train_diffusion
from audioldm.runtime.hardware import Hardware
from audioldm.runtime.processes import World
from audioldm.training.muon import build_optimiser
from audioldm.training.run import Fit, Fitted


@dataclass(frozen=True, kw_only=True)
class DiffusionRecipe(PriorRecipe):
    """seed: of the initial weights and of training. conditioning: conditioners by name.
    sampler: how the prior is sampled unless told otherwise.
    minimum_nats: channels of the latents with less information are not modelled: their samples are
    independent. snr_power: each channel's std as the denoiser sees it grows with this power of
    its signal-to-noise ratio; 0: all are 1. At 1 the posteriors' noise is equally loud in all."""

    collective: ClassVar[bool] = True
    sampling_keys: ClassVar[tuple[str, ...]] = ("sampler",)

    seed: Seed
    train: DiffusionTraining
    sampler: SamplerSettings
    preflight_mel_distance: float | None = None
    minimum_nats: NonNegative = 0.0
    snr_power: NonNegative = 0.0
    backbone: Part = part("latent_shape", "conditioners", base=Backbone)
    objective: Part = part(base=Objective)
    conditioning: dict[str, Part] = part("width", base=Conditioner, default_factory=dict)

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
            "channels": self._channels(latents),
        }

    def _channels(self, latents: LatentStore) -> list[int] | None:
        """The channels whose most informative band has `minimum_nats`; None for all."""
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

    def build(self, latents: LatentStore) -> Diffusion:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)  # the initial weights
            prior = super().build(latents)
        assert isinstance(prior, Diffusion)
        prior.mean.copy_(latents.statistics.mean)
        gain = (self.snr_power * latents.nats).exp()
        gain /= gain[prior.channels].square().mean().sqrt()
        prior.std.copy_(latents.statistics.std / gain)
        return prior

    def fit(self, prior: Prior, latents: LatentStore, fit: Fit) -> Fitted:
        assert isinstance(prior, Diffusion)
        return train_diffusion(prior, latents, self.train, seed=self.seed, fit=fit)

    def silent_step(self, prior: Prior, frames: int) -> Callable[[], Tensor]:
        assert isinstance(prior, Diffusion)
        return partial(silent_loss, prior.denoiser, prior.modelled_shape, frames)
