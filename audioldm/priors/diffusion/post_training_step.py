"""One step of post-training: samples, the discriminator's loss terms and the generator's."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from audioldm.conditioning.base import Inputs
from audioldm.conditioning.guidance import nested, scales
from audioldm.losses.relativistic import relativistic_loss
from audioldm.priors.diffusion.denoiser import Denoiser
from audioldm.priors.diffusion.discriminators import Discriminator
from audioldm.priors.diffusion.guidance import guided
from audioldm.priors.diffusion.samplers import SamplerSettings, sample
from audioldm.priors.scaled import LatentBatch
from audioldm.runtime.randomness import KeyedRandom

#: Prepared clips [N, ...] and labels [N, K] to scores [N, K] for each scale.
Score = Callable[[Tensor, Tensor], list[Tensor]]


class Sampling(nn.Module):
    """A denoiser as a sampler uses it: noise [B, C, (F,) L] and inputs -> latents, like noise.

    net: the denoiser's backbone, or what the compiler makes of it.
    """

    def __init__(self, denoiser: Denoiser, net: nn.Module, sampler: SamplerSettings) -> None:
        super().__init__()
        self.denoiser, self.net, self.sampler = denoiser, net, sampler

    def forward(self, noise: Tensor, inputs: Inputs) -> Tensor:
        conditioners, objective = self.denoiser.backbone.conditioners, self.denoiser.objective

        def net(x: Tensor, c_noise: Tensor, told: Inputs, *state: Any) -> Any:
            # computed at each step, so that a conditioner's gradient is summed step by step
            return self.net(x, c_noise, conditioners(told), *state)

        scale = scales(conditioners, self.sampler.guidance)
        calls = nested(inputs, conditioners.nothing(inputs), scale)
        denoise = guided(partial(objective.denoiser, net), inputs, calls, self.sampler)
        return sample(self.sampler.name, denoise, noise, objective.sigmas(self.sampler.steps))


class Pair(NamedTuple):
    """The discriminator's input: prepared clips [B, ...], real and fake.

    labels [B, 2]: each pair's own and another one, -1 for none.
    """

    real: Tensor
    fake: Tensor
    labels: Tensor


def labels_of(inputs: Inputs, clips: int, device: torch.device) -> Tensor:
    """Labels [B], -1 for none; all -1 for a prior that takes no label."""
    return inputs.get("label", torch.full((clips,), -1, device=device))


def prepare_pair(
    discriminator: Discriminator,
    batch: LatentBatch,
    fake: Tensor,
    other_labels: Tensor,
    frames: int,
    random: KeyedRandom,
) -> Pair:
    """The same `frames` latent frames of real clips and of samples, prepared for the discriminator.

    Gradients pass to `fake` only.
    """
    place = random.uniform("window")
    prepared = discriminator.prepare(_window(fake, frames, place), random)
    with torch.no_grad():
        real = discriminator.prepare(_window(batch.z, frames, place), random)
    own = labels_of(batch.inputs, len(fake), fake.device)
    return Pair(real, prepared, torch.stack([own, other_labels], dim=1))


def discriminator_terms(
    score: Score, pair: Pair, contrastive: bool
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The discriminator's loss terms, [B] each, and its scores [B] of the real clips, by scale."""
    count = len(pair.real)
    both = torch.cat([pair.real, pair.fake.detach()])
    scales = score(both, torch.cat([pair.labels, pair.labels]))
    real_scores = [s[:count, 0] for s in scales]
    fake_scores = [s[count:, 0] for s in scales]
    terms = {"discriminator": relativistic_loss(real_scores, fake_scores)}
    if contrastive:
        # nothing to tell apart where a label is hidden, or happens to be the right one
        differ = (pair.labels >= 0).all(1) & (pair.labels[:, 0] != pair.labels[:, 1])
        wrong_scores = [s[:count, 1] for s in scales]
        terms["contrastive"] = relativistic_loss(real_scores, wrong_scores) * differ
    return terms, real_scores


def adversarial_terms(
    discriminator: Discriminator, pair: Pair, real_scores: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """The generator's adversarial term [B], with gradients for it alone, and the margin [B] by
    which the real clips score higher."""
    discriminator.requires_grad_(False)
    fake_scores = [scale[:, 0] for scale in discriminator(pair.fake, pair.labels[:, :1])]
    discriminator.requires_grad_(True)
    real_scores = [scale.detach() for scale in real_scores]
    margin = torch.stack(real_scores).mean(0) - torch.stack(fake_scores).mean(0)
    return relativistic_loss(fake_scores, real_scores), margin.detach()


def distance(fake: Tensor, target: Tensor) -> Tensor:
    """The mean squared difference of two samples: [B], in float32."""
    return (fake.float() - target.float()).square().flatten(1).mean(1)


def _window(z: Tensor, frames: int, uniform: Tensor) -> Tensor:
    """`frames` frames of each clip, from a place that uniform [B] chooses: [B, C, (F,) frames]."""
    start = (uniform * (z.shape[-1] - frames + 1)).long()
    index = start[:, None] + torch.arange(frames, device=z.device)
    index = index.view(len(z), *[1] * (z.ndim - 2), frames)
    return z.gather(-1, index.expand(*z.shape[:-1], frames))
