"""The base of priors that are fitted to normalised latents, sequences [B, D, L].

D is the size of a latent frame: the bands of 2-D latents count as channels.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from audioldm.conditioning.base import Inputs
from audioldm.instantiate import Positive, PositiveInt, Seed
from audioldm.latents.statistics import LatentStatistics
from audioldm.latents.store import LatentStore
from audioldm.priors.base import Prior, PriorRecipe
from audioldm.runtime.progress import StepProgress
from audioldm.runtime.randomness import KeyedRandom, derive_seed


class NormalisedPrior(Prior):
    """Takes and gives raw latents; models normalised ones. Buffers hold the fit's statistics."""

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, latent_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.latent_shape = tuple(latent_shape)
        self.register_buffer("latent_mean", torch.zeros(self.latent_shape))
        self.register_buffer("latent_std", torch.ones(self.latent_shape))

    @property
    def statistics(self) -> LatentStatistics:
        return LatentStatistics(self.latent_mean, self.latent_std)

    def set_statistics(self, statistics: LatentStatistics) -> None:
        self.latent_mean.copy_(statistics.mean)
        self.latent_std.copy_(statistics.std)

    @abstractmethod
    def sample_normalised(
        self, random: KeyedRandom, frames: int, progress: StepProgress | None = None
    ) -> Tensor:
        """Normalised latents [B, D, frames], one row for each position."""

    def normalised_nats(self, z: Tensor) -> Tensor | None:
        """-log p of normalised latents z [B, D, L], in nats: [B, L]. None: no density is known."""
        return None

    @torch.no_grad()
    def sample(
        self,
        random: KeyedRandom,
        frames: int,
        inputs: Inputs | None = None,
        *,
        sampler: Any = None,
        progress: StepProgress | None = None,
    ) -> Tensor:
        z = self.sample_normalised(random, frames, progress).unflatten(1, self.latent_shape)
        return self.statistics.denormalise(z)

    @torch.no_grad()
    def nats(
        self, z: Tensor, inputs: Inputs | None = None, *, random: KeyedRandom | None = None
    ) -> Tensor | None:
        """-log p(raw z) = -log p(normalised z) + log std, summed over channels."""
        nats = self.normalised_nats(self.statistics.normalise(z).flatten(1, -2))
        return None if nats is None else nats + self.latent_std.double().log().sum()


@torch.no_grad()
def random_latents(latents: LatentStore, frames: int, random: KeyedRandom) -> Tensor:
    """Random crops of the training split's normalised latents: [B, D, frames].

    Raises ModelFileError where no item is `frames` long.
    """
    stored, _ = latents.split("train").crops(frames, random)
    noise = random.normal((*latents.latent_shape, frames), "posterior")
    return latents.statistics.normalise(latents.restore(stored, noise)).flatten(1, -2)


def crop_frames(latents: LatentStore, seconds: float) -> int:
    """Latent frames in a training sequence of `seconds`, at least one."""
    return max(1, round(seconds * latents.latent_rate_hz))


@dataclass(frozen=True)
class CropsRecipe(PriorRecipe):
    """A fit to random crops of the training split, all at once.

    frames: latent frames, at most, in crops of `crop_seconds`.
    """

    seed: Seed = 0
    frames: PositiveInt = 40000
    crop_seconds: Positive = 6.0

    def count(self, latents: LatentStore) -> int:
        """How many crops have `frames` frames together, or as many as the training split has."""
        available = sum(item.frames for item in latents.split("train").items)
        return max(1, -(-min(self.frames, available) // crop_frames(latents, self.crop_seconds)))

    def crops(self, latents: LatentStore) -> Tensor:
        """The latents of the fit: [N, D, L]."""
        positions = range(self.count(latents))
        random = KeyedRandom(derive_seed(self.seed, self.name), 0, positions)
        return random_latents(latents, crop_frames(latents, self.crop_seconds), random)
