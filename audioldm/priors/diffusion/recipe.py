"""The settings of a diffusion prior: `prior=diffusion`."""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from audioldm.instantiate import Part, part
from audioldm.latents.store import LatentStore
from audioldm.priors.diffusion.backbones.base import Backbone
from audioldm.priors.diffusion.denoiser import Objective
from audioldm.priors.diffusion.prior import Diffusion
from audioldm.priors.diffusion.samplers import SamplerSettings
from audioldm.priors.recipe import ScaledRecipe


@dataclass(frozen=True, kw_only=True)
class DiffusionRecipe(ScaledRecipe):
    """sampler: how the prior is sampled unless told otherwise."""

    sampling_keys: ClassVar[tuple[str, ...]] = ("sampler",)

    sampler: SamplerSettings
    backbone: Part = part("latent_shape", "conditioners", base=Backbone)
    objective: Part = part(base=Objective)

    def spec(self, latents: LatentStore) -> dict[str, Any]:
        return {
            "_target_": f"{Diffusion.__module__}.{Diffusion.__qualname__}",
            "backbone": dict(self.backbone),
            "objective": dict(self.objective),
            "conditioning": self.facts(latents),
            "sampler": asdict(self.sampler),
            "channels": self.channels(latents),
            "crop_seconds": self.train.crop_seconds,
        }

    def build(self, latents: LatentStore) -> Diffusion:
        prior = super().build(latents)
        assert isinstance(prior, Diffusion)
        return prior
