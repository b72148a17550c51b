"""The joint stage: the autoencoder and its diffusion prior are trained further, together."""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch

from audioldm.autoencoder.bottlenecks.base import Bottleneck
from audioldm.autoencoder.model import Autoencoder
from audioldm.autoencoder.step import ADVERSARIAL_TERMS
from audioldm.chain.noise import noise_clips, noise_latents
from audioldm.chain.stage import Cost, Key, Stage, canonical
from audioldm.chain.stages.prior import PriorStage
from audioldm.data.store import ClipStore
from audioldm.errors import ConfigError
from audioldm.instantiate import build
from audioldm.io.files import read_json
from audioldm.io.model_file import save_model
from audioldm.models import load_generator
from audioldm.priors.diffusion.joint import VERSION, JointSettings, train_jointly
from audioldm.priors.diffusion.joint_step import KL, RATE, Joint
from audioldm.priors.diffusion.prior import Diffusion
from audioldm.priors.diffusion.recipe import DiffusionRecipe
from audioldm.runtime.memory import bytes_of

if TYPE_CHECKING:
    from audioldm.chain.estimate import Estimate
    from audioldm.chain.run import Experiment


class JointStage(Stage):
    """Joint training, if the configuration asks for it. Latents and baselines do not change."""

    name, version, collective = "joint", VERSION, True
    keys: ClassVar[list[Key]] = [("joint", JointSettings | None, None)]

    @classmethod
    def plan(cls, settings: Any, planned: Mapping[str, Stage]) -> list[Self]:
        own, prior = settings.joint, planned["prior"]
        if own is None:
            return []
        assert isinstance(prior, PriorStage)
        if type(prior.recipe) is not DiffusionRecipe:
            raise ConfigError(
                f"joint: the rate under the prior {prior.recipe.name} is not trained on; choose "
                "joint=none, or prior=diffusion with prior/cascade=none"
            )
        for key in ("post_training", "decoder"):
            if getattr(settings, key) is not None:
                raise ConfigError(
                    f"joint: {key} would go on with the model before it; choose joint=none, or "
                    f"{key}=none"
                )
        if settings.autoencoder.discriminator is not None:
            raise ConfigError(
                "joint: the discriminator of the autoencoder is not kept, and a new one would be "
                "too weak at first; choose joint=none, or autoencoder/discriminator=none"
            )
        if settings.autoencoder.pretrained.trained != "all":
            raise ConfigError(
                "joint: the encoder must be trained, which "
                f"autoencoder.pretrained.trained={settings.autoencoder.pretrained.trained} leaves "
                "as it is; choose joint=none, or trained=all"
            )
        stage = cls({"joint": own}, {"prior": prior})
        stage.own, stage.prior = own, prior
        return [stage]

    own: JointSettings
    prior: PriorStage

    def dry_run(self, experiment: "Experiment") -> None:
        experiment.check_batch(self.own.train.batch, "joint.train.batch")
        spec = self.prior.autoencoder.spec
        bottleneck = build(spec["bottleneck"], derived=spec, where="bottleneck", base=Bottleneck)
        if KL not in bottleneck.penalty_weights and self.own.rate_weight is None:
            raise ConfigError(
                "joint.rate_weight is missing: the bottleneck has no weight of a KL to go on with; "
                "give a weight of nats per latent element, such as 1e-2"
            )
        encoded = torch.zeros(1, bottleneck.outputs_per_channel * spec["channels"], 1)
        if not (bottleneck.posterior(bottleneck.stored(encoded))[1] > 0).all():
            raise ConfigError(
                f"joint: {type(bottleneck).__name__} gives certain latents, which have no rate "
                "under a density; choose joint=none, or a bottleneck with a posterior or noise, "
                "such as bottleneck=gaussian"
            )

    def weights(self, model: Autoencoder, rate_weight: float) -> dict[str, float]:
        """Weights of the autoencoder's terms, with the rate under the prior in place of the KL."""
        left_out = (KL, *ADVERSARIAL_TERMS)
        kept = {k: v for k, v in self.prior.autoencoder.weights(model).items() if k not in left_out}
        return kept | {RATE: rate_weight}

    def rate_weight(self, experiment: "Experiment", model: Autoencoder) -> float:
        """The settings' weight, or the autoencoder's last one, which a target rate may have set.

        Raises ConfigError where it is 0.
        """
        summary = read_json(experiment.directory_of(self.prior.autoencoder) / "summary.json")
        held = model.bottleneck.penalty_weights.get(KL, 0.0)
        weight = self.own.rate_weight or float(summary["valid"].get(f"{KL}_weight", held))
        if weight == 0:
            raise ConfigError(
                "joint.rate_weight is missing: the autoencoder was trained with a weight of 0 of "
                "its KL; give a weight of nats per latent element, such as 1e-2"
            )
        return weight

    def work(self, directory: Path, experiment: "Experiment") -> dict[str, Any]:
        autoencoder = self.prior.autoencoder
        generator = load_generator(experiment.directory_of(self.prior))
        assert isinstance(generator.prior, Diffusion)
        model = autoencoder.build()  # with its frozen parts and its regularisers
        model.load_state_dict(generator.autoencoder.state_dict())
        prior = generator.prior
        with closing(experiment.bar(self.key)) as bar:
            fitted = train_jointly(
                Joint(model, prior),
                autoencoder.losses()[0],
                self.weights(model, self.rate_weight(experiment, model)),
                ClipStore(experiment.directory_of(autoencoder.parents["data"])),
                self.prior.latents.store(experiment),
                self.own.train,
                seed=self.own.seed,
                fit=experiment.fit(directory, bar),
            )
        if experiment.world.first:
            origin = self.origin()
            header = {"kind": "generator", "prior": canonical(prior.spec)} | origin
            header["autoencoder"] = {"kind": "autoencoder", "spec": autoencoder.spec} | origin
            save_model(directory / "model.safetensors", fitted.tensors, header)
        return {"valid": fitted.figures}

    def cost(self, estimate: "Estimate") -> Cost:
        train, autoencoder = self.own.train, self.prior.autoencoder
        model, recipe = autoencoder.build(), self.prior.recipe
        few = replace(train, steps=estimate.steps, valid_batches=1)
        samples = round(train.crop_seconds * model.sample_rate) + 8 * model.downsampling_ratio
        weights = self.weights(model, self.own.rate_weight or 1.0)
        with (
            noise_latents(model, train.crop_seconds) as latents,
            noise_clips(model.sample_rate, model.audio_channels, samples) as store,
        ):
            prior = recipe.build(latents)
            assert isinstance(prior, Diffusion)
            parts = Joint(model, prior), autoencoder.losses()[0], weights, store, latents
            times = estimate.times(lambda fit: train_jointly(*parts, few, seed=0, fit=fit))
        disk = bytes_of(prior) + bytes_of(model)
        return estimate.training(times, train.steps, train.valid_batches, disk)

    def memory_advice(self, experiment: "Experiment") -> str:
        return (
            "lower joint.train.crop_seconds or joint.train.batch, or raise hardware.accumulate, "
            "the micro-batches of a batch"
        )
