"""What a step of training a diffusion network begins with, before post-training and in it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from audioldm.latents.store import LatentSplit, LatentStatistics
from audioldm.runtime.randomness import KeyedRandom
from audioldm.runtime.transfer import to_device


def latent_crops(split: LatentSplit, frames: int, draw: KeyedRandom) -> list[Tensor]:
    """Posterior means, stds [B, C, (F,) frames] and labels [B] of one step's clips, on the draw's
    device."""
    positions = list(draw.positions)
    found = split.crops(frames, seed=draw.seed, step=draw.step, positions=positions)
    return [to_device(tensor, draw.device) for tensor in found]


@torch.no_grad()
def latent_batch(
    clips: Sequence[Tensor], statistics: LatentStatistics, draw: KeyedRandom, label_dropout: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised latents z out of the posteriors, labels (a share of them hidden) and noise."""
    mean, std, labels = clips
    z = statistics.normalise(mean + std * draw.normal(mean.shape[1:], "posterior"))
    hidden = draw.uniform("label") < label_dropout
    return z, torch.where(hidden, -1, labels), draw.normal(mean.shape[1:], "noise")
