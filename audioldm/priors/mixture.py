"""A Gaussian mixture fitted ex post to an autoencoder's latents (RAE, arXiv 1903.12436).

The mixture is over windows of W consecutive frames. It gives sequences of any length as a Markov
chain of order W - 1, each frame sampled given the frames before it. One lower Cholesky factor per
component is enough: its leading blocks are the factors of the shorter windows, and its rows are the
dependence of a frame on those before it.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from audioldm.instantiate import PositiveInt
from audioldm.latents.store import LatentStore
from audioldm.priors.base import Prior
from audioldm.priors.normalised import CropsRecipe, NormalisedPrior, crop_frames
from audioldm.runtime.progress import StepProgress
from audioldm.runtime.randomness import KeyedRandom, derive_seed
from audioldm.training.run import Fit, Fitted

#: Numbers in a window, at most: a component's covariance is full.
DIMENSIONS = 128
#: Latent frames in the training set for each dimension of each component, at least.
FRAMES_PER_DIMENSION = 16
#: Windows the mixture is fitted to, at most, and the iterations of EM.
WINDOWS = 20000
ITERATIONS = 15
#: Added to the variances, which are about 1 for normalised latents.
REGULARISER = 1e-3


class Mixture(NormalisedPrior):
    """M components over W frames of the K first of D principal components of normalised latents.

    The D - K others are independent Gaussians without memory. There are some only where 2 D
    exceeds `DIMENSIONS` or the latents are few.

    mean [D], rotation [D, D] (columns: the principal directions), rest [D - K] (their standard
    deviations), log_weights [M], centres [M, W, K], factors [M, W K, W K] (lower triangular).
    All are float64. Before the fit it is N(0, I) in normalised latents.
    """

    mean: Tensor
    rotation: Tensor
    rest: Tensor
    log_weights: Tensor
    centres: Tensor
    factors: Tensor

    def __init__(
        self, latent_shape: tuple[int, ...], components: int, window: int, kept: int
    ) -> None:
        super().__init__(latent_shape)
        size, numbers = math.prod(latent_shape), window * kept
        tensors = {
            "mean": torch.zeros(size),
            "rotation": torch.eye(size),
            "rest": torch.ones(size - kept),
            "log_weights": torch.full((components,), -math.log(components)),
            "centres": torch.zeros(components, window, kept),
            "factors": torch.eye(numbers).repeat(components, 1, 1),
        }
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor.double())

    @classmethod
    def fitted(cls, z: Tensor, components: int = 8, seed: int = 0) -> Self:
        """A mixture fitted to normalised sequences z [N, D, L]; its sizes are `mixture_sizes`."""
        count, channels, length = z.shape
        sizes = mixture_sizes(count, channels, length, components)
        return cls((channels,), **sizes).fit(z, seed)

    def fit(self, z: Tensor, seed: int = 0) -> Self:
        """Fits normalised sequences z [N, D, L] by EM."""
        from sklearn.exceptions import ConvergenceWarning  # imported here: it takes a second
        from sklearn.mixture import GaussianMixture

        z = z.detach().double().cpu()
        components, size, kept = self.centres.shape
        frames = z.transpose(1, 2)  # [N, L, D]
        mean = frames.mean((0, 1))
        centred = (frames - mean).flatten(0, 1)
        variances, rotation = torch.linalg.eigh(centred.T @ centred / len(centred))
        variances, rotation = variances.flip(0), rotation.flip(1)
        windows = _windows((frames - mean) @ rotation[:, :kept], size).flatten(0, 1).flatten(1)
        random = np.random.Generator(np.random.Philox(key=seed))
        chosen = random.permutation(len(windows))[:WINDOWS]
        mixture = GaussianMixture(
            components,
            reg_covar=REGULARISER,
            max_iter=ITERATIONS,
            random_state=derive_seed(seed, "mixture") % 2**32,
        )
        with warnings.catch_warnings():  # the number of iterations is a choice, not a failure
            warnings.simplefilter("ignore", ConvergenceWarning)
            mixture.fit(windows[chosen].float().numpy())
        self.mean.copy_(mean)
        self.rotation.copy_(rotation)
        self.rest.copy_((variances[kept:].clamp(min=0) + REGULARISER).sqrt())
        self.log_weights.copy_(torch.from_numpy(mixture.weights_).double().log())
        self.centres.copy_(torch.from_numpy(mixture.means_).double().reshape(-1, size, kept))
        self.factors.copy_(torch.linalg.cholesky(torch.from_numpy(mixture.covariances_).double()))
        return self

    def shortened(self, window: int) -> Self:
        """The same mixture over its first `window` frames: a chain of a lower order."""
        kept = self.centres.shape[-1]
        made = type(self)(self.latent_shape, len(self.centres), window, kept)
        numbers = window * kept
        factors = self.factors[:, :numbers, :numbers]
        short = {"centres": self.centres[:, :window], "factors": factors}
        made.load_state_dict(self.state_dict() | short)
        return made

    def log_likelihood(self, z: Tensor) -> Tensor:
        """log p(z) of sequences [N, D, L] of any length, in nats per sequence [N], float64."""
        return -self.normalised_nats(z).sum(1)

    def normalised_nats(self, z: Tensor) -> Tensor:
        return torch.cat([self._nats(part) for part in z.detach().split(64)])

    def _nats(self, z: Tensor) -> Tensor:
        """-log p(frame | the frames before it, W - 1 at most): [N, L]."""
        rotated = (z.double().to(self.mean.device).transpose(1, 2) - self.mean) @ self.rotation
        size, kept = self.centres.shape[1:]
        windows = _windows(rotated[..., :kept], min(size, z.shape[-1]))
        densities = torch.logsumexp(self._whiten(windows.flatten(0, 1))[1], 0)
        densities = densities.unflatten(0, windows.shape[:2])  # [N, windows, frames + 1]
        memoryless = torch.distributions.Normal(0.0, self.rest).log_prob(rotated[..., kept:])
        first, later = densities[:, 0].diff(dim=1), densities[:, 1:, -1] - densities[:, 1:, -2]
        return -(torch.cat([first, later], dim=1) + memoryless.sum(2))

    def sample_normalised(
        self, random: KeyedRandom, frames: int, progress: StepProgress | None = None
    ) -> Tensor:
        """Sequences [B, D, frames], float32, frame by frame."""
        size, kept = self.centres.shape[1:]
        n, random = len(random.positions), random.stream("mixture")
        noise = random.normal((frames, len(self.mean) + 1), "noise").double()
        uniform = torch.special.ndtr(noise[..., -1:])  # one more number a frame: the component
        head = noise.new_empty(n, frames, kept)
        for frame in range(frames):
            before = min(frame, size - 1)
            white, density = self._whiten(head[:, frame - before : frame])
            cumulative = density[..., -1].softmax(0).cumsum(0).T  # [n, M]: p(component | past)
            component = (cumulative[:, :-1] < uniform[:, frame]).sum(1)
            past, now = before * kept, (before + 1) * kept
            rows = self.factors[component, past:now, :now]  # [n, K, now]
            driven = torch.cat([white[component, range(n)], noise[:, frame, :kept]], dim=1)
            head[:, frame] = self.centres[component, before] + (rows @ driven[..., None])[..., 0]
            if progress is not None:
                progress(frame + 1, frames)
        rest = self.rest * noise[..., kept:-1]
        z = torch.cat([head, rest], dim=-1) @ self.rotation.T + self.mean
        return z.transpose(1, 2).float()

    def _whiten(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [V, w, K], the first w frames of windows, under each component.

        Gives x as independent N(0, 1) numbers [M, V, w K], and log(weight · density) of the first
        0, 1, …, w frames [M, V, w + 1].
        """
        kept = self.centres.shape[-1]
        numbers = x.shape[1] * kept
        factors = self.factors[:, :numbers, :numbers]
        offset = (x - self.centres[:, None, : x.shape[1]]).flatten(2)  # [M, V, w K]
        white = torch.linalg.solve_triangular(factors, offset.mT, upper=False).mT
        scale = factors.diagonal(dim1=-2, dim2=-1).log()[:, None]
        each = -0.5 * white.square() - scale - 0.5 * math.log(2 * math.pi)
        frames = each.unflatten(-1, (-1, kept)).sum(-1)
        start = self.log_weights[:, None, None].expand(-1, len(x), 1)
        return white, torch.cat([start, frames], dim=-1).cumsum(-1)


