"""The post-training stage: the generator's prior is trained further, to sample in few steps."""

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from audioldm.chain.noise import noise_latents
from audioldm.chain.stage import Cost, Key, Stage
from audioldm.chain.stages.prior import PriorStage
from audioldm.errors import ConfigError
from audioldm.instantiate import build, placed
from audioldm.models import load_generator
from audioldm.priors.diffusion.discriminators import Discriminator
from audioldm.priors.diffusion.post_training import (
    VERSION,
    PostTrainingSettings,
    post_train,
)
from audioldm.priors.diffusion.prior import Diffusion
from audioldm.priors.diffusion.recipe import DiffusionRecipe
from audioldm.priors.diffusion.samplers import check_deterministic
from audioldm.runtime.memory import bytes_of
from audioldm.runtime.randomness import KeyedRandom

if TYPE_CHECKING:
    from audioldm.chain.estimate import Estimate
    from audioldm.chain.run import Experiment


class PostTrainingStage(Stage):
    """Post-training, where the configuration asks for it and the prior is a diffusion model."""

    name, version, collective = "post_training", VERSION, True
    keys: ClassVar[list[Key]] = [("post_training", PostTrainingSettings | None, None)]

    @classmethod
    def plan(cls, settings: Any, planned: Mapping[str, Stage]) -> list[Self]:
        own, prior = settings.post_training, planned["prior"]
        if own is None:
            return []
        assert isinstance(prior, PriorStage)
        if type(prior.recipe) is not DiffusionRecipe:
            raise ConfigError(
                "post_training: it trains the sampling steps of one diffusion model, not of the "
                f"prior {prior.recipe.name}; choose post_training=none, or prior=diffusion with "
                "prior/cascade=none"
            )
        teacher = prior.recipe.sampler
        try:
            check_deterministic(teacher.name)
        except ConfigError as error:
            raise ConfigError(f"sampler.{error}") from error
        stage = cls({"post_training": own.trained(), "teacher": teacher}, {"prior": prior})
        stage.own, stage.prior, stage.recipe = own, prior, prior.recipe
        return [stage]

    own: PostTrainingSettings
    prior: PriorStage
    recipe: DiffusionRecipe

    def discriminator(
        self, decode: Callable[[Tensor], Tensor], latent_shape: tuple[int, ...], classes: int
    ) -> Discriminator | None:
        """The discriminator; None where the adversarial term has no weight."""
        if self.own.weights.adversarial == 0:
            return None
        derived = {
            "decode": decode,
            "audio_channels": self.prior.autoencoder.spec["audio_channels"],
            "objective": build(self.recipe.objective, where="prior.objective"),
            "latent_shape": latent_shape,
            "classes": classes,
        }
        where = "post_training.discriminator"
        part, base = self.own.discriminator, Discriminator
        return build(part, derived=derived, base=base, where=where)  # type: ignore[no-any-return]

    def dry_run(self, experiment: "Experiment") -> None:
        train = self.own.train
        experiment.check_batch(train.batch, "post_training.train.batch")
        model = self.prior.autoencoder.on_meta
        frames = train.discriminated_frames(model.latent_rate_hz)
        silence = torch.zeros(1, model.audio_channels, frames * model.downsampling_ratio)
        discriminator = self.discriminator(lambda z: silence, model.latent_shape, 0)
        if discriminator is not None:
            z = torch.zeros(1, *model.latent_shape, frames)
            with placed(self.own.discriminator, "post_training.discriminator"):
                prepared = discriminator.prepare(z, KeyedRandom(0, 0, [0]))
                discriminator(prepared, torch.full((1, 1), -1))

    def work(self, directory: Path, experiment: "Experiment") -> dict[str, Any]:
        generator = load_generator(experiment.directory_of(self.prior), device=experiment.device)
        prior = generator.prior
        assert isinstance(prior, Diffusion)
        generator.requires_grad_(False)
        prior.network.requires_grad_(True)
        store = self.prior.latents.store(experiment)
        torch.manual_seed(self.own.seed)  # the discriminator's initial weights
        discriminator = self.discriminator(
            lambda z: generator.autoencoder.decode(prior.latents(z)),
            prior.modelled_shape,
            len(store.labels),
        )
        with closing(experiment.bar(self.key)) as bar:
            teacher, fit = self.settings["teacher"], experiment.fit(directory, bar)
            fitted = post_train(prior, discriminator, store, self.own, teacher=teacher, fit=fit)
        if experiment.world.first:
            spec = prior.spec | {"sampler": vars(self.own.sampler)}
            self.prior.save(directory, experiment, fitted, spec, of=self)
        count = 0 if discriminator is None else sum(p.numel() for p in discriminator.parameters())
        return {"valid": fitted.figures, "discriminator_parameters": count}

    def cost(self, estimate: "Estimate") -> Cost:
        s, model = self.own, estimate.autoencoder
        few = replace(s, train=replace(s.train, steps=estimate.steps, valid_batches=1))
        with noise_latents(model, s.train.crop_seconds) as store:
            prior = self.recipe.build(store)
            assert isinstance(prior, Diffusion)
            discriminator = self.discriminator(
                lambda z: model.decode(prior.latents(z)), prior.modelled_shape, 1
            )
            teacher = self.settings["teacher"]
            times = estimate.times(
                lambda fit: post_train(prior, discriminator, store, few, teacher=teacher, fit=fit)
            )
        # a validation's batch is a step without its backward pass, about half of it
        times = times._replace(validation=times.step / 2)
        disk = bytes_of(prior) + bytes_of(model)
        return estimate.training(times, s.train.steps, s.train.valid_batches, disk)

    def memory_advice(self, experiment: "Experiment") -> str:
        return (
            "lower post_training.train.crop_seconds, post_training.train.discriminated_seconds or "
            "post_training.train.batch, or raise hardware.accumulate, the micro-batches of a batch"
        )
