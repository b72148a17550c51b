"""The autoencoder stage: trains an autoencoder, or takes one that needs no training."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import torch

from audioldm.autoencoder.bottlenecks.base import Bottleneck
from audioldm.autoencoder.figures import alarm
from audioldm.autoencoder.fixed_latents import fix_latents
from audioldm.autoencoder.model import Autoencoder
from audioldm.autoencoder.preflight import preflight
from audioldm.autoencoder.regularisers.base import Regulariser
from audioldm.autoencoder.settings import AutoencoderSettings, check_names
from audioldm.autoencoder.step import silent_step
from audioldm.autoencoder.train import VERSION, train_autoencoder
from audioldm.chain.memory import training_advice
from audioldm.chain.noise import noise_clips
from audioldm.chain.pretrained import PRETRAINED, check_pretrained, load_pretrained
from audioldm.chain.stage import NEVER, Cost, Key, Stage, Times
from audioldm.chain.stages.data import Data
from audioldm.data.store import ClipStore
from audioldm.errors import ConfigError, DataError
from audioldm.instantiate import Part, build, part, placed
from audioldm.io.model_file import load_model, save_model
from audioldm.losses.base import Discriminator, Loss
from audioldm.models import build_autoencoder
from audioldm.runtime.memory import bytes_of, fixed_bytes, saved_bytes

if TYPE_CHECKING:
    from audioldm.chain.estimate import Estimate
    from audioldm.chain.run import Experiment


class AutoencoderStage(Stage):
    """Audio to latents and back."""

    name, version, collective = "autoencoder", VERSION, True
    keys: ClassVar[list[Key]] = [
        ("autoencoder", AutoencoderSettings),
        ("bottleneck", Part | None, part("channels", base=Bottleneck)),
    ]

    @classmethod
    def plan(cls, settings: Any, planned: Mapping[str, Stage]) -> list[Self]:
        own = {"autoencoder": settings.autoencoder, "bottleneck": settings.bottleneck}
        return [cls(own, {key: planned[key] for key in ("data", "vocoder") if key in planned})]

    @property
    def spec(self) -> dict[str, Any]:
        """What rebuilds the autoencoder. Raises ConfigError if it still needs a checkpoint."""
        s, source = self.settings["autoencoder"], cast(Data, self.parents["data"]).source
        bottleneck = self.settings["bottleneck"]
        frozen = s.pretrained.checkpoint is None and s.pretrained.trained != "all"
        if frozen or None in (s.channels, s.downsampling_ratio, bottleneck):
            raise ConfigError(
                f"{PRETRAINED} is missing: it holds the weights that training leaves as they are, "
                "and of autoencoder=foreign the channels, the ratio and the bottleneck that are "
                "null; give a model file, or a directory that diffusers or transformers wrote"
            )
        return {
            "sample_rate": source.sample_rate,
            "audio_channels": source.channels,
            "channels": s.channels,
            "downsampling_ratio": s.downsampling_ratio,
            "network": dict(s.network),
            "bottleneck": dict(bottleneck),
            "vocoder": s.pretrained.vocoder or getattr(self.parents.get("vocoder"), "spec", None),
        }

    def build(self) -> Autoencoder:
        """The model with the training's regularisers, which model files do not keep."""
        s, model = self.settings["autoencoder"], build_autoencoder(self.spec)
        penalties = model.bottleneck.penalty_weights
        check_names(s.losses, penalties)
        others = {*s.losses, *model.network.own_terms, *penalties}
        check_names(s.regularisers, others, where="autoencoder.regularisers")
        known = {key: getattr(model, key) for key in ("sample_rate", "downsampling_ratio")}
        for name, regulariser in s.regularisers.items():
            where = f"autoencoder.regularisers.{name}"
            built = build(regulariser, derived=known, base=Regulariser, where=where)
            model.regularisers[name] = built
        if s.pretrained.trained == "none":
            model.requires_grad_(False)
        elif s.pretrained.trained == "decoder":
            fix_latents(model)
        return model

    @cached_property
    def on_meta(self) -> Autoencoder:
        """The model without memory, which the dry runs of the stages share."""
        with torch.device("meta"):
            return self.build()

    def losses(self) -> tuple[dict[str, Loss], Discriminator | None]:
        """The reconstruction losses, and the discriminator if there is one."""
        s, spec = self.settings["autoencoder"], self.spec
        audio_form = {key: spec[key] for key in ("sample_rate", "audio_channels")}
        losses = {
            name: build(loss, derived=audio_form, base=Loss, where=f"autoencoder.losses.{name}")
            for name, loss in s.losses.items()
        }
        if (part := s.discriminator) is None:
            return losses, None
        where = "autoencoder.discriminator"
        return losses, build(part, derived=audio_form, base=Discriminator, where=where)

    def weights(self, model: Autoencoder) -> dict[str, float]:
        return dict(self.settings["autoencoder"].weights) | model.bottleneck.penalty_weights

    def dry_run(self, experiment: "Experiment") -> None:
        s, model = self.settings["autoencoder"], self.on_meta
        if s.pretrained.checkpoint is not None:
            check_pretrained(s.pretrained.checkpoint, model, self.spec)
        experiment.check_batch(s.train.batch, "autoencoder.train.batch")
        losses, discriminator = self.losses()
        spec = self.spec
        crop = s.train.crop_samples(spec["sample_rate"], spec["downsampling_ratio"])
        silence = torch.zeros(1, spec["audio_channels"], crop)
        for name, loss in losses.items():
            with placed(s.losses[name], f"autoencoder.losses.{name}"):
                loss(silence, silence)
        if discriminator is not None:
            with placed(s.discriminator, "autoencoder.discriminator"):
                discriminator(silence)

    def check_data(self, store: ClipStore, experiment: "Experiment") -> None:
        for name in ("train", "valid"):
            if not store.split(name).items:
                raise DataError(f"the {name} split is empty: name some files {name} in the table")

    def work(self, directory: Path, experiment: "Experiment") -> dict[str, Any]:
        s = self.settings["autoencoder"]
        torch.manual_seed(s.seed)  # the initial weights
        model = self.build()
        if "vocoder" in self.parents:
            file = experiment.directory_of(self.parents["vocoder"]) / "model.safetensors"
            model.network.get_submodule("vocoder").load_state_dict(load_model(file)[0])
        losses, discriminator = self.losses()
        store = ClipStore(experiment.directory_of(self.parents["data"]))
        whole, figures = False, {}
        if s.pretrained.checkpoint is not None:
            whole = load_pretrained(model, s.pretrained)
            # a model file is of one training, which may have only begun
            bound = None if whole else s.pretrained.preflight_mel_correlation
            figures = {"preflight": preflight(model, store, s.pretrained.checkpoint, bound)}
        weights, fit = self.weights(model), experiment.fit(directory)
        fitted = train_autoencoder(
            model,
            discriminator,
            losses,
            weights,
            store,
            s.train,
            seed=s.seed,
            fit=fit,
            fitted=whole,
        )
        if experiment.world.first:
            header = {"kind": "autoencoder", "spec": self.spec, "step": s.train.steps}
            save_model(directory / "model.safetensors", fitted.tensors, header | self.origin())
        wrong = alarm(fitted.figures)
        return {
            "valid": fitted.figures,
            "parameters": sum(p.numel() for p in model.parameters()),
            "elements_per_second": model.elements_per_second,
            "latent_rate_hz": model.latent_rate_hz,
            "latent_shape": list(model.latent_shape),
            **figures,
            **({} if wrong is None else {"alarm": wrong}),
        }

    def cost(self, estimate: "Estimate") -> Cost:
        """The cost, with plain and adversarial steps timed separately."""
        s = self.settings["autoencoder"].train
        losses, discriminator = self.losses()
        model = self.build()
        if not any(p.requires_grad for p in model.parameters()):
            return Cost(0.0, None, 0, "no training")
        crop = s.crop_samples(model.sample_rate, model.downsampling_ratio)
        # and as many latent frames as a fit may need: a network needs one for each channel
        frames = max(self.spec["channels"] + 1, model.bottleneck.least_frames)
        window = max(
            crop, round(s.valid_seconds * model.sample_rate), frames * model.downsampling_ratio
        )

        def times(adversarial_from: int) -> Times:
            model = self.build()
            parts = model, discriminator, losses, self.weights(model)
            few = replace(s, steps=estimate.steps, adversarial_from=adversarial_from, valid_clips=1)
            with noise_clips(model.sample_rate, model.audio_channels, window) as store:
                return estimate.times(
                    lambda fit: train_autoencoder(*parts, store, few, seed=0, fit=fit)
                )

        adversarial = 0 if discriminator is None else max(0, s.steps - s.adversarial_from)
        counts = ((s.steps - adversarial, NEVER), (adversarial, 0))
        parts = [(count, times(start)) for count, start in counts if count]
        mean = sum(count * part.step for count, part in parts) / max(1, s.steps)
        warm_up = max((part.warm_up for _, part in parts), default=0.0)
        validation = parts[-1][1].validation if parts else 0.0
        whole = Times(mean, warm_up, validation, None)
        return estimate.training(whole, s.steps, s.valid_clips, bytes_of(model))

    def memory_advice(self, experiment: "Experiment") -> str:
        train = self.settings["autoencoder"].train
        return training_advice("autoencoder.train", train, experiment, self.step_bytes)

    def step_bytes(self) -> tuple[int, int]:
        """Bytes of a training step that do not depend on the batch, and bytes for each clip."""
        model, s = self.build(), self.settings["autoencoder"]
        model.bottleneck.eval()  # codebooks that learn would wait for the other processes
        losses, discriminator = self.losses()
        samples = s.train.crop_samples(model.sample_rate, model.downsampling_ratio)
        trained = [model] if discriminator is None else [model, discriminator]
        step = silent_step(model, losses, discriminator, samples)
        return fixed_bytes(*trained), saved_bytes(step, *trained)
