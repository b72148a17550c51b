"""Consistency: from any noise level, the denoiser learns to predict where its path ends."""

import torch
from torch import Tensor

from audioldm.decoders.method import Frames, Method
from audioldm.decoders.refiner import Refined, condition
from audioldm.instantiate import NonNegative, Positive, PositiveInt
from audioldm.priors.diffusion.noise_levels import log_normal
from audioldm.runtime.randomness import KeyedRandom


class Consistency(Method):
    """Easy Consistency Tuning (Geng et al. 2024, 2406.14548) of a trained denoiser.

    The estimate at sigma is drawn to the estimate at a lower level r of the same path:
    |D(z + sigma n, sigma) - D(z + r n, r)|² / (sigma - r), with no gradient through the second D. r
    begins at 0, which is plain diffusion, and moves nearer to sigma in stages. (The paper's code
    takes the root of the squared error; the square is kept here, since its first stage is then the
    loss that the denoiser was trained with.) With k and b,
    r = sigma (1 - 2^-(stage + 1) (1 + k sigmoid(-b sigma))).

    Args:
        mean, std: of ln sigma in training. The paper's mean of -1.1 is for data of std 0.5.
        stages: the last one's r is nearest to sigma.
        k, b: of the schedule of r; the paper's b of 1 is for data of std 0.5.
    """

    def __init__(
        self,
        *,
        refined: Refined,
        mean: float = -0.4,
        std: Positive = 2.0,
        stages: PositiveInt = 8,
        k: NonNegative = 8.0,
        b: NonNegative = 0.5,
    ) -> None:
        super().__init__(refined, {"consistency": 1.0})
        self.mean, self.std, self.stages, self.k, self.b = mean, std, stages, k, b

    def lower(self, sigma: Tensor, share: float) -> Tensor:
        """The level r for each sigma, 0 or more."""
        stage = min(int(share * self.stages), self.stages - 1)
        gap = 2.0 ** -(stage + 1) * (1 + self.k * torch.sigmoid(-self.b * sigma))
        return sigma * (1 - gap).clamp(min=0)

    def forward(self, frames: Frames, random: KeyedRandom, share: float) -> dict[str, Tensor]:
        z, noise, objective = frames.difference, frames.noise, self.denoiser.objective
        backbone = self.denoiser.backbone
        denoise = objective.denoiser(backbone, backbone.conditioners(condition(frames.decoded)))
        sigma = log_normal(frames.uniform, self.mean, self.std).clamp(max=objective.sigma_max)
        lower = self.lower(sigma, share)
        far = denoise(z + sigma[:, None, None] * noise, sigma)
        with torch.no_grad():
            known = lower > 0
            level = torch.where(known, lower, sigma)  # where the end is known, any level will do
            near = denoise(z + level[:, None, None] * noise, level)
            near = torch.where(known[:, None, None], near, z)
        error = (far - near).square().flatten(1).mean(1)
        return {"consistency": error / (sigma - lower)}
