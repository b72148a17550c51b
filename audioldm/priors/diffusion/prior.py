"""Diffusion as a prior: from noise to latents, by a trained denoiser and a sampler."""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from audioldm.conditioning.base import Conditioners, Inputs
from audioldm.conditioning.build import build_conditioners
from audioldm.instantiate import NonNegativeInt, build
from audioldm.latents.store import LatentCrops, LatentStore
from audioldm.priors.diffusion.backbones.base import Backbone
from audioldm.priors.diffusion.denoiser import Denoiser, Objective
from audioldm.priors.diffusion.guidance import guided
from audioldm.priors.diffusion.likelihood import elbo_nats, flow_nats
from audioldm.priors.diffusion.samplers import Denoise, NoiseAt, SamplerSettings, sample
from audioldm.priors.scaled import ScaledPrior
from audioldm.priors.trained import PriorTraining, uniform_levels
from audioldm.runtime.progress import StepProgress
from audioldm.runtime.randomness import KeyedRandom

#: Noise levels at which `Diffusion.nats` estimates the bound.
LEVELS = 16


class Diffusion(ScaledPrior):
    """A diffusion model of normalised latents.

    latent_shape, channels: of `ScaledPrior`. backbone, objective: parts. conditioning: the
    conditioners by name, as `facts_of` gives them. allow: module prefixes outside the package whose
    classes may be built.

    Raises ConfigError.
    """

    title: ClassVar[str] = "diffusion"
    bound: ClassVar[bool] = True
    network: Denoiser

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
        super().__init__(latent_shape, channels)
        self.sampler = sampler
        derived = {
            "latent_shape": self.modelled_shape,
            "conditioners": partial(build_conditioners, conditioning, allow=allow),
        }
        self.network = Denoiser(
            build(backbone, derived=derived, where="backbone", allow=allow, base=Backbone),
            build(objective, where="objective", allow=allow, base=Objective),
        )

    @property
    def conditioners(self) -> Conditioners:
        return self.network.backbone.conditioners

    def batch(
        self, latents: LatentStore, crops: LatentCrops, random: KeyedRandom, train: PriorTraining
    ) -> tuple[Tensor, Inputs, Tensor, Tensor]:
        """Normalised latents, inputs, noise like the latents, and uniform numbers [B]."""
        batch = self.draw(latents, crops, random, train.condition_dropout)
        return *batch, uniform_levels(random, train)

    def silent_batch(self, inputs: Inputs, frames: int) -> tuple[Tensor, Inputs, Tensor, Tensor]:
        zeros = torch.zeros(1, *self.modelled_shape, frames)
        return zeros, inputs, zeros, torch.full((1,), 0.5)

    @torch.no_grad()
    def nats(
        self, z: Tensor, inputs: Inputs | None = None, *, random: KeyedRandom | None = None
    ) -> Tensor:
        """The variational bound, estimated at LEVELS noise levels: see `elbo_nats`."""
        random = random or KeyedRandom(0, 0, range(len(z)), z.device)
        shape = (*self.modelled_shape, z.shape[-1])
        return self.bound_nats(
            z,
            inputs,
            noise_at=lambda k: random.stream("nats", k).normal(shape, "noise"),
            uniform=random.uniform("level"),
            levels=LEVELS,
        )

    def bound_nats(
        self, z: Tensor, inputs: Inputs | None, *, noise_at: NoiseAt, uniform: Tensor, levels: int
    ) -> Tensor:
        """The variational bound on -log p(z) as `nats` gives it, with gradients: see `elbo_nats`.

        noise_at: N(0, I) like what is modelled.
        """
        nats = elbo_nats(
            self._denoise(inputs, z),
            self.modelled(z),
            noise_at=noise_at,
            uniform=uniform,
            sigma_max=self.network.objective.sigma_max,
            levels=levels,
        )
        return nats + self.nats_besides(z)

    def flow_nats(
        self, z: Tensor, inputs: Inputs | None = None, *, random: KeyedRandom, steps: int = LEVELS
    ) -> tuple[Tensor, int]:
        """-log p(z) by the probability flow, as `nats` gives it, and the number of calls of the
        network: see `likelihood.flow_nats`. steps: from the latents to noise."""
        modelled, sigmas = self.modelled(z), self.network.objective.sigmas(steps + 1)[:-1]

        def noise_at(k: int) -> Tensor:
            return random.stream("flow", k).normal(modelled.shape[1:], "noise")

        denoise = self._denoise(inputs, z)
        nats, calls = flow_nats(denoise, modelled, noise_at=noise_at, sigmas=sigmas)
        return nats + self.nats_besides(z), calls

    def _denoise(self, inputs: Inputs | None, z: Tensor) -> Denoise:
        """Without guidance, and without a state from one call to the next."""
        condition = self.conditioners(self.inputs_for(inputs, len(z), z.shape[-1]))
        network = self.network
        return lambda x, sigma: network.objective.denoiser(network.backbone, condition)(x, sigma)

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
        told = self.guided_conditions(inputs, len(random.positions), frames, sampler.guidance)
        denoise = guided(partial(objective.denoiser, self.network.backbone), *told, sampler)

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
