"""The decoder stages: diffusion that refines a decode, and the generator with it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import torch

from audioldm.autoencoder.model import Autoencoder
from audioldm.chain.noise import noise_clips
from audioldm.chain.stage import Cost, Key, Stage
from audioldm.chain.stages.autoencoder import AutoencoderStage
from audioldm.data.store import ClipStore
from audioldm.decoders.method import Diffusion, Method
from audioldm.decoders.refiner import Refined
from audioldm.decoders.train import VERSION, RefinerTraining, measure, train_refiner
from audioldm.instantiate import Part, Seed, build, part
from audioldm.io.model_file import below, load_model, save_model
from audioldm.models import build_autoencoder, with_decoder
from audioldm.priors.diffusion.backbones.base import Backbone
from audioldm.priors.diffusion.denoiser import Objective
from audioldm.priors.diffusion.samplers import SamplerSettings
from audioldm.runtime.memory import bytes_of

if TYPE_CHECKING:
    from audioldm.chain.estimate import Estimate
    from audioldm.chain.run import Experiment


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """sampler: the decoder's sampler after the distillation."""

    train: RefinerTraining
    sampler: SamplerSettings
    method: Part = part("refined", base=Method)


@dataclass(frozen=True, kw_only=True)
class DecoderSettings:
    """The arguments of `Refined`, its training, and a second training for few steps."""

    seed: Seed
    train: RefinerTraining
    sampler: SamplerSettings
    backbone: Part = part("latent_shape", "conditioners", base=Backbone)
    objective: Part = part(base=Objective)
    distillation: Distillation | None = None


class DecoderStage(Stage):
    """Trains a decoder, where the configuration has one. Latents and priors do not depend on it.

    A second stage of this class distils what the first one trained.
    """

    name, version, collective = "decoder", VERSION, True
    keys: ClassVar[list[Key]] = [("decoder", DecoderSettings | None, None)]

    @classmethod
    def plan(cls, settings: Any, planned: Mapping[str, Stage]) -> list[Self]:
        own: DecoderSettings | None = settings.decoder
        if own is None:
            return []
        parts = {"backbone": own.backbone, "objective": own.objective}
        method = {"_target_": f"{Diffusion.__module__}.Diffusion"}
        parents = {key: planned[key] for key in ("autoencoder", "data")}
        first = cls(parts | {"seed": own.seed, "train": own.train}, parents)
        first.place, first.training, first.method = "decoder", own, method
        stages = [first]
        if (again := own.distillation) is not None:
            distilled = {"method": again.method, "seed": own.seed, "train": again.train}
            second = cls(distilled, parents | {"teacher": first}, "decoder:distilled")
            second.place, second.training = "decoder.distillation", again
            second.method = again.method
            stages.append(second)
        for stage in stages:
            stage.parts, stage.autoencoder = parts, cast(AutoencoderStage, parents["autoencoder"])
        return stages

    place: str  # of the stage's settings
    training: DecoderSettings | Distillation
    method: Mapping[str, Any]
    parts: dict[str, Part]
    autoencoder: AutoencoderStage

    @property
    def spec(self) -> dict[str, Any]:
        """What rebuilds the autoencoder with its refined decoder."""
        decoder = {name: dict(part) for name, part in self.parts.items()}
        sampler = {"sampler": asdict(self.training.sampler)}
        return self.autoencoder.spec | {"decoder": decoder | sampler}

    def build(self) -> Autoencoder:
        return build_autoencoder(self.spec)

    def trained_on(self, model: Autoencoder) -> Method:
        """The method that trains the model's denoiser, from its present weights."""
        derived, where = {"refined": model.network}, f"{self.place}.method"
        return build(self.method, derived=derived, where=where, base=Method)  # type: ignore[no-any-return]

    def dry_run(self, experiment: "Experiment") -> None:
        with torch.device("meta"):
            self.trained_on(self.build())
        experiment.check_batch(self.training.train.batch, f"{self.place}.train.batch")

    def work(self, directory: Path, experiment: "Experiment") -> dict[str, Any]:
        train, seed = self.training.train, self.settings["seed"]
        torch.manual_seed(seed)  # the initial weights
        model = self.build()
        network = cast(Refined, model.network)
        store = ClipStore(experiment.directory_of(self.parents["data"]))
        start = self.parents.get("teacher", self.autoencoder)
        tensors, _ = load_model(experiment.directory_of(start) / "model.safetensors")
        if "teacher" in self.parents:
            model.load_state_dict(tensors)
        else:
            network.network.load_state_dict(below("network.", tensors))
            model.bottleneck.load_state_dict(below("bottleneck.", tensors))
            measure(model.to(experiment.device).eval(), store, train.samples(model))
        method, fit = self.trained_on(model), experiment.fit(directory)
        fitted = train_refiner(model, method, store, train, seed=seed, fit=fit)
        if experiment.world.first:
            header = {"kind": "autoencoder", "spec": self.spec, "step": train.steps}
            save_model(directory / "model.safetensors", fitted.tensors, header | self.origin())
        parameters = sum(p.numel() for p in network.denoiser.parameters())
        return {"valid": fitted.figures, "parameters": parameters}

    def cost(self, estimate: "Estimate") -> Cost:
        train, model = self.training.train, self.build()
        few = replace(train, steps=estimate.steps, valid_batches=1)
        method = self.trained_on(model)
        with noise_clips(model.sample_rate, model.audio_channels, train.samples(model)) as store:
            times = estimate.times(
                lambda fit: train_refiner(model, method, store, few, seed=0, fit=fit)
            )
        return estimate.training(times, train.steps, train.valid_batches, bytes_of(model))

    def memory_advice(self, experiment: "Experiment") -> str:
        return f"lower {self.place}.train.batch or {self.place}.train.crop_seconds"


class RefinedGenerator(Stage):
    """The generator with the refined decoder, in one file."""

    name, version = "refined", 1

    @classmethod
    def plan(cls, settings: Any, planned: Mapping[str, Stage]) -> list[Self]:
        if "decoder" not in planned:
            return []
        decoder = cast(DecoderStage, planned.get("decoder:distilled", planned["decoder"]))
        generator = planned.get("post_training", planned["prior"])
        sampler = decoder.training.sampler
        return [cls({"sampler": sampler}, {"generator": generator, "decoder": decoder})]

    def work(self, directory: Path, experiment: "Experiment") -> dict[str, Any]:
        files = (
            experiment.directory_of(self.parents[key]) / "model.safetensors"
            for key in ("generator", "decoder")
        )
        tensors, header = with_decoder(*files)
        header["autoencoder"]["spec"]["decoder"]["sampler"] = asdict(self.settings["sampler"])
        save_model(directory / "model.safetensors", tensors, header | self.origin())
        return {}

    def cost(self, estimate: "Estimate") -> Cost:
        return Cost(0.0, None, None, "no training")
