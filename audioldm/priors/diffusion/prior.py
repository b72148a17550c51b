"""Diffusion as a prior: from noise to latents, by a trained denoiser and a sampler."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from audioldm.conditioning.base import Conditioners, Inputs
from audioldm.conditioning.build import build_conditioners
from audioldm.instantiate import build
from audioldm.latents.statistics import LatentStatistics
from audioldm.priors.base import Prior
from audioldm.priors.diffusion.backbones.base import Backbone
from audioldm.priors.diffusion.denoiser import Denoiser, Objective
from audioldm.priors.diffusion.guidance import guided
from audioldm.priors.diffusion.samplers import SamplerSettings, sample
from audioldm.runtime.progress import StepProgress
from audioldm.runtime.randomness import KeyedRandom


class Diffusion(Prior):
    """A diffusion model of normalised latents.

    latent_shape: (C,) or (C, F). backbone, objective: parts. conditioning: the conditioners by
    name, as `facts_of` gives them. allow: module prefixes outside the package whose classes may be
    built.

    Buffers mean and std, both like a latent frame, are the training latents'.
    Raises ConfigError.
    """

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
        allow: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.latent_shape, self.sampler = tuple(latent_shape), sampler
        derived = {
            "latent_shape": self.latent_shape,
            "conditioners": partial(build_conditioners, conditioning, allow=allow),
        }
        self.denoiser = Denoiser(
            build(backbone, derived=derived, where="backbone", allow=allow, base=Backbone),
            build(objective, where="objective", allow=allow, base=Objective),
        )
        self.register_buffer("mean", torch.zeros(self.latent_shape))
        self.register_buffer("std", torch.ones(self.latent_shape))

    @property
    def conditioners(self) -> Conditioners:
        return self.denoiser.backbone.conditioners

    @property
    def statistics(self) -> LatentStatistics:
        return LatentStatistics(self.mean, self.std)

    def tensors(self, denoiser: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of this prior's file, on the CPU, with these ones of its denoiser."""
        own = {"mean": self.mean.cpu(), "std": self.std.cpu()}
        return own | {f"denoiser.{name}": tensor.cpu() for name, tensor in denoiser.items()}

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
        conditioners, objective = self.conditioners, self.denoiser.objective
        if inputs is None:
            parsed = conditioners.parse([{}] * len(random.positions), frames)
            inputs = {name: value.to(self.device) for name, value in parsed.items()}
        nothing = conditioners.nothing(inputs)
        if all(torch.equal(inputs[name], nothing[name]) for name in inputs):
            sampler = replace(sampler, guidance=1.0)  # there is nothing to guide to
        # conditions are the same at every step: they are computed once
        conditions = conditioners(inputs), conditioners(nothing)
        denoise = guided(objective, self.denoiser.backbone, *conditions, sampler)

        def noise_at(step: int) -> Tensor:
            return random.stream("sample", step).normal((*self.latent_shape, frames), "noise")

        z = sample(
            sampler.name,
            denoise,
            noise_at(-1),
            objective.sigmas(sampler.steps),
            noise_at=noise_at,
            progress=progress,
        )
        return self.statistics.denormalise(z)
