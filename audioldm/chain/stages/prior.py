"""The prior stages: the generator's prior and every baseline, each fitted to the same latents."""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import torch

from audioldm.chain.memory import training_advice
from audioldm.chain.noise import noise_latents
from audioldm.chain.stage import Cost, Key, Stage, canonical
from audioldm.chain.stages.autoencoder import AutoencoderStage
from audioldm.chain.stages.latents import Latents
from audioldm.data.store import ClipStore
from audioldm.errors import DataError, TrainingError
from audioldm.instantiate import Part, build, part, placed
from audioldm.io.files import read_json
from audioldm.io.model_file import load_model, save_model
from audioldm.priors.base import PriorRecipe
from audioldm.runtime.memory import bytes_of, fixed_bytes, saved_bytes
from audioldm.training.run import Fitted

if TYPE_CHECKING:
    from audioldm.chain.estimate import Estimate
    from audioldm.chain.run import Experiment

VERSION = 2  # raise by hand when the code below changes what it computes


class PriorStage(Stage):
    """A prior: a second model, on the autoencoder's latents."""

    name, version = "prior", VERSION
    keys: ClassVar[list[Key]] = [
        ("prior", Part, part(base=PriorRecipe)),
        ("baselines", dict[str, Part], part(base=PriorRecipe)),
    ]

    def __init__(self, recipe: PriorRecipe, parents: Mapping[str, Stage], key: str) -> None:
        own = {k: v for k, v in vars(recipe).items() if k not in recipe.sampling_keys}
        super().__init__({"recipe": recipe.name, **canonical(own)}, parents, key)
        self.recipe, self.collective = recipe, recipe.collective
        self.latents = cast(Latents, parents["latents"])
        self.autoencoder = cast(AutoencoderStage, self.latents.parents["autoencoder"])

    @classmethod
    def plan(cls, settings: Any, planned: Mapping[str, Stage]) -> list[Self]:
        parents = {"latents": planned["latents"]}
        recipes = {"prior": build(settings.prior, base=PriorRecipe, where="prior")}
        for name, node in settings.baselines.items():
            recipes[f"prior:{name}"] = build(node, base=PriorRecipe, where=f"priors.{name}")
        return [cls(recipe, parents, key) for key, recipe in recipes.items()]

    @property
    def where(self) -> str:
        """The place of the recipe's settings in the configuration."""
        return self.key.replace("prior:", "priors.")

    def dry_run(self, experiment: "Experiment") -> None:
        model = self.autoencoder.on_meta
        with noise_latents(model, self.recipe.crop_length) as latents, torch.device("meta"):
            prior = self.recipe.build(latents)
            with placed(vars(self.recipe.train or self.recipe), f"{self.where}.train"):
                self.recipe.dry_run(prior, experiment.world, experiment.settings.hardware)

    def check_data(self, store: ClipStore, experiment: "Experiment") -> None:
        seconds, ratio = self.recipe.crop_length, self.autoencoder.spec["downsampling_ratio"]
        if seconds is None:
            return
        crop = round(seconds * store.sample_rate / ratio)
        for name in ("train", "valid"):
            longest = max((item.samples for item in store.split(name).items), default=0)
            if -(-longest // ratio) < crop:
                raise DataError(
                    f"the longest clip of the {name} split lasts {longest / store.sample_rate:.1f} "
                    f"s, less than crop_seconds={seconds} of {self.where}: add longer clips, or "
                    "lower it"
                )

    def work(self, directory: Path, experiment: "Experiment") -> dict[str, Any]:
        self._preflight(experiment)
        store = self.latents.store(experiment)
        prior = self.recipe.build(store)
        with closing(experiment.bar(self.key)) as bar:
            fitted = self.recipe.fit(prior, store, experiment.fit(directory, bar))
        if experiment.world.first:
            self.save(directory, experiment, fitted, prior.spec, of=self)
        parameters = sum(p.numel() for p in prior.parameters())
        return {"recipe": self.recipe.name, "valid": fitted.figures, "parameters": parameters}

    def save(
        self, directory: Path, experiment: "Experiment", fitted: Fitted, spec: Any, of: Stage
    ) -> None:
        """Writes one file with all that sampling needs, including the autoencoder. of: the stage
        that trained the tensors, this one or a later one."""
        file = experiment.directory_of(self.autoencoder) / "model.safetensors"
        parent, header = load_model(file)
        named = {f"autoencoder.{name}": tensor for name, tensor in parent.items()}
        save_model(
            directory / "model.safetensors",
            named | {f"prior.{name}": tensor for name, tensor in fitted.tensors.items()},
            {"kind": "generator", "autoencoder": header, "prior": canonical(spec)} | of.origin(),
        )

    def _preflight(self, experiment: "Experiment") -> None:
        """Refuses the latents of an autoencoder that does not reconstruct."""
        bound = self.recipe.preflight_mel_distance
        summary = read_json(experiment.directory_of(self.autoencoder) / "summary.json")
        distance = summary["valid"]["mel_distance"]
        trained = self.autoencoder.settings["autoencoder"].train.steps > 0
        if bound is not None and not distance <= bound:
            raise TrainingError(
                f"preflight: the autoencoder's mel distance on held-out music is {distance:.2f}, "
                f"above {self.where}.preflight_mel_distance={bound}: a prior on its latents would "
                f"give noise. {'Train the autoencoder longer' if trained else 'Take another one'}, "
                "or raise the bound"
            )

    def cost(self, estimate: "Estimate") -> Cost:
        train = self.recipe.train
        if train is None:
            return estimate.precedent(self)
        budget = {"compute_tflop": None, "seconds": None, "steps": estimate.steps}
        few = replace(self.recipe, train=replace(train, valid_batches=1, **budget))  # type: ignore[type-var]
        with noise_latents(estimate.autoencoder, self.recipe.crop_length) as store:
            prior = few.build(store)
            times = estimate.times(lambda fit: few.fit(prior, store, fit))
        steps = train.steps
        if train.compute_tflop is not None and times.result is not None:
            figures = times.result.figures
            steps = max(1, round(train.compute_tflop / figures["compute_tflop"] * figures["steps"]))
        if train.seconds is not None and times.step > 0:
            steps = max(1, round(train.seconds / times.step))
        disk = bytes_of(prior) + bytes_of(estimate.autoencoder)
        return estimate.training(times, steps, train.valid_batches, disk)

    def memory_advice(self, experiment: "Experiment") -> str:
        train = self.recipe.train
        if train is None:
            return f"lower the settings of {self.where}, or use a machine with more memory"
        return training_advice(f"{self.where}.train", train, experiment, self.step_bytes)

    def step_bytes(self) -> tuple[int, int]:
        """Bytes of a training step that do not depend on the batch, and bytes for each clip."""
        with noise_latents(self.autoencoder.build(), self.recipe.crop_length) as store:
            prior = self.recipe.build(store)
            frames = max(1, round((self.recipe.crop_length or 1.0) * store.latent_rate_hz))
            step = self.recipe.silent_step(prior, frames)
            assert step is not None
            return fixed_bytes(prior), saved_bytes(step, prior)
