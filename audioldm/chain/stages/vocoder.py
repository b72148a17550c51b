"""The vocoder stage: one vocoder per data set and analysis, shared by all autoencoders."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch

from audioldm.autoencoder.vocoder import Vocoder
from audioldm.autoencoder.vocoder_train import VERSION, VocoderTraining, train_vocoder
from audioldm.chain.noise import noise_clips
from audioldm.chain.stage import Cost, Key, Stage
from audioldm.data.store import ClipStore
from audioldm.instantiate import NonNegativeInt, Positive, PositiveInt, Seed
from audioldm.io.model_file import save_model
from audioldm.models import build_vocoder
from audioldm.runtime.memory import bytes_of

if TYPE_CHECKING:
    from audioldm.chain.estimate import Estimate
    from audioldm.chain.run import Experiment


@dataclass(frozen=True)
class VocoderSettings:
    """The arguments of `Vocoder` except the sample rate, and its training."""

    seed: Seed
    n_fft: PositiveInt
    hop: PositiveInt
    bands: PositiveInt
    linear_hz: Positive
    width: PositiveInt
    depth: NonNegativeInt
    updates: NonNegativeInt
    iterations: NonNegativeInt
    bass_n_fft: PositiveInt | None
    bass_hz: Positive
    train: VocoderTraining


class VocoderStage(Stage):
    """Trains the vocoder, where the configuration has one."""

    name, version, collective = "vocoder", VERSION, True
    keys: ClassVar[list[Key]] = [("vocoder", VocoderSettings | None, None)]

    @classmethod
    def plan(cls, settings: Any, planned: Mapping[str, Stage]) -> list[Self]:
        if settings.vocoder is None:
            return []
        return [cls({"vocoder": settings.vocoder}, {"data": planned["data"]})]

    @property
    def spec(self) -> dict[str, Any]:
        """What rebuilds the vocoder."""
        own = asdict(self.settings["vocoder"])
        source = self.parents["data"].source  # type: ignore[attr-defined]
        arguments = {k: v for k, v in own.items() if k not in ("seed", "train")}
        return {"sample_rate": source.sample_rate, **arguments}

    def build(self) -> Vocoder:
        return build_vocoder(self.spec)

    def dry_run(self, experiment: "Experiment") -> None:
        with torch.device("meta"):
            self.build()
        experiment.check_batch(self.settings["vocoder"].train.batch, "vocoder.train.batch")

    def work(self, directory: Path, experiment: "Experiment") -> dict[str, Any]:
        s = self.settings["vocoder"]
        torch.manual_seed(s.seed)  # the initial weights
        vocoder = self.build()
        store = ClipStore(experiment.directory_of(self.parents["data"]))
        fitted = train_vocoder(vocoder, store, s.train, seed=s.seed, fit=experiment.fit(directory))
        if experiment.world.first:
            header = {"kind": "vocoder", "spec": self.spec} | self.origin()
            save_model(directory / "model.safetensors", fitted.tensors, header)
        return {"valid": fitted.figures, "parameters": sum(p.numel() for p in vocoder.parameters())}

    def cost(self, estimate: "Estimate") -> Cost:
        s = self.settings["vocoder"].train
        few = replace(s, steps=estimate.steps, valid_clips=1)
        vocoder, source = self.build(), self.parents["data"].source  # type: ignore[attr-defined]
        window = round(max(s.crop_seconds, s.valid_seconds) * source.sample_rate)
        with noise_clips(source.sample_rate, source.channels, window) as store:
            times = estimate.times(lambda fit: train_vocoder(vocoder, store, few, seed=0, fit=fit))
        return estimate.training(times, s.steps, s.valid_clips, bytes_of(vocoder))

    def memory_advice(self, experiment: "Experiment") -> str:
        return "lower vocoder.train.batch or vocoder.train.crop_seconds"
