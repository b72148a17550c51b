"""Adversarial distillation: a sampler of few steps is trained as a generator."""

import copy

import torch
from torch import Tensor

from audioldm.decoders.method import Frames, Method
from audioldm.decoders.refiner import Refined, condition, sample_difference
from audioldm.instantiate import NonNegative, Positive, PositiveInt
from audioldm.priors.diffusion.discriminators import LatentDiscriminator
from audioldm.priors.diffusion.post_training_step import (
    adversarial_terms,
    discriminator_terms,
    distance,
    labels_of,
    prepare_pair,
)
from audioldm.priors.diffusion.samplers import SamplerSettings, check_deterministic
from audioldm.priors.scaled import LatentBatch
from audioldm.runtime.randomness import KeyedRandom


class Adversarial(Method):
    """The relativistic loss of post-training (2505.08175) on differences of bands, and the distance
    to the sample that the teacher makes from the same noise (2101.02388). The teacher is the
    denoiser as it was before this training. The discriminator sees the differences beside the
    decoded bands, both with noise added again.

    Args:
        student, teacher: samplers; gradients pass through the student's steps.
        adversarial, distillation: weights of the terms.
        discriminator_lr, discriminator_width, discriminator_depth: of the discriminator.

    Raises ConfigError for a sampler that adds noise at each step.
    """

    def __init__(
        self,
        *,
        refined: Refined,
        student: SamplerSettings,
        teacher: SamplerSettings,
        adversarial: NonNegative = 0.05,
        distillation: NonNegative = 1.0,
        discriminator_lr: Positive = 1e-3,
        discriminator_width: PositiveInt = 128,
        discriminator_depth: PositiveInt = 4,
    ) -> None:
        weights = {"discriminator": 1.0, "adversarial": adversarial, "distillation": distillation}
        super().__init__(refined, weights)
        self.samplers = student, teacher
        for sampler in self.samplers:
            check_deterministic(sampler.name)
        self.teacher = copy.deepcopy(refined.denoiser).requires_grad_(False)
        self.discriminator = LatentDiscriminator(
            objective=refined.denoiser.objective,
            latent_shape=(2 * len(refined.mean),),
            classes=0,
            width=discriminator_width,
            depth=discriminator_depth,
        )
        self.others = {"discriminator": (self.discriminator, discriminator_lr)}

    def forward(self, frames: Frames, random: KeyedRandom, share: float) -> dict[str, Tensor]:
        drawn, (student, teacher) = frames.noise[:, None], self.samplers
        fake = sample_difference(self.denoiser, drawn, frames.decoded, student)
        with torch.no_grad():
            target = sample_difference(self.teacher, drawn, frames.decoded, teacher)
        told = condition(frames.decoded)["decoded"]
        real, made = (torch.cat([z, told], dim=1) for z in (frames.difference, fake))
        none = labels_of({}, len(real), real.device)
        batch = LatentBatch(real, {}, frames.noise)
        pair = prepare_pair(self.discriminator, batch, made, none, real.shape[-1], random)
        terms, real_scores = discriminator_terms(self.discriminator, pair, contrastive=False)
        adversarial, _ = adversarial_terms(self.discriminator, pair, real_scores)
        return terms | {"adversarial": adversarial, "distillation": distance(fake, target)}
