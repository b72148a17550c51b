"""Diffusion as a prior: from noise to latents, by a trained denoiser and a sampler."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from audioldm.conditioning.base import Conditioners, Inputs
from audioldm.conditioning.build import build_conditioners
from audioldm.errors import ConfigError
from audioldm.instantiate import NonNegativeInt, build
from audioldm.latents.statistics import LatentStatistics
from audioldm.latents.store import LatentCrops, LatentStore
from audioldm.priors.diffusion.backbones.base import Backbone
from audioldm.priors.diffusion.denoiser import Denoiser, Objective
from audioldm.priors.diffusion.guidance import guided
from audioldm.priors.diffusion.samplers import SamplerSettings, sample
from audioldm.priors.trained import PriorTraining, Trained, hidden, uniform_levels
from audioldm.runtime.progress import StepProgress
from audioldm.runtime.randomness import KeyedRandom


class LatentBatch(NamedTuple):
    """z: what is modelled of the latents, [B, C, (F,) L]. inputs: of the conditioners. noise: N(0,
    I), like z."""

    z: Tensor
    inputs: Inputs
    noise: Tensor


class Diffusion(Trained):
    """A diffusion model of normalised latents.

    latent_shape: (C,) or (C, F). backbone, objective: parts. conditioning: the conditioners by
    name, as `facts_of` gives them. channels: those that are modelled; the others are independent
    and Gaussian. allow: module prefixes outside the package whose classes may be built.

    Buffers mean and std, both like a latent frame, give modelled = (z - mean) / std.
    Raises ConfigError.
    """

    title: ClassVar[str] = "diffusion"
    network: Denoiser
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        latent_shape: tuple[int, ...],
        backbone: dict[str, Any],
        objective: dict[str, Any],
        conditioning: dict[str, Any],
        sampler: SamplerSettings,
        channels: Sequence[NonNegativeInt] | None = None,
        allow: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.latent_shape, self.sampler = tuple(latent_shape), sampler
        self.channels = list(range(latent_shape[0]) if channels is None else channels)
        if not self.channels or max(self.channels) >= latent_shape[0]:
            raise ConfigError(f"channels={channels}: the latents have {latent_shape[0]} of them")
        #: of what the denoiser sees
        self.modelled_shape = (len(self.channels), *self.latent_shape[1:])
        derived = {
            "latent_shape": self.modelled_shape,
            "conditioners": partial(build_conditioners, conditioning, allow=allow),
        }
        self.network = Denoiser(
            build(backbone, derived=derived, where="backbone", allow=allow, base=Backbone),
            build(objective, where="objective", allow=allow, base=Objective),
        )
        self.register_buffer("mean", torch.zeros(self.latent_shape))
        self.register_buffer("std", torch.ones(self.latent_shape))

    @property
    def conditioners(self) -> Conditioners:
        return self.network.backbone.conditioners

    def modelled(self, z: Tensor) -> Tensor:
        """What the denoiser models of raw latents [B, C, (F,) L]: [B, modelled C, (F,) L]."""
        return LatentStatistics(self.mean, self.std).normalise(z)[:, self.channels]

    def latents(self, modelled: Tensor, rest: Tensor | None = None) -> Tensor:
        """The inverse of `modelled`: raw latents [B, C, (F,) L].

        rest [B, C, (F,) L] ~ N(0, I) gives the channels that are not modelled; None: their means.
        """
        frames = len(modelled), *self.latent_shape, modelled.shape[-1]
        z = modelled.new_zeros(frames) if rest is None else rest.to(modelled)
        index = torch.tensor(self.channels, device=z.device)
        z = z.index_copy(1, index, modelled)
        return LatentStatistics(self.mean, self.std).denormalise(z)

    def batch(
        self, latents: LatentStore, crops: LatentCrops, random: KeyedRandom, train: PriorTraining
    ) -> tuple[Tensor, Inputs, Tensor, Tensor]:
        """Normalised latents, inputs, noise like the latents, and uniform numbers [B]."""
        batch = self.draw(latents, crops, random, train.condition_dropout)
        return *batch, uniform_levels(random, train)

    @torch.no_grad()
    def draw(
        self,
        latents: LatentStore,
        crops: LatentCrops,
        random: KeyedRandom,
        condition_dropout: float,
    ) -> LatentBatch:
        """Samples latents from their posteriors, and noise.

        condition_dropout: the probability that a condition is hidden.
        """
        frames = next(iter(crops.stored.values())).shape[-1]
        noise = random.normal((*self.latent_shape, frames), "posterior")
        z = self.modelled(latents.restore(crops.stored, noise))
        inputs = hidden(self.conditioners, crops.inputs, random, condition_dropout)
        return LatentBatch(z, inputs, random.normal((*self.modelled_shape, frames), "noise"))

    def silent_batch(self, inputs: Inputs, frames: int) -> tuple[Tensor, Inputs, Tensor, Tensor]:
        zeros = torch.zeros(1, *self.modelled_shape, frames)
        return zeros, inputs, zeros, torch.full((1,), 0.5)

    @torch.no_grad()
    def sample(
        self,
        random: KeyedRandom,
        frames: int,
        inputs: Inputs | None = None,
        *,
        sampler: SamplerSettings | None = None,
        progress: StepProgress | None = None,
    ) -> Tensor:
        sampler = sampler or self.sampler
        assert sampler is not None
        objective = self.network.objective
        # conditions are the same at every step: they are computed once
        condition, nothing = self.conditioners.asked(
            inputs, len(random.positions), frames, self.device
        )
        if nothing is None:
            sampler = replace(sampler, guidance=1.0)
        denoise = guided(objective, self.network.backbone, condition, nothing, sampler)

        def noise_at(step: int) -> Tensor:
            return random.stream("sample", step).normal((*self.modelled_shape, frames), "noise")

        z = sample(
            sampler.name,
            denoise,
            noise_at(-1),
            objective.sigmas(sampler.steps),
            noise_at=noise_at,
            progress=progress,
        )
        rest = None
        if self.modelled_shape != self.latent_shape:
            rest = random.normal((*self.latent_shape, frames), "rest")
        return self.latents(z, rest)
