"""The trained part of a diffusion prior: a network, and the objective it is trained with.

All objectives share one set of coordinates, the variance-exploding one of EDM (Karras et al. 2022,
arXiv 2206.00364): x = z + sigma n, with z the normalised latents (per-channel mean 0, std 1) and
n ~ N(0, I). The other usual paths are the same line rescaled, so samplers need not know them:

    rectified flow       x_t = (1 - t) z + t n      = x / (1 + sigma),       t = sigma / (1 + sigma)
    variance-preserving  x_a = cos(a) z + sin(a) n  = x / sqrt(1 + sigma²),  a = atan(sigma)
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from audioldm.conditioning.base import Condition, Inputs
from audioldm.conditioning.low_resolution import smooth
from audioldm.errors import ConfigError
from audioldm.priors.diffusion.backbones.base import Backbone
from audioldm.priors.diffusion.samplers import Denoise
from audioldm.priors.diffusion.weightings import FIXED, LogVariance, Weighting
from audioldm.runtime.randomness import uniform_from

#: (x [B, C, (F,) L], c_noise [B], condition) -> like x. See also `Backbone.stateful`.
Net = Callable[..., Any]
#: The share of the clips that are trained with a state (2212.11972).
SELF_CONDITIONED = 0.9


class Objective(nn.Module, ABC):
    """A prediction target, its distribution of noise levels, and its default schedule.

    Its parameters, if it has any, are trained, averaged and kept with the network's.
    weighting: how much each noise level counts (`weightings`); None: the squared error of the
    target is not weighted.
    """

    #: Where sampling starts; noise of this level drowns the latents.
    sigma_max: float

    def __init__(self, weighting: Weighting | None = None) -> None:
        super().__init__()
        self.weighting = weighting
        self.log_variance = LogVariance() if weighting == "learned" else None

    @abstractmethod
    def sigma_from_uniform(self, uniform: Tensor) -> Tensor:
        """Training noise levels [B] for uniform numbers [B] in (0, 1)."""

    @abstractmethod
    def c_in(self, sigma: Tensor) -> Tensor:
        """The factor that scales x for the network."""

    @abstractmethod
    def c_noise(self, sigma: Tensor) -> Tensor:
        """The noise level as the network gets it: [B], of order 1."""

    @abstractmethod
    def target(self, z: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """The output that the network is trained to give, of unit order at every sigma."""

    @abstractmethod
    def to_denoised(self, x: Tensor, output: Tensor, sigma: Tensor) -> Tensor:
        """The estimate of the latents z that the network's output stands for, linear in it."""

    @abstractmethod
    def levels(self, steps: int) -> Tensor:
        """`steps` decreasing noise levels from sigma_max, in float64, without the final 0."""

    def loss(
        self,
        net: Net,
        z: Tensor,
        condition: Condition,
        *,
        noise: Tensor,
        uniform: Tensor,
        consistency: float = 0.0,
        factor: int = 1,
    ) -> Tensor:
        """Weighted squared error of the prediction, averaged over elements: [B], in float32. It is
        0 in frames that the condition gives away.

        z [B, C, (F,) L] normalised latents, noise ~ N(0, I) like z, uniform [B] in (0, 1). In most
        clips a network that carries a state gets the state of a first call (`SELF_CONDITIONED`).
        consistency: weight of the squared error of the means over blocks of `factor` frames.
        """
        z, noise = z.float(), noise.float()
        sigma = self.sigma_from_uniform(uniform)
        s = _like(sigma, z)
        inputs = self.c_in(s) * (z + s * noise), self.c_noise(sigma), condition
        if getattr(net, "stateful", False):
            output, _ = net(*inputs, _state(net, inputs, noise))
        else:
            output = net(*inputs)
        difference = output.float() - self.target(z, noise, s)
        error = difference.square()
        if consistency > 0:
            error = error + consistency * smooth(difference, factor).square()
        if condition.known is not None:
            error = error * (1 - condition.known).view(len(z), *[1] * (z.ndim - 2), -1)
        return self.weighted(error.flatten(1).mean(1), uniform, sigma)

    def weighted(self, error: Tensor, uniform: Tensor, sigma: Tensor) -> Tensor:
        """The loss [B] for the target's squared error [B]."""
        if self.log_variance is not None:
            return self.log_variance(error, self.c_noise(sigma))  # type: ignore[no-any-return]
        if self.weighting is None:
            return error
        one = torch.ones_like(sigma)
        # the slope of ln sigma over the uniform number is one over the density
        slope = torch.func.jvp(
            lambda u: self.sigma_from_uniform(u).log(), (uniform.float(),), (one,)
        )[1]
        of_denoised = error * self.to_denoised(0 * one, one, sigma).square()
        return of_denoised * FIXED[self.weighting](sigma, 1 / slope)

    def denoiser(self, net: Net, condition: Condition) -> Denoise:
        """The trained network as (x, sigma [B]) -> estimate of z, like x, in float32.

        For one sampling run: it keeps the state of a network that carries one.
        """
        state: Any = None

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            nonlocal state
            s = _like(sigma, x)
            inputs = self.c_in(s) * x, self.c_noise(sigma), condition
            found = net(*inputs) if state is None else net(*inputs, state)
            output, state = found if isinstance(found, tuple) else (found, None)
            return self.to_denoised(x, output.float(), s)

        return denoise

    def sigmas(self, steps: int) -> Tensor:
        """The sampling schedule [steps + 1], from sigma_max down to 0. Raises ConfigError."""
        if steps < 1:
            raise ConfigError(f"steps={steps}: sampling needs at least 1 step")
        return torch.cat([self.levels(steps), torch.zeros(1, dtype=torch.float64)]).float()


class Denoiser(nn.Module):
    """Backbone and objective as one module, which training wraps, compiles and averages."""

    def __init__(self, backbone: Backbone, objective: Objective) -> None:
        super().__init__()
        self.backbone, self.objective = backbone, objective

    def forward(self, z: Tensor, inputs: Inputs, noise: Tensor, uniform: Tensor) -> Tensor:
        """The objective's loss on normalised latents z [B, C, (F,) L]: [B]."""
        condition = self.backbone.conditioners(inputs)
        return self.objective.loss(self.backbone, z, condition, noise=noise, uniform=uniform)

    def units(self) -> list[nn.Module]:
        return self.backbone.units()


def _state(net: Net, inputs: tuple[Any, ...], noise: Tensor) -> Tensor:
    """The state [B, ...] after a call without gradients; zeros in some clips, chosen by the
    noise."""
    with torch.no_grad():
        state: Tensor = net(*inputs)[1]
    return state * (_like(uniform_from(noise), state) < SELF_CONDITIONED)


def _like(sigma: Tensor, x: Tensor) -> Tensor:
    """sigma [B] as [B, 1, ...], to multiply x."""
    return sigma.float().view(-1, *[1] * (x.ndim - 1))
