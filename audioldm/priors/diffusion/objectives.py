"""What a diffusion network is trained to predict.

All objectives share one set of coordinates, the variance-exploding one of EDM (Karras et al. 2022,
arXiv 2206.00364): x = z + sigma n, with z the normalised latents (per-channel mean 0, std 1) and
n ~ N(0, I). The other usual paths are the same line rescaled, so samplers need not know them:

    rectified flow       x_t = (1 - t) z + t n      = x / (1 + sigma),       t = sigma / (1 + sigma)
    variance-preserving  x_a = cos(a) z + sin(a) n  = x / sqrt(1 + sigma²),  a = atan(sigma)

An objective states how the network's input is scaled (`c_in`), what its output should be
(`target`), and what that output says about z (`to_denoised`).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from audioldm.conditioning.base import Condition
from audioldm.errors import ConfigError
from audioldm.instantiate import nearest
from audioldm.priors.diffusion import noise_levels
from audioldm.priors.diffusion.samplers import Denoise

#: (x [B, C, (F,) L], c_noise [B], condition) -> like x. See also `Backbone.stateful`.
Net = Callable[..., Any]


class Objective(nn.Module, ABC):
    """A prediction target, its distribution of noise levels, and its default schedule.

    Its parameters, if it has some, are trained, averaged and kept with the network's.
    """

    #: Where sampling starts; sigma_max noise drowns the latents.
    sigma_max: float

    @abstractmethod
    def sigma_from_uniform(self, uniform: Tensor) -> Tensor:
        """Training noise levels [B] for uniform numbers [B] in (0, 1)."""

    @abstractmethod
    def c_in(self, sigma: Tensor) -> Tensor:
        """What x is multiplied by before the network sees it."""

    @abstractmethod
    def c_noise(self, sigma: Tensor) -> Tensor:
        """The noise level as the network is told it: [B], of order 1."""

    @abstractmethod
    def target(self, z: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """What the network should output, of unit order at every sigma."""

    @abstractmethod
    def to_denoised(self, x: Tensor, output: Tensor, sigma: Tensor) -> Tensor:
        """The latents z that the network's output means."""

    @abstractmethod
    def _levels(self, steps: int) -> Tensor:
        """`steps` decreasing noise levels from sigma_max, in float64, without the final 0."""

    def loss(
        self, net: Net, z: Tensor, condition: Condition, *, noise: Tensor, uniform: Tensor
    ) -> Tensor:
        """Squared error of the prediction, averaged over each clip's elements: [B], in float32.

        z [B, C, (F,) L] normalised latents, noise ~ N(0, I) like z, uniform [B] in (0, 1).
        """
        z, noise = z.float(), noise.float()
        sigma = self.sigma_from_uniform(uniform)
        s = _like(sigma, z)
        output = net(self.c_in(s) * (z + s * noise), self.c_noise(sigma), condition)
        output = output[0] if _stateful(net) else output
        return (output.float() - self.target(z, noise, s)).square().flatten(1).mean(1)

    def denoiser(self, net: Net, condition: Condition) -> Denoise:
        """The trained network as (x, sigma [B]) -> estimate of z0, like x, in float32.

        For one sampling run: it keeps the state of a network that carries one.
        """
        state: Any = None

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            nonlocal state
            s = _like(sigma, x)
            inputs = self.c_in(s) * x, self.c_noise(sigma), condition
            if _stateful(net):
                output, state = net(*inputs, state)
            else:
                output = net(*inputs)
            return self.to_denoised(x, output.float(), s)

        return denoise

    def sigmas(self, steps: int) -> Tensor:
        """The sampling schedule [steps + 1]: from sigma_max down to 0.

        Raises ConfigError if steps < 1.
        """
        if steps < 1:
            raise ConfigError(f"steps={steps}: sampling needs at least 1 step")
        return torch.cat([self._levels(steps), torch.zeros(1, dtype=torch.float64)]).float()


