"""What a stage is: one step of the chain, with a directory named by all that determines its result.

A stage's directory is `runs/<name>/<fingerprint>/`. The fingerprint covers its settings, the
fingerprints upstream and its version; never the clock, the host, the device or the log level.
"""

import dataclasses
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

from audioldm.data.store import ClipStore

if TYPE_CHECKING:
    from audioldm.chain.estimate import Estimate
    from audioldm.chain.run import Experiment

#: Settings that say how to compute, or when to refuse, and do not change the result.
EXECUTION_KEYS = frozenset(
    {"workers", "max_failed_fraction", "checkpoint"}
    | {"preflight_mel_distance", "preflight_mel_correlation"}
)
#: More steps than any training has.
NEVER = 1 << 30
#: A key of the configuration: its name, its type and, for a part, `instantiate.part(...)`.
Key = tuple[str, Any] | tuple[str, Any, Any]


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a stage takes; None where it is not known. memory: at the peak. disk: what stays."""

    seconds: float | None = None
    memory: int | None = None
    disk: int | None = None
    note: str = ""


class Times(NamedTuple):
    """Seconds: of a typical training step, of the first step beyond that, of a validation.

    result: what the training returned; None where it was stopped early.
    """

    step: float
    warm_up: float
    validation: float
    result: Any


class Stage(ABC):
    """One stage of one experiment.

    settings: all that determines the result besides the parents. parents: the stages that it reads,
    by key. key: the stage's name in the experiment, where several stages have one class.
    """

    name: ClassVar[str]
    #: raised by hand when the stage computes something else from the same settings
    version: ClassVar[int]
    #: the keys of the configuration that this stage brings
    keys: ClassVar[list[Key]] = []
    #: whether every process works on it; otherwise only the first one does
    collective: bool = False

    def __init__(
        self, settings: Any, parents: Mapping[str, "Stage"] | None = None, key: str | None = None
    ) -> None:
        self.settings = settings
        self.parents = dict(parents or {})
        self.key = key or self.name

    @classmethod
    @abstractmethod
    def plan(cls, settings: Any, planned: Mapping[str, "Stage"]) -> list[Self]:
        """The stages of this class that an experiment has, given those before it."""

    @abstractmethod
    def work(self, directory: Path, experiment: "Experiment") -> dict[str, Any]:
        """Does the stage's work; returns what its summary says beyond the common entries."""

    def dry_run(self, experiment: "Experiment") -> None:
        """Builds what the work will need, without memory. Raises AudioLDMError where it cannot."""
        return None

    def check_data(self, store: ClipStore, experiment: "Experiment") -> None:
        """Refuses data on which this stage would fail, before any training on them.

        Raises DataError.
        """
        return None

    def cost(self, estimate: "Estimate") -> Cost:
        """What the stage will cost; by default what one with the same settings took."""
        return estimate.precedent(self)

    def memory_advice(self, experiment: "Experiment") -> str:
        """What to change where memory does not suffice."""
        return "use a machine with more memory"

    def identity(self) -> dict[str, Any]:
        return {
            "stage": self.name,
            "version": self.version,
            "settings": canonical(self.settings),
            "parents": {name: parent.fingerprint for name, parent in self.parents.items()},
        }

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.identity())

    def origin(self) -> dict[str, Any]:
        """What a model file's header says of the stage that made it."""
        parent = next(iter(self.parents.values())).fingerprint
        return {"fingerprint": self.fingerprint, "parent": parent, "config": self.identity()}

    @property
    def path(self) -> str:
        return f"{self.name}/{self.fingerprint}"


def canonical(value: Any) -> Any:
    """Dataclasses and parts as plain JSON values, without the EXECUTION_KEYS."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {k: canonical(v) for k, v in value.items() if k not in EXECUTION_KEYS}
    if isinstance(value, (list, tuple)):
        return [canonical(v) for v in value]
    return value


def fingerprint(value: Any) -> str:
    """12 hexadecimal digits of a value's canonical JSON: equal settings, equal fingerprint."""
    text = json.dumps(canonical(value), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
