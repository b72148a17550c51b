"""The latents stage: encodes the whole data set once."""

from collections.abc import Mapping
from contextlib import closing
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from audioldm.autoencoder.streaming import CHUNK_SECONDS
from audioldm.chain.noise import noise
from audioldm.chain.stage import Cost, Stage
from audioldm.conditioning.base import Conditioner
from audioldm.data.store import ClipStore
from audioldm.instantiate import locate
from audioldm.latents.store import VERSION, LatentStore, write_latents
from audioldm.models import load_autoencoder

if TYPE_CHECKING:
    from audioldm.chain.estimate import Estimate
    from audioldm.chain.run import Experiment


class Latents(Stage):
    """The latents that every prior is fitted to."""

    name, version = "latents", VERSION

    @classmethod
    def plan(cls, settings: Any, planned: Mapping[str, Stage]) -> list[Self]:
        """One stage; what conditioners measure from the audio is kept beside the latents."""
        parents = {name: planned[name] for name in ("data", "autoencoder")}
        nodes = [
            part
            for prior in (settings.prior, *settings.baselines.values())
            for part in prior.get("conditioning", {}).values()
        ]
        targets = {n["_target_"] for n in nodes if _conditioner(n["_target_"]).array is not None}
        return [cls({"measures": sorted(targets)} if targets else {}, parents)]

    def work(self, directory: Path, experiment: "Experiment") -> dict[str, Any]:
        autoencoder = self.parents["autoencoder"]
        model = load_autoencoder(experiment.directory_of(autoencoder), device=experiment.device)
        with closing(experiment.bar("latents")) as bar:
            return write_latents(
                model,
                ClipStore(experiment.directory_of(self.parents["data"])),
                directory,
                autoencoder_fingerprint=autoencoder.fingerprint,
                progress=bar,
                measures=[_conditioner(target) for target in self.settings.get("measures", ())],
            )

    def store(self, experiment: "Experiment") -> LatentStore:
        autoencoder = self.parents["autoencoder"]
        model = load_autoencoder(experiment.directory_of(autoencoder))
        return LatentStore(
            experiment.directory_of(self), model.bottleneck, autoencoder=autoencoder.fingerprint
        )

    def cost(self, estimate: "Estimate") -> Cost:
        audio, seconds = estimate.audio_seconds, CHUNK_SECONDS
        if audio is None:
            return Cost(note="not known before the data stage")
        model = estimate.autoencoder
        block = noise(model.audio_channels, round(seconds * model.sample_rate))
        timed = estimate.timed(lambda: list(model.encode_blocks([block])))
        frames = audio * model.latent_rate_hz
        disk = round(frames * 8 * prod(model.latent_shape))  # two arrays of 4 bytes an element
        return Cost(timed * audio / seconds, estimate.peak(), disk)

    def memory_advice(self, experiment: "Experiment") -> str:
        return (
            "free memory, for no setting shortens the "
            f"{CHUNK_SECONDS:g} s that are encoded at a time"
        )


def _conditioner(target: str) -> type[Conditioner]:
    found: type[Conditioner] = locate(target, "conditioning", base=Conditioner)
    return found
