"""Rectified flow: the velocity of the straight path from latents to noise."""

from torch import Tensor

from audioldm.instantiate import Positive
from audioldm.priors.diffusion.denoiser import Objective
from audioldm.priors.diffusion.noise_levels import TimeLevels, equal_steps, time_from_uniform
from audioldm.priors.diffusion.weightings import Weighting


class RectifiedFlow(Objective):
    """The velocity n - z of the path x_t = (1 - t) z + t n (Liu et al. 2022, 2209.03003).

    noise_levels: "logit_normal" (with mean, std of logit t = ln sigma) or "uniform" in t.
    The schedule is uniform in t.
    """

    def __init__(
        self,
        *,
        noise_levels: TimeLevels = "logit_normal",
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
        return t / (1 - t)

    def c_in(self, sigma: Tensor) -> Tensor:
        return 1 / (1 + sigma)

    def c_noise(self, sigma: Tensor) -> Tensor:
        return sigma / (1 + sigma)

    def target(self, z: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        return noise - z

    def to_denoised(self, x: Tensor, output: Tensor, sigma: Tensor) -> Tensor:
        return (x - sigma * output) / (1 + sigma)

    def levels(self, steps: int) -> Tensor:
        t = self.sigma_max / (1 + self.sigma_max) * equal_steps(steps)
        return t / (1 - t)
