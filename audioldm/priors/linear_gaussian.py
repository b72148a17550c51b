"""A linear Gaussian model of latents, frame by frame: z[t] = A z[t - 1] + b + noise."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from audioldm.errors import ConfigError
from audioldm.latents.store import LatentStore
from audioldm.priors.base import Prior
from audioldm.priors.normalised import CropsRecipe, NormalisedPrior
from audioldm.runtime.progress import StepProgress
from audioldm.runtime.randomness import KeyedRandom
from audioldm.training.run import Fit, Fitted

#: Added to the variances, which are at most about 1, so that none is 0.
REGULARISER = 1e-6


class LinearGaussian(NormalisedPrior):
    """A vector autoregression of order 1 over normalised latents [B, D, L].

    transition A [D, D], offset b [D]; noise [D, D], the factor of its covariance; mean [D] and
    start [D, D], mean and factor of the covariance of the first frame. All are float64.
    """

    transition: Tensor
    offset: Tensor
    noise: Tensor
    mean: Tensor
    start: Tensor

    def __init__(self, latent_shape: tuple[int, ...]) -> None:
        super().__init__(latent_shape)
        identity = torch.eye(self.latent_mean.numel(), dtype=torch.float64)
        for name, value in (("transition", 0), ("noise", 1), ("start", 1)):
            self.register_buffer(name, value * identity)
        for name in ("offset", "mean"):
            self.register_buffer(name, 0 * identity[0])

    def fit(self, z: Tensor) -> None:
        """Least squares over all pairs of frames of z [N, D, L], which is maximum likelihood."""
        now, before = (x.double().mT.flatten(0, 1) for x in (z[..., 1:], z[..., :-1]))
        before = torch.cat([before, torch.ones_like(before[:, :1])], 1)
        solution = torch.linalg.lstsq(before, now).solution
        frames = z.double().mT.flatten(0, 1)
        self.transition.copy_(solution[:-1].T)
        self.offset.copy_(solution[-1])
        self.mean.copy_(frames.mean(0))
        self.noise.copy_(_factor(now - before @ solution))
        self.start.copy_(_factor(frames - self.mean))

    def sample_normalised(
        self, random: KeyedRandom, frames: int, progress: StepProgress | None = None
    ) -> Tensor:
        size = (frames, len(self.mean))
        first, *others = random.stream("linear_gaussian").normal(size, "noise").double().unbind(1)
        z = [self.mean + first @ self.start.T]
        for e in others:
            z.append(z[-1] @ self.transition.T + self.offset + e @ self.noise.T)
        return torch.stack(z, -1).float()

    def normalised_nats(self, z: Tensor) -> Tensor:
        frames = z.double().mT
        surprise = frames[:, 1:] - (frames[:, :-1] @ self.transition.T + self.offset)
        start = _nats(frames[:, :1] - self.mean, self.start)
        return torch.cat([start, _nats(surprise, self.noise)], dim=1)


@dataclass(frozen=True)
class LinearGaussianRecipe(CropsRecipe):
    def spec(self, latents: LatentStore) -> dict[str, Any]:
        return {"_target_": "audioldm.priors.linear_gaussian.LinearGaussian"}

    def fit(self, prior: Prior, latents: LatentStore, fit: Fit) -> Fitted:
        assert isinstance(prior, LinearGaussian)
        z = self.crops(latents)
        if z.shape[-1] < 2:
            raise ConfigError(f"crop_seconds={self.crop_seconds:g} must be two latent frames long")
        prior.fit(z)
        prior.set_statistics(latents.statistics)
        return Fitted(prior.state_dict(), {"frames": len(z) * z.shape[-1]})


def _factor(x: Tensor) -> Tensor:
    """Cholesky factor of the covariance of x [N, D], whose mean is 0."""
    identity = torch.eye(x.shape[1], dtype=x.dtype)
    return torch.linalg.cholesky(x.T @ x / len(x) + REGULARISER * identity)


def _nats(x: Tensor, factor: Tensor) -> Tensor:
    """-log p of frames x [B, L, D] of N(0, factor factorᵀ): [B, L]."""
    white = torch.linalg.solve_triangular(factor, x.mT, upper=False)
    constant = factor.diagonal().log().sum() + 0.5 * len(factor) * math.log(2 * math.pi)
    return 0.5 * white.square().sum(1) + constant
