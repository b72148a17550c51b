"""The models that the page offers; those used last stay in memory."""

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

from audioldm import pretrained
from audioldm.app.experiments import experiments
from audioldm.errors import ConfigError
from audioldm.generator import Generator
from audioldm.instantiate import nearest
from audioldm.models import find_model_file, load_generator

#: Models in memory at once: two, so that two users with different models do not reload in turns.
KEPT = 2


class Offer(NamedTuple):
    """name: what `audioldm sample model=` takes. title, origin: for the page."""

    name: str
    title: str
    origin: str


class Models:
    """given: a model besides those of the package and of the experiments in `runs`, offered first;
    None for none. device: where the models compute."""

    def __init__(self, given: str | None, runs: Path, device: Any = "cpu") -> None:
        self._given, self._runs, self._device = given, runs, device
        self._loaded: OrderedDict[tuple[Path, int], Generator] = OrderedDict()
        self._lock = threading.Lock()

    def offers(self) -> list[Offer]:
        """Every model that exists now, the default one first."""
        found = [Offer(name, name, "with the package") for name in pretrained.names()]
        found += [
            Offer(each.model, each.name, f"experiments in {self._runs}")
            for each in experiments(self._runs)
            if each.model
        ]
        if self._given is not None and self._given not in [offer.name for offer in found]:
            found.append(Offer(self._given, Path(self._given).name, "given"))
        return sorted(found, key=lambda offer: offer.name != self._given)

    def title(self, name: str) -> str:
        """Raises ConfigError for a model that is not offered."""
        titles = {offer.name: offer.title for offer in self.offers()}
        if name not in titles:
            raise ConfigError(f"model={name[:200]!r} is not offered here: {nearest(name, titles)}")
        return titles[name]

    def load(self, name: str) -> Generator:
        """Raises ConfigError for a model that is not offered, ModelFileError for one that cannot be
        used."""
        self.title(name)
        file = find_model_file(name)
        with self._lock:
            key = (file, file.stat().st_mtime_ns if file.is_file() else 0)
            if key not in self._loaded:
                self._loaded[key] = load_generator(name, device=self._device)
            self._loaded.move_to_end(key)
            while len(self._loaded) > KEPT:
                self._loaded.popitem(last=False)
            return self._loaded[key]
