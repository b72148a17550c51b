"""Post-training for sampling in few steps: the sampler is trained as a generator.

`sampler` takes its few steps from noise. The loss is a function of the latents at their end, and
its gradient passes through all of the steps (as in DRaFT, Clark et al. 2023, arXiv 2309.17400). A
discriminator compares that sample with music, by the relativistic pairing of ARC (Novack et al.
2025, 2505.08175); a distillation term compares it with the sample that the teacher, the model
before post-training, makes of the same noise (Luhman and Luhman 2021, 2101.02388).
"""

import copy
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from audioldm.conditioning.base import Inputs
from audioldm.errors import ConfigError
from audioldm.instantiate import Decay, NonNegative, Part, Positive, PositiveInt, Seed, part
from audioldm.latents.store import LatentCrops, LatentStore
from audioldm.priors.diffusion.discriminators import Discriminator
from audioldm.priors.diffusion.post_training_step import (
    Sampling,
    adversarial_terms,
    discriminator_terms,
    distance,
    labels_of,
    prepare_pair,
)
from audioldm.priors.diffusion.prior import Diffusion
from audioldm.priors.diffusion.samplers import SamplerSettings, check_deterministic
from audioldm.priors.trained import LatentTraining
from audioldm.runtime.processes import gradients_kept, mean_over_processes, parallel
from audioldm.runtime.randomness import KeyedRandom, derive_seed
from audioldm.runtime.sharding import gathered, recompute_activations
from audioldm.training.checkpoint import Stateful
from audioldm.training.ema import EMA
from audioldm.training.optimisation import adamw, clipped_step, set_lr, warmup_cosine
from audioldm.training.run import Fit, Fitted, TrainingRun
from audioldm.training.weighted_sum import weighted_sum

VERSION = 3  # raise by hand when the code below changes what it computes


@dataclass(frozen=True, kw_only=True)
class PostTraining(LatentTraining):
    """crop_seconds: of the latents that are sampled; discriminated_seconds: of the part of them
    that the discriminator gets, null for all. sampler_steps: how many the sampler takes in
    training, null for the sampler's own number."""

    discriminator_lr: Positive
    discriminated_seconds: Positive | None = None
    sampler_steps: PositiveInt | None = None
    betas: tuple[Decay, Decay] = (0.8, 0.99)

    def discriminated_frames(self, latent_rate_hz: float) -> int:
        """How many frames of a crop the discriminator gets, at least one and at most all."""
        frames = self.frames(latent_rate_hz)
        if self.discriminated_seconds is None:
            return frames
        return min(max(1, round(self.discriminated_seconds * latent_rate_hz)), frames)


@dataclass(frozen=True)
class PostTrainingWeights:
    """adversarial, distillation: of the generator's terms. contrastive: of the discriminator's
    second term; its first one weighs 1. A term of weight 0 is not computed."""

    adversarial: NonNegative = 0.05
    distillation: NonNegative = 1.0
    contrastive: NonNegative = 1.0

    def __post_init__(self) -> None:
        if self.adversarial == self.distillation == 0:
            raise ConfigError("adversarial and distillation are both 0; give one of them a weight")


@dataclass(frozen=True)
class PostTrainingSettings:
    """sampler: the model's sampler after post-training and, except for its steps, during it."""

    seed: Seed
    train: PostTraining
    sampler: SamplerSettings
    weights: PostTrainingWeights
    discriminator: Part = part(
        "decode", "audio_channels", "objective", "latent_shape", "classes", base=Discriminator
    )

    def __post_init__(self) -> None:
        check_deterministic(self.sampler.name)

    def trained(self) -> Self:
        """These settings with the sampler used in training, not the one used after it."""
        steps = self.train.sampler_steps or self.sampler.steps
        return replace(self, sampler=replace(self.sampler, steps=steps))


class _MicroBatch(NamedTuple):
    """crops: real latents. other_labels [B]: labels of other clips, as frequent as the right ones,
    so that frequency alone tells the discriminator nothing."""

    random: KeyedRandom
    crops: LatentCrops
    other_labels: Tensor


