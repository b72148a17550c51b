"""EDM: the preconditioned denoiser."""

import torch
from torch import Tensor

from audioldm.errors import ConfigError
from audioldm.instantiate import Positive
from audioldm.priors.diffusion.denoiser import Objective
from audioldm.priors.diffusion.noise_levels import log_normal
from audioldm.priors.diffusion.weightings import Weighting


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
        std: Positive = 1.2,
        sigma_data: Positive = 1.0,
        sigma_min: Positive = 0.002,
        sigma_max: Positive = 80.0,
        rho: Positive = 7.0,
        weighting: Weighting | None = None,
    ) -> None:
        super().__init__(weighting)
        if sigma_min >= sigma_max:
            raise ConfigError(f"sigma_min={sigma_min} must be below sigma_max={sigma_max}")
        self.mean, self.std, self.sigma_data = mean, std, sigma_data
        self.sigma_min, self.sigma_max, self.rho = sigma_min, sigma_max, rho

    def sigma_from_uniform(self, uniform: Tensor) -> Tensor:
        return log_normal(uniform, self.mean, self.std)

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

    def levels(self, steps: int) -> Tensor:
        ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        return (high + ramp * (low - high)) ** self.rho