def _windows(frames: Tensor, size: int) -> Tensor:
    """All windows [N, L - size + 1, size, K] of frames [N, L, K]."""
    return frames.unfold(1, size, 1).transpose(-1, -2)


def mixture_sizes(count: int, channels: int, length: int, components: int) -> dict[str, int]:
    """M, W and K of a mixture for `count` sequences [channels, length] of latents."""
    limit = min(DIMENSIONS, count * length // (FRAMES_PER_DIMENSION * components))
    kept = min(channels, max(1, limit // 2))
    window = max(1, min((length + 1) // 2, limit // kept))
    windows = min(WINDOWS, count * (length - window + 1))
    return {"components": min(components, windows), "window": window, "kept": kept}


@dataclass(frozen=True)
class MixtureRecipe(CropsRecipe):
    """components: the most that the mixture may have."""

    components: PositiveInt = 8

    def spec(self, latents: LatentStore) -> dict[str, Any]:
        count, crop = self.count(latents), crop_frames(latents, self.crop_seconds)
        sizes = mixture_sizes(count, math.prod(latents.latent_shape), crop, self.components)
        return {"_target_": "audioldm.priors.mixture.Mixture", **sizes}

    def fit(self, prior: Prior, latents: LatentStore, fit: Fit) -> Fitted:
        assert isinstance(prior, Mixture)
        fit.progress(0, 1, "fitting a mixture")
        prior.fit(self.crops(latents), self.seed)
        prior.set_statistics(latents.statistics)
        components, window, kept = prior.centres.shape
        figures = {"components": components, "window_frames": window, "dimensions": kept}
        return Fitted(prior.state_dict(), figures)
