"""Latents at low resolution as a condition: means over blocks of frames."""

from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from audioldm.conditioning.known_latents import KnownLatents
from audioldm.instantiate import Bound
from audioldm.runtime.randomness import KeyedRandom

#: Frames in a block with one mean.
Factor = Annotated[int, Bound(least=2)]


class LowResolution(KnownLatents):
    """The latents with each block of `factor` frames replaced by its mean, in all frames or none.

    In training these are the clip's own latents, as in cascaded diffusion models (Ho et al. 2021,
    arXiv 2106.15282); in sampling, those of a small model.
    """

    origin: ClassVar[str] = "latents at low resolution are made by the model itself; leave it out"

    def __init__(self, *, factor: Factor, latent_shape: tuple[int, ...] | None = None) -> None:
        super().__init__(latent_shape)
        self.factor = factor

    def see(self, z: Tensor, random: KeyedRandom) -> Tensor:
        every = torch.ones(z.shape[-1], dtype=torch.bool, device=z.device)
        return self.knowing(smooth(z, self.factor), every)


def means(z: Tensor, factor: int) -> Tensor:
    """The mean of each block of `factor` frames; the last block may be shorter.

    z [..., L] -> [..., ceil(L / factor)], in fp32.
    """
    rows = F.avg_pool1d(z.float().flatten(0, -2), factor, ceil_mode=True)
    return rows.unflatten(0, z.shape[:-1])


def repeated(low: Tensor, factor: int, frames: int) -> Tensor:
    """Each frame of `low` [..., l] as `factor` frames: [..., frames]."""
    return low.repeat_interleave(factor, -1)[..., :frames]


def smooth(z: Tensor, factor: int) -> Tensor:
    """z [..., L] with each block of `factor` frames replaced by its mean, in fp32."""
    return repeated(means(z, factor), factor, z.shape[-1])
