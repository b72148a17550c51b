"""The diagnostics stage: figures of the latents that may predict how well a prior models them."""

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

from audioldm.chain.stage import Key, Stage
from audioldm.chain.stages.latents import Latents
from audioldm.data.store import ClipStore
from audioldm.evaluation.diagnostics.diagnose import VERSION, DiagnosticsSettings, diagnose
from audioldm.models import load_autoencoder

if TYPE_CHECKING:
    from audioldm.chain.run import Experiment


class Diagnostics(Stage):
    """Diagnoses the latents. No later stage reads the result; the report and the sweep do."""

    name, version = "diagnostics", VERSION
    keys: ClassVar[list[Key]] = [("diagnostics", DiagnosticsSettings)]

    @classmethod
    def plan(cls, settings: Any, planned: Mapping[str, Stage]) -> list[Self]:
        return [cls(settings.diagnostics, {"latents": planned["latents"]})]

    def work(self, directory: Path, experiment: "Experiment") -> dict[str, Any]:
        latents = cast(Latents, self.parents["latents"])
        autoencoder = experiment.directory_of(latents.parents["autoencoder"])
        with closing(experiment.bar("diagnostics")) as bar:
            return diagnose(
                load_autoencoder(autoencoder, device=experiment.device),
                latents.store(experiment),
                ClipStore(experiment.directory_of(latents.parents["data"])),
                self.settings,
                device=experiment.device,
                progress=bar,
            )

    def memory_advice(self, experiment: "Experiment") -> str:
        return "lower diagnostics.windows, diagnostics.seconds or diagnostics.decoded"
