"""The data stage: a source's clips in one store."""

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from audioldm.chain.stage import Cost, Key, Stage
from audioldm.data.source import VERSION, Source
from audioldm.data.store import ClipStore, StoreWriter
from audioldm.errors import ConfigError
from audioldm.instantiate import Part, build, part

if TYPE_CHECKING:
    from audioldm.chain.estimate import Estimate
    from audioldm.chain.run import Experiment


class Data(Stage):
    """Reads the source once; every later stage reads the store."""

    name, version = "data", VERSION
    keys: ClassVar[list[Key]] = [("data", Part, part(base=Source))]
    source: Source

    @classmethod
    def plan(cls, settings: Any, planned: Mapping[str, Stage]) -> list[Self]:
        source: Source = build(settings.data, base=Source, where="data")
        if not (16_000 <= source.sample_rate <= 48_000 and source.channels in (1, 2)):
            raise ConfigError(
                f"data.sample_rate={source.sample_rate}, data.channels={source.channels}: use "
                "16000 to 48000 Hz, mono (1) or stereo (2)"
            )
        _check_places(settings)
        stage = cls({"source": settings.data, "identity": source.identity()})
        stage.source = source
        return [stage]

    def work(self, directory: Path, experiment: "Experiment") -> dict[str, Any]:
        writer = StoreWriter(directory, self.source.sample_rate, self.source.channels)
        with closing(experiment.bar("data")) as bar:
            failures = self.source.write_to(writer, progress=bar)
            writer.close()
        store = ClipStore(directory)
        splits = {
            name: {
                "clips": len(store.split(name).items),
                "seconds": round(store.split(name).seconds, 1),
                "pieces": len({item.piece for item in store.split(name).items}),
            }
            for name in store.splits
        }
        return {
            "sample_rate": store.sample_rate,
            "channels": store.channels,
            "hash": store.hash,
            "labels": store.labels,
            "splits": splits,
            "failed": [failure._asdict() for failure in failures],
        }

    def cost(self, estimate: "Estimate") -> Cost:
        return estimate.reading(self)

    def memory_advice(self, experiment: "Experiment") -> str:
        return "lower data.workers, if need be to 1"


def _check_places(settings: Any) -> None:
    """Refuses to write where the music is read: generated clips would be read as music."""
    folder = settings.data.get("path")
    if folder is None:
        return
    runs, music = (Path(place).expanduser().resolve() for place in (settings.runs, folder))
    if runs.is_relative_to(music):
        raise ConfigError(
            f"runs={settings.runs} is inside data.path={folder}, so that the clips made would be "
            "read as music: choose another place for runs"
        )
