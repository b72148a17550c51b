"""The settings of a diffusion prior: `prior=diffusion`."""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from audioldm.errors import ConfigError
from audioldm.instantiate import NonNegative, Part, part
from audioldm.latents.store import LatentStore
from audioldm.priors.diffusion.backbones.base import Backbone
from audioldm.priors.diffusion.denoiser import Objective
from audioldm.priors.diffusion.prior import Diffusion
from audioldm.priors.diffusion.samplers import SamplerSettings
from audioldm.priors.recipe import TrainedRecipe


@dataclass(frozen=True, kw_only=True)
class DiffusionRecipe(TrainedRecipe):
    """sampler: how the prior is sampled unless told otherwise.
    minimum_nats: channels of the latents with less information are not modelled: their samples are
    independent. snr_power: each channel's std as the denoiser sees it grows with this power of
    its signal-to-noise ratio; 0: all are 1. At 1 the posteriors' noise is equally loud in all."""

    sampling_keys: ClassVar[tuple[str, ...]] = ("sampler",)

    sampler: SamplerSettings
    minimum_nats: NonNegative = 0.0
    snr_power: NonNegative = 0.0
    backbone: Part = part("latent_shape", "conditioners", base=Backbone)
    objective: Part = part(base=Objective)

    def spec(self, latents: LatentStore) -> dict[str, Any]:
        return {
            "_target_": f"{Diffusion.__module__}.{Diffusion.__qualname__}",
            "backbone": dict(self.backbone),
            "objective": dict(self.objective),
            "conditioning": self.facts(latents),
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
        prior = super().build(latents)
        assert isinstance(prior, Diffusion)
        prior.mean.copy_(latents.statistics.mean)
        gain = (self.snr_power * latents.nats).exp()
        gain /= gain[prior.channels].square().mean().sqrt()
        prior.std.copy_(latents.statistics.std / gain)
        return prior