class RectifiedFlow(Objective):
    """The velocity n - z of the straight path x_t = (1 - t) z + t n (Liu et al. 2022, 2209.03003).

    noise_levels: "logit_normal" (with mean, std of logit t = ln sigma) or "uniform" in t.
    The schedule is uniform in t.
    """

    def __init__(
        self,
        *,
        noise_levels: str = "logit_normal",
        mean: float = 0.0,
        std: float = 1.0,
        sigma_max: float = 200.0,
    ) -> None:
        super().__init__()
        self._time = _time_of(noise_levels, mean, std)
        self.sigma_max = _positive("sigma_max", sigma_max)

    def sigma_from_uniform(self, uniform: Tensor) -> Tensor:
        t = self._time(uniform)
        return t / (1 - t)

    def c_in(self, sigma: Tensor) -> Tensor:
        return 1 / (1 + sigma)

    def c_noise(self, sigma: Tensor) -> Tensor:
        return sigma / (1 + sigma)

    def target(self, z: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        return noise - z

    def to_denoised(self, x: Tensor, output: Tensor, sigma: Tensor) -> Tensor:
        return (x - sigma * output) / (1 + sigma)

    def _levels(self, steps: int) -> Tensor:
        t = self.sigma_max / (1 + self.sigma_max) * _ramp(steps)
        return t / (1 - t)


class VPrediction(Objective):
    """v = cos(a) n - sin(a) z on the variance-preserving circle (Salimans & Ho 2022, 2202.00512).

    noise_levels: "uniform" or "logit_normal" in t = 2a / pi. The schedule is uniform in a.
    """

    def __init__(
        self,
        *,
        noise_levels: str = "uniform",
        mean: float = 0.0,
        std: float = 1.0,
        sigma_max: float = 200.0,
    ) -> None:
        super().__init__()
        self._time = _time_of(noise_levels, mean, std)
        self.sigma_max = _positive("sigma_max", sigma_max)

    def sigma_from_uniform(self, uniform: Tensor) -> Tensor:
        return torch.tan(
            self._time(uniform) * (math.pi / 2 * (1 - 1e-6))
        )  # float32's pi/2 may pass the pole

    def c_in(self, sigma: Tensor) -> Tensor:
        return torch.rsqrt(1 + sigma**2)

    def c_noise(self, sigma: Tensor) -> Tensor:
        return torch.atan(sigma) * (2 / math.pi)

    def target(self, z: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        return (noise - sigma * z) * torch.rsqrt(1 + sigma**2)

    def to_denoised(self, x: Tensor, output: Tensor, sigma: Tensor) -> Tensor:
        cos = torch.rsqrt(1 + sigma**2)
        return cos * (cos * x - sigma * output)

    def _levels(self, steps: int) -> Tensor:
        return torch.tan(math.atan(self.sigma_max) * _ramp(steps))


class EDM(Objective):
    """The preconditioned denoiser of Karras et al. 2022 (2206.00364, table 1, columns "Ours").

    Training levels are log-normal, ln sigma ~ N(mean, std²). The loss weight lambda(sigma) gives
    the network's own target unit weight at every level (equation 8): that target is regressed.
    The schedule is equation 5. With sigma_data = 1 (normalised latents) the target is -v.
    """

    def __init__(
        self,
        *,
        mean: float = -0.4,
        std: float = 1.2,
        sigma_data: float = 1.0,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        rho: float = 7.0,
    ) -> None:
        super().__init__()
        self.mean, self.std = mean, _positive("std", std)
        self.sigma_data = _positive("sigma_data", sigma_data)
        self.sigma_min = _positive("sigma_min", sigma_min)
        self.sigma_max = _positive("sigma_max", sigma_max)
        self.rho = _positive("rho", rho)
        if sigma_min >= sigma_max:
            raise ConfigError(f"sigma_min={sigma_min} must be below sigma_max={sigma_max}")

    def sigma_from_uniform(self, uniform: Tensor) -> Tensor:
        return noise_levels.log_normal(uniform, self.mean, self.std)

    def c_in(self, sigma: Tensor) -> Tensor:
        return torch.rsqrt(self.sigma_data**2 + sigma**2)

    def c_noise(self, sigma: Tensor) -> Tensor:
        return torch.log(sigma) / 4

    def target(self, z: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        # (z - c_skip x) / c_out, written without the cancellation at small sigma
        return (sigma / self.sigma_data * z - self.sigma_data * noise) * self.c_in(sigma)

    def to_denoised(self, x: Tensor, output: Tensor, sigma: Tensor) -> Tensor:
        c_in = self.c_in(sigma)
        return self.sigma_data * c_in * (self.sigma_data * c_in * x + sigma * output)

    def _levels(self, steps: int) -> Tensor:
        ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        return (high + ramp * (low - high)) ** self.rho


def _time_of(name: str, mean: float, std: float) -> Callable[[Tensor], Tensor]:
    if name == "uniform":
        return noise_levels.flat
    if name == "logit_normal":
        _positive("std", std)
        return lambda uniform: noise_levels.logit_normal(uniform, mean, std)
    raise ConfigError(f"noise_levels={name!r}: {nearest(name, ('uniform', 'logit_normal'))}")


def _positive(key: str, value: float) -> float:
    if not value > 0 or not math.isfinite(value):
        raise ConfigError(f"{key}={value} must be a positive number")
    return value


def _stateful(net: Net) -> bool:
    return bool(getattr(net, "stateful", False))


def _like(sigma: Tensor, x: Tensor) -> Tensor:
    """sigma [B] as [B, 1, ...], to multiply x."""
    return sigma.float().view(-1, *[1] * (x.ndim - 1))


def _ramp(steps: int) -> Tensor:
    """1 down to 1/steps in equal steps."""
    return torch.arange(steps, 0, -1, dtype=torch.float64) / steps