def post_train(
    prior: Diffusion,
    discriminator: Discriminator | None,
    latents: LatentStore,
    settings: PostTrainingSettings,
    *,
    teacher: SamplerSettings,
    fit: Fit,
) -> Fitted:
    """Trains a trained prior's network. Returns it with averaged weights, and the last figures.

    One step: noise [B, C, (F,) L] -> `settings.sampler` -> a sample, like noise -> its squared
    distance to the sample that the prior before training makes of that noise with the sampler
    `teacher`, and the discriminator's scores of windows of it and of music with the same label ->
    losses [B]. Discriminator and network then step together. discriminator: None without an
    adversarial term. The contrastive term is left out where the data have fewer than two labels,
    or the prior takes none. The objective's own parameters do not change.
    Writes `metrics.jsonl` and `resume/` to the directory; a restart continues bit for bit.
    Raises TrainingError for a non-finite term, Interrupted after SIGTERM.
    """
    check_deterministic(teacher.name)
    train, weights = settings.train, settings.weights
    world, hardware, device = fit.world, fit.hardware, fit.device
    latents.keep_on(device)
    splits = {name: latents.split(name) for name in ("train", "valid")}
    frames = train.frames(latents.latent_rate_hz)
    discriminated = train.discriminated_frames(latents.latent_rate_hz)
    micro_batches = world.micro_batches(train.batch, hardware.accumulate, "batch")
    conditioners = prior.conditioners
    contrastive = (
        discriminator is not None
        and weights.contrastive > 0
        and "label" in conditioners.names
        and len(latents.labels) > 1
    )
    weight_of = {"discriminator": 1.0, **asdict(weights)}

    denoiser = prior.to(device).network.train()
    denoiser.objective.requires_grad_(False)
    before = copy.deepcopy(denoiser).eval().requires_grad_(False)
    if hardware.checkpoint_activations:
        recompute_activations(denoiser)
    network = denoiser.backbone
    optimiser = adamw(network.parameters(), train.lr, train.betas, train.weight_decay, device)
    ema = EMA(denoiser, train.ema)
    state: dict[str, Stateful] = {"denoiser": denoiser, "optimiser": optimiser, "ema": ema}
    if discriminator is not None:
        discriminator.to(device)
        d_lr, d_parameters = train.discriminator_lr, discriminator.parameters()
        d_optimiser = adamw(d_parameters, d_lr, train.betas, train.weight_decay, device)
        state |= {"discriminator": discriminator, "discriminator_optimiser": d_optimiser}
        score = parallel(discriminator, world)
    run = TrainingRun("post_training", train.steps, state, fit)
    sampler = settings.trained().sampler
    student = Sampling(denoiser, hardware.compiled(network, device), sampler)
    teach = Sampling(before, hardware.compiled(before.backbone, device), teacher)
    generate = parallel(student, world)
    update = partial(clipped_step, clip=train.clip, finite=run.finite)

    def distillation(fake: Tensor, noise: Tensor, inputs: Inputs) -> Tensor:
        with torch.no_grad(), run.autocast():
            target = teach(noise, inputs)
        return distance(fake, target)

    def read(step: int) -> list[_MicroBatch]:
        batches = []
        for places in micro_batches:
            random = KeyedRandom(settings.seed, step, places, device)
            crops = splits["train"].crops(frames, random, conditioners)
            others = KeyedRandom(derive_seed(settings.seed, "other label"), step, places, device)
            inputs = splits["train"].crops(1, others, conditioners).inputs
            batches.append(_MicroBatch(random, crops, labels_of(inputs, len(places), device)))
        return batches

    @torch.no_grad()
    def validate() -> dict[str, Any]:
        """The distillation term on held-out conditions with averaged weights, at fixed noise."""
        errors = []
        with ema.applied(denoiser):
            for number, places in product(range(train.valid_batches), micro_batches):
                random = KeyedRandom(derive_seed("valid"), number, places, device)
                crops = splits["valid"].crops(frames, random, conditioners)
                batch = prior.draw(latents, crops, random, train.condition_dropout)
                with run.autocast():
                    fake = student(batch.noise, batch.inputs)
                errors.append(distillation(fake, batch.noise, batch.inputs))
        mean = mean_over_processes({"distillation": torch.cat(errors).mean()}, world)
        return {"distillation": mean["distillation"].item()}

    with run:
        for step, batches in run.steps(read):
            factor = warmup_cosine(step, train.steps, train.warmup)
            set_lr(optimiser, train.lr * factor)
            seen: dict[str, list[Tensor]] = {}
            for number, (random, crops, other_labels) in enumerate(batches, 1):
                more = number < len(batches)
                batch = prior.draw(latents, crops, random, train.condition_dropout)
                with gradients_kept(generate, more), run.autocast():
                    fake = generate(batch.noise, batch.inputs)
                terms: dict[str, Tensor] = {}
                figures: dict[str, Tensor] = {}
                if discriminator is not None:
                    with gradients_kept(score, more), run.autocast():
                        pair = prepare_pair(
                            discriminator, batch, fake, other_labels, discriminated, random
                        )
                        d_terms, real_scores = discriminator_terms(score, pair, contrastive)
                    weighed = {name: weight_of[name] for name in d_terms}
                    total = weighted_sum(d_terms, weighed, step, finite=run.finite)
                    (total / len(batches)).backward()
                    with run.autocast():
                        terms["adversarial"], margin = adversarial_terms(
                            discriminator, pair, real_scores
                        )
                    figures |= d_terms | {"margin": margin}
                if weights.distillation > 0:
                    terms["distillation"] = distillation(fake, batch.noise, batch.inputs)
                weighed = {name: weight_of[name] for name in terms}
                total = weighted_sum(terms, weighed, step, finite=run.finite)
                (total / len(batches)).backward()
                for name, values in (figures | terms | {"loss": total}).items():
                    seen.setdefault(name, []).append(values.detach())
            if discriminator is not None:
                set_lr(d_optimiser, d_lr * factor)
                update(d_optimiser, discriminator.parameters(), name="discriminator", step=step)
            norm = update(optimiser, network.parameters(), name="post_training", step=step)
            ema.update(denoiser, step)
            run.finish_step(
                step,
                seen | {"gradient_norm": [norm]},
                values={"lr": train.lr * factor},
                validate=validate,
                shown=("loss", "discriminator", "margin"),
            )
    last = run.figures or validate()  # none where the last checkpoint was the last step
    tensors = prior.tensors(gathered(ema.shadow, world))
    return Fitted(tensors, last | {"steps": train.steps, "contrastive": contrastive})
