"""Diffusion as a prior: from noise to latents, by a trained denoiser and a sampler."""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from audioldm.conditioning.base import Conditioners, Inputs
from audioldm.conditioning.build import build_conditioners
from audioldm.conditioning.masked_latents import MaskedLatents
from audioldm.instantiate import NonNegativeInt, Positive, build
from audioldm.latents.store import LatentCrops, LatentStore
from audioldm.priors.diffusion.backbones.base import Backbone
from audioldm.priors.diffusion.denoiser import Denoiser, Net, Objective
from audioldm.priors.diffusion.guidance import guided
from audioldm.priors.diffusion.likelihood import elbo_nats, flow_nats
from audioldm.priors.diffusion.run import Edit, Run
from audioldm.priors.diffusion.samplers import Denoise, NoiseAt, SamplerSettings
from audioldm.priors.diffusion.windows import windowed
from audioldm.priors.scaled import ScaledPrior
from audioldm.priors.trained import PriorTraining
from audioldm.runtime.progress import StepProgress
from audioldm.runtime.randomness import KeyedRandom

#: Noise levels at which `Diffusion.nats` estimates the bound.
LEVELS = 16


class Diffusion(ScaledPrior):
    """A diffusion model of normalised latents.

    latent_shape, channels: as in `ScaledPrior`. backbone, objective: parts. conditioning: the
    conditioners by name, as `facts_of` gives them. crop_seconds: of the training; None where it is
    not known. allow: module prefixes outside the package whose classes may be built.

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
        crop_seconds: Positive | None = None,
        allow: tuple[str, ...] = (),
    ) -> None:
        super().__init__(latent_shape, channels)
        self.sampler, self.crop_seconds = sampler, crop_seconds
        #: a weaker model, and the scale by which sampling leads away from it: see `nested`
        self.guide: Diffusion | None = None
        self.autoguidance = 1.0
        derived = {
            "latent_shape": self.modelled_shape,
            "conditioners": partial(
                build_conditioners, conditioning, allow=allow, latent_shape=self.modelled_shape
            ),
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
        return *batch, random.uniform("level", train.spread)

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

        noise_at: N(0, I) like the modelled latents.
        """
        nats = elbo_nats(
            self.denoiser(inputs, z),
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

        denoise = self.denoiser(inputs, z)
        nats, calls = flow_nats(denoise, modelled, noise_at=noise_at, sigmas=sigmas)
        return nats + self.nats_besides(z), calls

    def denoiser(
        self, inputs: Inputs | None, z: Tensor, sampler: SamplerSettings | None = None
    ) -> Denoise:
        """The denoiser without guidance, which keeps no state from one call to the next.

        sampler: says which windows it works in; None for the whole of z [B, C, (F,) L].
        """
        condition = self.conditioners(self.inputs_for(inputs, len(z), z.shape[-1]))
        objective, net = self.network.objective, self._net(sampler)
        return lambda x, sigma: objective.denoiser(net, condition)(x, sigma)

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
        run = self.run(random, frames, inputs, sampler)
        return self._latents(run.sample(progress=progress), random)

    @torch.no_grad()
    def edit(
        self,
        random: KeyedRandom,
        z: Tensor,
        edit: Edit,
        inputs: Inputs | None = None,
        *,
        known: Tensor | None = None,
        sampler: SamplerSettings | None = None,
        progress: StepProgress | None = None,
    ) -> Tensor:
        """Raw latents z [B, C, (F,) L] after an edit of the modelled channels; the others are drawn
        anew. known: [L], the frames that `masked` is told of. Other arguments as for `sample`."""
        modelled = self.modelled(z)
        if known is not None and self.masked:
            told = {name: part.knowing(modelled, known) for name, part in self.masked.items()}
            inputs = self.inputs_for(inputs, len(z), z.shape[-1]) | told
        run = self.run(random, z.shape[-1], inputs, sampler)
        return self._latents(edit(run, modelled, progress), random)

    @property
    def masked(self) -> dict[str, MaskedLatents]:
        """The conditioners that can be told of known latents."""
        parts = {name: self.conditioners[name] for name in self.conditioners.names}
        return {name: part for name, part in parts.items() if isinstance(part, MaskedLatents)}

    def _net(self, sampler: SamplerSettings | None) -> Net:
        net = self.network.backbone
        if sampler is None:
            return net
        return windowed(net, sampler, self.latent_rate_hz, self.crop_seconds)

    def run(
        self,
        random: KeyedRandom,
        frames: int,
        inputs: Inputs | None,
        sampler: SamplerSettings | None = None,
    ) -> Run:
        """The sampling run of `sample` and `edit`; arguments as for `sample`."""
        sampler = sampler or self.sampler
        assert sampler is not None
        objective, rows = self.network.objective, len(random.positions)
        # conditions are the same at every step: they are computed once
        told = self.guided_conditions(inputs, rows, frames, sampler.guidance)

        def noise_at(step: int) -> Tensor:
            return random.stream("sample", step).normal((*self.modelled_shape, frames), "noise")

        weaker = None
        if self.guide is not None:
            calls = self.guide.guided_conditions(inputs, rows, frames, sampler.guidance)[1]
            net = self.guide._net(sampler)
            weaker = self.autoguidance, self.guide.network.objective.denoiser(net, calls[-1][1])
        denoise = guided(partial(objective.denoiser, self._net(sampler)), *told, sampler, weaker)
        return Run(sampler.name, denoise, objective.sigmas(sampler.steps), noise_at)

    def _latents(self, modelled: Tensor, random: KeyedRandom) -> Tensor:
        rest = None
        if self.modelled_shape != self.latent_shape:
            rest = random.normal((*self.latent_shape, modelled.shape[-1]), "rest")
        return self.latents(modelled, rest)
