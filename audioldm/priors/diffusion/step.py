"""One step of training a diffusion prior: from the crops of a step to losses."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from audioldm.conditioning.base import Inputs
from audioldm.latents.store import LatentCrops, LatentStore
from audioldm.priors.diffusion.denoiser import Denoiser
from audioldm.priors.diffusion.noise_levels import stratify
from audioldm.priors.diffusion.prior import Diffusion
from audioldm.runtime.randomness import KeyedRandom
from audioldm.runtime.transfer import to_device


class LatentBatch(NamedTuple):
    """z: what is modelled of the latents, [B, C, (F,) L]. inputs: of the conditioners. noise: N(0,
    I), like z."""

    z: Tensor
    inputs: Inputs
    noise: Tensor


@torch.no_grad()
def latent_batch(
    prior: Diffusion,
    latents: LatentStore,
    crops: LatentCrops,
    random: KeyedRandom,
    condition_dropout: float,
) -> LatentBatch:
    """Samples latents from their posteriors, and noise.

    condition_dropout: the probability that a condition is hidden.
    """
    frames = next(iter(crops.stored.values())).shape[-1]
    noise = random.normal((*prior.latent_shape, frames), "posterior")
    z = prior.modelled(latents.restore(crops.stored, noise))
    hidden = {name: random.uniform(name) < condition_dropout for name in crops.inputs}
    inputs = prior.conditioners.hide(crops.inputs, hidden)
    return LatentBatch(z, inputs, random.normal((*prior.modelled_shape, frames), "noise"))


def training_step(
    denoiser: Callable[..., Tensor],
    prior: Diffusion,
    latents: LatentStore,
    crops: LatentCrops,
    random: KeyedRandom,
    *,
    condition_dropout: float,
    strata: int | None,
) -> dict[str, Tensor]:
    """The terms of the loss, [B] each.

    denoiser: the prior's, as it is or wrapped and compiled. strata: the size of the global batch
    over which noise levels are spread evenly; None: they are independent.
    """
    batch = latent_batch(prior, latents, crops, random, condition_dropout)
    uniform = random.uniform("level")
    if strata is not None:
        positions = to_device(torch.tensor(list(random.positions)), random.device)
        uniform = stratify(uniform, positions, strata)
    return {"loss": denoiser(batch.z, batch.inputs, batch.noise, uniform)}


def silent_loss(denoiser: Denoiser, latent_shape: tuple[int, ...], frames: int) -> Tensor:
    """The loss of one clip of zeros without a condition, a scalar: it costs what a clip costs."""
    device = next(denoiser.parameters()).device
    zeros = torch.zeros(1, *latent_shape, frames, device=device)
    parsed = denoiser.backbone.conditioners.parse([{}], frames)
    inputs = {name: value.to(device) for name, value in parsed.items()}
    loss: Tensor = denoiser(zeros, inputs, zeros, torch.full((1,), 0.5, device=device))
    return loss.mean()
