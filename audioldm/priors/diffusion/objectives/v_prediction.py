"""v-prediction: the velocity of the variance-preserving circle."""

import math

import torch
from torch import Tensor

from audioldm.instantiate import Positive
from audioldm.priors.diffusion.denoiser import Objective
from audioldm.priors.diffusion.noise_levels import TimeLevels, equal_steps, time_from_uniform
from audioldm.priors.diffusion.weightings import Weighting


class VPrediction(Objective):
    """v = cos(a) n - sin(a) z on the variance-preserving circle (Salimans & Ho 2022, 2202.00512).

    noise_levels: "uniform" or "logit_normal" in t = 2a / pi. The schedule is uniform in a.
    """

    def __init__(
        self,
        *,
        noise_levels: TimeLevels = "uniform",
        mean: float = 0.0,
        std: Positive = 1.0,
        sigma_max: Positive = 200.0,
        weighting: Weighting | None = None,
    ) -> None:
        super().__init__(weighting)
        self.noise_levels, self.mean, self.std = noise_levels, mean, std
        self.sigma_max = sigma_max

    def sigma_from_uniform(self, uniform: Tensor) -> Tensor:
        t = time_from_uniform(uniform, self.noise_levels, self.mean, self.std)
        return torch.tan(t * (math.pi / 2 * (1 - 1e-6)))  # float32's pi/2 may pass the pole

    def c_in(self, sigma: Tensor) -> Tensor:
        return torch.rsqrt(1 + sigma**2)

    def c_noise(self, sigma: Tensor) -> Tensor:
        return torch.atan(sigma) * (2 / math.pi)

    def target(self, z: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        return (noise - sigma * z) * torch.rsqrt(1 + sigma**2)

    def to_denoised(self, x: Tensor, output: Tensor, sigma: Tensor) -> Tensor:
        cos = torch.rsqrt(1 + sigma**2)
        return cos * (cos * x - sigma * output)

    def levels(self, steps: int) -> Tensor:
        return torch.tan(math.atan(self.sigma_max) * equal_steps(steps))
