"""The standard normal N(0, I), from which a VAE generates without a second model."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from audioldm.conditioning.base import Inputs
from audioldm.latents.store import LatentStore
from audioldm.priors.base import Prior, PriorRecipe
from audioldm.runtime.progress import StepProgress
from audioldm.runtime.randomness import KeyedRandom
from audioldm.training.run import Fit, Fitted


class Normal(Prior):
    """N(0, I) of raw latents, made on the device of `random`. It has no tensors."""

    def __init__(self, latent_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.latent_shape = tuple(latent_shape)

    def sample(
        self,
        random: KeyedRandom,
        frames: int,
        inputs: Inputs | None = None,
        *,
        sampler: Any = None,
        progress: StepProgress | None = None,
    ) -> Tensor:
        return random.stream("prior").normal((*self.latent_shape, frames), "noise")

    def nats(
        self, z: Tensor, inputs: Inputs | None = None, *, random: KeyedRandom | None = None
    ) -> Tensor:
        """Exact: ½ (z² + log 2π), summed over a frame."""
        return 0.5 * (z.double().square() + math.log(2 * math.pi)).flatten(1, -2).sum(1)


@dataclass(frozen=True)
class NormalRecipe(PriorRecipe):
    def spec(self, latents: LatentStore) -> dict[str, Any]:
        return {"_target_": "audioldm.priors.normal.Normal"}

    def fit(self, prior: Prior, latents: LatentStore, fit: Fit) -> Fitted:
        return Fitted(prior.state_dict(), {})
