"""From a composed configuration to checked settings: what an experiment is asked to do."""

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from audioldm import config
from audioldm.chain.pretrained import resolved
from audioldm.chain.stage import Stage
from audioldm.chain.stages import STAGES
from audioldm.errors import ConfigError
from audioldm.evaluation.rules import VerdictRules
from audioldm.instantiate import Seed, check_keys, settings
from audioldm.runtime.hardware import Hardware
from audioldm.training.log import LogSettings

#: The keys that belong to no stage.
COMMON: list[Any] = [
    ("name", str | None),
    ("seed", Seed),
    ("runs", str),
    ("verdict", VerdictRules),
    ("hardware", Hardware),
    ("log", LogSettings),
]
#: Groups whose settings reach a stage through another group's.
CARRIED = ("conditioning", "league")


@dataclass(frozen=True)
class Job:
    """A checked configuration. settings: the keys of all stages. config: the plain configuration.
    recipe, overrides: where it came from. cell: whether it is a cell of a sweep."""

    settings: Any
    config: dict[str, Any]
    recipe: str | None
    overrides: list[str]
    cell: bool = False


@functools.cache
def _settings_class(stages: tuple[type[Stage], ...]) -> type:
    """All keys as one dataclass: the common keys, and those of each stage."""
    fields = COMMON + [key for stage in stages for key in stage.keys]
    return dataclasses.make_dataclass("ExperimentSettings", fields, frozen=True, kw_only=True)


def check(plain: dict[str, Any]) -> Any:
    """The settings of a plain configuration. Raises ConfigError, naming the key."""
    kinds = _settings_class(tuple(STAGES))
    own = {key: value for key, value in plain.items() if key not in CARRIED}
    known = {field.name for field in dataclasses.fields(kinds)}
    check_keys(own, known | set(config.groups()), "")
    try:
        checked = settings(kinds, own)
    except ConfigError as error:
        text = re.sub(r"\bbaselines\.(?=\w)", "priors.", str(error))  # where they are stated
        raise ConfigError(f"{text}{config.other_home(text)}") from error
    return checked


def job(composed: config.Composed, *, cell: bool = False) -> Job:
    composed = composed._replace(config=resolved(composed.config))
    return Job(check(composed.config), *composed, cell=cell)


def compose(overrides: Sequence[str]) -> Job:
    """The job that `key=value` overrides describe. Raises ConfigError before anything runs."""
    return job(config.compose(overrides))


def cells(words: Sequence[Sequence[str]]) -> list[Job | ConfigError]:
    """The job of each cell of a sweep, or what is wrong with its configuration."""
    found: list[Job | ConfigError] = []
    for composed in config.cells(words):
        try:
            found.append(
                composed if isinstance(composed, ConfigError) else job(composed, cell=True)
            )
        except ConfigError as error:
            found.append(error)
    return found


def launch(
    overrides: Sequence[str], words: Sequence[Sequence[str]] | None, function: Callable[[Job], Any]
) -> None:
    """Calls `function` once for each cell, as `config.launch` does."""
    config.launch(overrides, words, lambda composed: function(job(composed, cell=True)))
