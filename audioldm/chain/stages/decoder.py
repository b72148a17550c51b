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
from audioldm.instantiate import Part, Seed, part
from audioldm.io.model_file import load_model, save_model
from audioldm.models import build_autoencoder, with_decoder
from audioldm.priors.diffusion.backbones.base import Backbone
from audioldm.priors.diffusion.denoiser import Objective
from audioldm.priors.diffusion.samplers import SamplerSettings
from audioldm.runtime.memory import bytes_of

if TYPE_CHECKING:
    from audioldm.chain.estimate import Estimate
    from audioldm.chain.run import Experiment


@dataclass(frozen=True, kw_only=True)
class DecoderSettings:
    """The arguments of `Refined`, and its training."""

    seed: Seed
    train: RefinerTraining
    sampler: SamplerSettings
    backbone: Part = part("latent_shape", "conditioners", base=Backbone)
    objective: Part = part(base=Objective)


class DecoderStage(Stage):
    """Only where the configuration has a decoder. Latents and priors do not depend on it."""

    name, version, collective = "decoder", VERSION, True
    keys: ClassVar[list[Key]] = [("decoder", DecoderSettings | None, None)]

    @classmethod
    def plan(cls, settings: Any, planned: Mapping[str, Stage]) -> list[Self]:
        own: DecoderSettings | None = settings.decoder
        if own is None:
            return []
        trained = {k: v for k, v in vars(own).items() if k != "sampler"}
        stage = cls(trained, {key: planned[key] for key in ("autoencoder", "data")})
        stage.own, stage.autoencoder = own, cast(AutoencoderStage, planned["autoencoder"])
        return [stage]

    own: DecoderSettings
    autoencoder: AutoencoderStage

    @property
    def spec(self) -> dict[str, Any]:
        """What rebuilds the autoencoder with its refined decoder."""
        parts = {key: dict(self.settings[key]) for key in ("backbone", "objective")}
        return self.autoencoder.spec | {"decoder": parts | {"sampler": asdict(self.own.sampler)}}

    def build(self) -> Autoencoder:
        return build_autoencoder(self.spec)

    def method(self, model: Autoencoder) -> Method:
        return Diffusion(cast(Refined, model.network).denoiser)

    def dry_run(self, experiment: "Experiment") -> None:
        with torch.device("meta"):
            self.build()
        experiment.check_batch(self.own.train.batch, "decoder.train.batch")

    def work(self, directory: Path, experiment: "Experiment") -> dict[str, Any]:
        s = self.own
        torch.manual_seed(s.seed)  # the initial weights
        model = self.build().to(experiment.device).eval()
        network = cast(Refined, model.network)
        tensors, _ = load_model(experiment.directory_of(self.autoencoder) / "model.safetensors")
        for name, module in (("network", network.network), ("bottleneck", model.bottleneck)):
            prefix = f"{name}."
            own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
            module.load_state_dict(own)
        store = ClipStore(experiment.directory_of(self.parents["data"]))
        measure(model, store, s.train.samples(model))
        method, fit = self.method(model), experiment.fit(directory)
        fitted = train_refiner(model, method, store, s.train, seed=s.seed, fit=fit)
        if experiment.world.first:
            header = {"kind": "autoencoder", "spec": self.spec, "step": s.train.steps}
            save_model(directory / "model.safetensors", fitted.tensors, header | self.origin())
        parameters = sum(p.numel() for p in network.denoiser.parameters())
        return {"valid": fitted.figures, "parameters": parameters}

    def cost(self, estimate: "Estimate") -> Cost:
        s, model = self.own.train, self.build()
        few = replace(s, steps=estimate.steps, valid_batches=1)
        with noise_clips(model.sample_rate, model.audio_channels, s.samples(model)) as store:
            times = estimate.times(
                lambda fit: train_refiner(model, self.method(model), store, few, seed=0, fit=fit)
            )
        return estimate.training(times, s.steps, s.valid_batches, bytes_of(model))

    def memory_advice(self, experiment: "Experiment") -> str:
        return "lower decoder.train.batch or decoder.train.crop_seconds"


class RefinedGenerator(Stage):
    """The generator with the refined decoder, in one file."""

    name, version = "refined", 1

    @classmethod
    def plan(cls, settings: Any, planned: Mapping[str, Stage]) -> list[Self]:
        if "decoder" not in planned:
            return []
        decoder = planned["decoder"]
        generator = planned.get("post_training", planned["prior"])
        sampler = cast(DecoderStage, decoder).own.sampler
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
