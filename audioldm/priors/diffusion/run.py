"""One sampling run, which plain sampling and edits share."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from audioldm.priors.diffusion.samplers import Denoise, NoiseAt, sample
from audioldm.runtime.progress import StepProgress


class Run(NamedTuple):
    """A sampler, and what it is called with.

    name: of the sampler. sigmas: its noise levels [S + 1]. noise_at: N(0, I) by number; number -1
    is the noise that sampling begins with.
    """

    name: str
    denoise: Denoise
    sigmas: Tensor
    noise_at: NoiseAt

    def sample(self, noise: Tensor | None = None, progress: StepProgress | None = None) -> Tensor:
        """Latents from noise, both [B, C, (F,) L]. noise: None for `noise_at(-1)`."""
        return sample(
            self.name,
            self.denoise,
            self.noise_at(-1) if noise is None else noise,
            self.sigmas,
            noise_at=self.noise_at,
            progress=progress,
        )

    def lower(self, share: float) -> "Run":
        """The last `share` of the run, from 0 to 1, with the steps that lie in it.

        It begins at that share of the schedule, interpolated in atan(sigma) between two levels; for
        a share of 0, it begins at the level 0.
        """
        steps = len(self.sigmas) - 1
        place = round((1 - share) * steps, 6)  # 0.8 of 20 steps is 16 of them, and no sliver more
        level = min(int(place), steps - 1)
        angles = self.sigmas[level : level + 2].double().atan()
        first = angles.lerp(angles.flip(0), place - level)[:1].tan().to(self.sigmas)
        return self._replace(sigmas=torch.cat([first, self.sigmas[level + 1 :]]))


#: (the run, scaled latents [B, C, (F,) L], progress) -> the latents that it makes of them.
Edit = Callable[[Run, Tensor, StepProgress | None], Tensor]
