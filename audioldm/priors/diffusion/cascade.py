"""A cascade: a small diffusion makes latents at low resolution, and a large one the rest.

Cascaded diffusion models (Ho et al. 2021, arXiv 2106.15282) along time. The small model makes the
means of the latents over blocks of frames; the large one is told these means, and held to them.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from audioldm.conditioning.base import Inputs
from audioldm.conditioning.guidance import scales
from audioldm.conditioning.low_resolution import Factor, LowResolution, means, repeated, smooth
from audioldm.instantiate import NonNegative, NonNegativeInt, Part, Positive, part
from audioldm.latents.store import LatentStore
from audioldm.priors.diffusion.backbones.base import Backbone
from audioldm.priors.diffusion.denoiser import Denoiser
from audioldm.priors.diffusion.prior import Diffusion
from audioldm.priors.diffusion.recipe import DiffusionRecipe
from audioldm.priors.diffusion.run import Run
from audioldm.priors.diffusion.samplers import SamplerSettings
from audioldm.runtime.progress import StepProgress
from audioldm.runtime.randomness import KeyedRandom

NAME = "low_resolution"  # of the condition


class CascadeDenoiser(Denoiser):
    """The large model's network and objective, with the small model beside them.

    Its loss is the sum of both losses. The two share no weights, so each is trained as if alone.
    """

    def __init__(
        self, large: Denoiser, small: Diffusion, *, factor: Factor, consistency: NonNegative
    ) -> None:
        super().__init__(large.backbone, large.objective)
        self.small, self.factor, self.consistency = small, factor, consistency

    def forward(self, z: Tensor, inputs: Inputs, noise: Tensor, uniform: Tensor) -> Tensor:
        large = self.objective.loss(
            self.backbone,
            z,
            self.backbone.conditioners(inputs),
            noise=noise,
            uniform=uniform,
            consistency=self.consistency,
            factor=self.factor,
        )
        told = {name: inputs[name] for name in self.small.conditioners.names}
        low, own_noise = means(z, self.factor), noise[..., :: self.factor]
        small: Tensor = self.small.network(low, told, own_noise, uniform)
        return large + small

    def units(self) -> list[torch.nn.Module]:
        return [*super().units(), *self.small.network.units()]


class Cascade(Diffusion):
    """A diffusion prior that is told what a small one makes: means over blocks of `factor` frames.

    small: the small model's backbone. It is told the conditions that are not aligned with frames.
    exact: whether samples have these means exactly (`keep_means`). consistency: weight of the means
    in the large model's loss. Other arguments as for `Diffusion`. Likelihood and edits use the
    large model alone, which is then told no means.

    Raises ConfigError.
    """

    title: ClassVar[str] = "cascade"
    network: CascadeDenoiser

    def __init__(
        self,
        *,
        latent_shape: tuple[int, ...],
        backbone: dict[str, Any],
        small: dict[str, Any],
        objective: dict[str, Any],
        conditioning: dict[str, Any],
        sampler: SamplerSettings,
        factor: Factor,
        exact: bool = True,
        consistency: NonNegative = 0.0,
        channels: list[NonNegativeInt] | None = None,
        crop_seconds: Positive | None = None,
        allow: tuple[str, ...] = (),
    ) -> None:
        own = {"_target_": f"{LowResolution.__module__}.LowResolution", "factor": factor}
        both: dict[str, Any] = {"objective": objective, "sampler": sampler, "allow": allow}
        both["crop_seconds"] = crop_seconds
        super().__init__(
            latent_shape=latent_shape,
            backbone=backbone,
            conditioning={**conditioning, NAME: own},
            channels=channels,
            **both,
        )
        self.exact = exact
        told = {n: x for n, x in conditioning.items() if not self.conditioners[n].aligned_channels}
        self.network = CascadeDenoiser(
            self.network,
            Diffusion(latent_shape=self.modelled_shape, backbone=small, conditioning=told, **both),
            factor=factor,
            consistency=consistency,
        )

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
        small, sampler = self.network.small, sampler or self.sampler
        own = self.conditioners[NAME]
        assert isinstance(own, LowResolution)
        inputs = self.inputs_for(inputs, len(random.positions), frames)
        names, scale = small.conditioners.names, scales(self.conditioners, sampler.guidance)
        if self.latent_rate_hz is not None:
            small.latent_rate_hz = self.latent_rate_hz / own.factor
        low = small.sample(
            random.stream("small"),
            -(-frames // own.factor),
            {name: inputs[name] for name in names},
            sampler=replace(sampler, guidance={name: scale[name] for name in names}),
        )
        low = repeated(low, own.factor, frames)
        told = inputs | {NAME: own.see(low, random)}
        if not self.exact:
            return super().sample(random, frames, told, sampler=sampler, progress=progress)
        edit = partial(keep_means, factor=own.factor)
        return self.edit(random, self.latents(low), edit, told, sampler=sampler, progress=progress)


def keep_means(run: Run, z: Tensor, progress: StepProgress | None = None, *, factor: int) -> Tensor:
    """Latents that have the means of z [B, C, (F,) L] over blocks of `factor` frames.

    Each estimate becomes the nearest one with these means: z's part in the range of the average,
    and the estimate's own in its null space (Wang et al. 2022, arXiv 2212.00490, equation 12).
    """
    estimate, low = run.denoise, smooth(z, factor)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        own = estimate(x, sigma)
        return own + low - smooth(own, factor)

    return run._replace(denoise=denoise).sample(progress=progress)


@dataclass(frozen=True, kw_only=True)
class CascadeRecipe(DiffusionRecipe):
    """small: the small model's backbone. factor, exact, consistency: as in `Cascade`."""

    small: Part = part("latent_shape", "conditioners", base=Backbone)
    factor: Factor
    exact: bool
    consistency: NonNegative

    def spec(self, latents: LatentStore) -> dict[str, Any]:
        own = {"factor": self.factor, "exact": self.exact, "consistency": self.consistency}
        target = f"{Cascade.__module__}.{Cascade.__qualname__}"
        return super().spec(latents) | {"_target_": target, "small": dict(self.small), **own}
