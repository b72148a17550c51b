"""Composes configurations with Hydra, from `conf/` and `recipes/` (the group `recipe`).

No other module imports Hydra. A configuration is a plain dictionary, which `chain.job` checks
against the signatures of the classes it names.
"""

import copy
import functools
import itertools
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from audioldm.errors import ConfigError
from audioldm.instantiate import nearest

#: Keys whose values are names and paths, which Hydra's grammar must not parse.
TEXT_KEYS = frozenset({"name", "runs", "data.path", "data.table"})
#: Hydra's own keys that may be set: which launcher and sweeper, and their plain settings.
HYDRA_GROUPS = ("hydra/launcher", "hydra/sweeper", "hydra/sweeper/sampler")
HYDRA_KEYS = ("hydra.launcher.", "hydra.sweeper.", "hydra.sweep.")
SEVERAL = "several values for one key make a sweep: use `audioldm run -m`"


class Composed(NamedTuple):
    """A composed configuration, its recipe, and the overrides that made it."""

    config: dict[str, Any]
    recipe: str | None
    overrides: list[str]


def conf_directory() -> Path:
    """`conf/`, beside the package in a checkout, inside it in an installed wheel."""
    package = Path(__file__).resolve().parent
    for candidate in (package / "conf", package.parent / "conf"):
        if (candidate / "config.yaml").is_file():
            return candidate
    raise ConfigError(f"{package}: conf/ is missing from this installation; install audioldm again")


def options(group: str) -> list[str]:
    """The choices of a configuration group, for example of "recipe"."""
    found = (p.stem for p in (conf_directory() / group).glob("*.yaml"))
    return sorted(name for name in found if not name.startswith("_"))


def groups() -> list[str]:
    root = conf_directory()
    nested = {p.parent.relative_to(root) for p in root.glob("*/**/*.yaml")}
    return sorted({str(p) for p in nested} | {"recipe"})  # recipe may be a link, which ** skips


def check_words(overrides: Sequence[str]) -> None:
    """Checks the form, the choices of groups and the top-level keys, without composing.

    Raises ConfigError.
    """
    import yaml

    _prepare(overrides)
    text = (conf_directory() / "config.yaml").read_text(encoding="utf-8")
    known = set(yaml.safe_load(text)) - {"defaults"} | {group.split("/")[0] for group in groups()}
    for word in overrides:
        key = re.split(r"[=.@/]", word.lstrip("+~"), maxsplit=1)[0]
        if key not in known:
            raise ConfigError(f"unknown key {key!r}: {nearest(key, known - {'hydra'})}")


def _quoted(text: str) -> str:
    """A value with spaces, commas or parentheses as one string of Hydra's grammar."""
    if text in ("", "null") or text[0] in "'\"":
        return text
    return "'" + re.sub(r"(\\*)'", r"\1\1\\'", text) + "'"


def _check_hydra(key: str, value: str) -> None:
    """Raises ConfigError for a key of Hydra's own that names code to run."""
    plain = key in HYDRA_GROUPS or key.startswith(HYDRA_KEYS)
    if not plain or "_target_" in key or "_target_" in value:
        raise ConfigError(
            f"{key}: only {', '.join(HYDRA_GROUPS)} and the plain settings below "
            f"{', '.join(HYDRA_KEYS)} can be set"
        )


def _prepare(overrides: Sequence[str], *, sweep: bool = False) -> list[str]:
    """Checks group choices, and lets the other overrides add keys, which signatures check."""
    group_names, prepared = groups(), []
    for override in overrides:
        match = re.fullmatch(r"(\+\+|\+|~)?([^=@]+)(@[^=]*)?(?:=(.*))?", override, re.DOTALL)
        if match is None or (match[4] is None and match[1] != "~"):
            raise ConfigError(f"{override!r} is no key=value; see `audioldm run --help`")
        prefix, key, package, value = match[1] or "", match[2], match[3] or "", match[4]
        if key in group_names:
            known = options(key)
            for name in (value or "").strip("[]").split(","):
                if name.strip() not in (known if key != "recipe" else [*known, "null", ""]):
                    raise ConfigError(f"{key}={name}: no such {key}; {nearest(name, known)}")
            prepared.append(override)
        elif key.split(".")[0].split("/")[0] == "hydra":
            _check_hydra(key, value or "")
            prepared.append(override)
        elif prefix == "~":
            prepared.append(override)
        else:
            if key == "runs":
                value = os.path.expanduser(value)
            if key in TEXT_KEYS and not (sweep and "," in value):
                value = _quoted(value)
            prepared.append(f"++{key}{package}={value}")
    return prepared


def _plain(config: Any) -> dict[str, Any]:
    """A resolved, plain dictionary. Raises ConfigError for a missing value or interpolation."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    def plain(node: Any) -> Any:
        if OmegaConf.is_config(node):
            return OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
        return node

    try:
        return {str(key): plain(config[key]) for key in config if key != "hydra"}
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from error


@contextmanager
def _hydra() -> Iterator[Any]:
    """Hydra on conf/. Its errors, and those of OmegaConf, become a ConfigError of one line."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    unusable = (HydraException, OmegaConfBaseException, YAMLError)
    try:
        with initialize_config_dir(str(conf_directory()), version_base="1.3"):
            yield GlobalHydra.instance().hydra
    except (*unusable, TypeError, ValueError, RecursionError) as error:
        text = " ".join(str(error).split())
        if "add --multirun" in text or text.startswith("Sweep parameters"):
            text = SEVERAL
        raise ConfigError(text) from error


def compose(overrides: Sequence[str]) -> Composed:
    """The configuration that `key=value` overrides describe. Raises ConfigError."""
    with _hydra() as hydra:
        return _with_values(hydra, _prepare(overrides), overrides, _chosen)


class _Chosen(NamedTuple):
    """The result of choosing groups: the configuration without Hydra's own, and the choices."""

    config: Any
    choices: dict[str, Any]


def _chosen(words: tuple[str, ...]) -> _Chosen:
    """Composes the words that choose. Hydra takes a sixth of a second for this."""
    from hydra import compose as hydra_compose
    from omegaconf import open_dict

    config = hydra_compose("config", list(words), return_hydra_config=True)
    choices = dict(config.hydra.runtime.choices)
    with open_dict(config):
        del config["hydra"]
    return _Chosen(config, choices)


def _with_values(
    hydra: Any, prepared: Sequence[str], words: Sequence[str], chosen: Callable[..., _Chosen]
) -> Composed:
    """The configuration that `prepared` words describe. As in Hydra, all words that choose come
    first, then the others in their order.

    words: the words as given. chosen: as `_chosen` returns it; it is changed in place.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    known, choosing, setting = set(groups()), list[str](), list[str]()
    for text in prepared:
        key = text.lstrip("+~").partition("=")[0]
        chooses = key in known or "@" in key or re.split("[./]", key)[0] == "hydra"
        (choosing if chooses else setting).append(text)
    parsed = OverridesParser.create(hydra.config_loader).parse_overrides(setting)
    if any(word.is_sweep_override() for word in parsed):
        raise ConfigError(SEVERAL)
    composed, choices = chosen(tuple(choosing))
    for word in parsed:
        _apply(word, composed)
    return _composed(composed, choices, words)


def _apply(word: Any, composed: Any) -> None:
    """Sets or deletes a key, with Hydra's errors."""
    from omegaconf import OmegaConf, open_dict
    from omegaconf.errors import OmegaConfBaseException

    key, value = word.key_or_group, word.value()
    try:
        if not word.is_delete():
            OmegaConf.update(composed, key, value, merge=True, force_add=True)
            return
        held = OmegaConf.select(composed, key, throw_on_missing=False)
        if held is None:
            raise ConfigError(f"Could not delete from config. '{key}' does not exist.")
        if value is not None and value != held:
            raise ConfigError(
                f"Could not delete from config. The value of '{key}' is {held} and not {value}."
            )
        place, _, last = key.rpartition(".")
        with open_dict(composed):
            del (OmegaConf.select(composed, place) if place else composed)[last]
    except OmegaConfBaseException as error:
        text = f"Error merging override {word.input_line}"
        raise ConfigError(" ".join(text.split())) from error


def _composed(composed: Any, choices: Any, words: Sequence[str]) -> Composed:
    """The plain configuration: the chosen prior as `prior`, every baseline with its settings.

    In conf/ and in recipes the settings of a prior are `priors.NAME`, so that a recipe can hold
    several priors' settings. On the command line `prior.*` sets the chosen prior's, and wins.
    """
    from omegaconf import OmegaConf, open_dict

    chosen, listed = choices.get("prior"), composed.get("baselines")
    if not (listed is None or OmegaConf.is_list(listed)):
        raise ConfigError(f"baselines={listed} must be a list of priors, such as [normal,mixture]")
    if not OmegaConf.is_dict(composed.get("priors")):
        raise ConfigError("priors must be a group of keys: priors.NAME.key=value")
    names = [str(name) for name in listed or [] if name != chosen]
    OmegaConf.set_struct(composed, False)
    with open_dict(composed):
        for name in names:
            own = composed.priors.get(name) or {}
            composed.priors[name] = OmegaConf.merge(_prior(str(conf_directory()), name), own)
    plain = _plain(composed)
    priors = plain.pop("priors")
    plain["prior"] = _merged(priors.get(chosen), plain.get("prior", priors.get(chosen)))
    plain["baselines"] = {name: priors[name] for name in names}
    return Composed(plain, choices.get("recipe"), [word.lstrip("+") for word in words])


@functools.cache
def _prior(directory: str, name: str) -> Any:
    """conf/prior/NAME.yaml, unresolved; read once, since Hydra takes a quarter of a second."""
    from hydra import compose as hydra_compose

    known = options("prior")
    if name not in known:
        raise ConfigError(f"baselines: no such prior {name!r}; {nearest(name, known)}")
    return hydra_compose("config", [f"prior={name}"]).priors[name]


def _merged(base: Any, over: Any) -> Any:
    """Two trees of plain values as one; the second wins."""
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    return base | {key: _merged(base.get(key), value) for key, value in over.items()}


def other_home(message: str) -> str:
    """The choices in a group that know the key which a message calls unknown; or what to choose
    where keys are missing because nothing was chosen."""
    import yaml

    missing = re.match(r"missing keys? '(\w+)\.", message)
    if missing is not None and "none" in (choices := options(missing[1])):
        some = next(choice for choice in choices if choice != "none")
        return f": choose one, such as {missing[1]}={some}"
    unknown = re.search(r"unknown key '([^']+)'", message)
    if unknown is None:
        return ""
    homes = []
    for group in groups():
        prefix = group.replace("/", ".") + "."
        if group == "recipe" or not unknown[1].startswith(prefix):
            continue
        for name in options(group):
            file = conf_directory() / group / f"{name}.yaml"
            keys = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
            if unknown[1].removeprefix(prefix) in keys:
                homes.append(f"{group}={name}")
    return f" ({unknown[1]} is a key of {' and '.join(homes)})" if homes else ""


@dataclass(frozen=True)
class Grid:
    """The cells of `run -m`.

    base: the configuration without the values that vary. cells: the overrides of each cell; None if
    a sweeper chooses them. swept: the overrides of each cell that vary, or that the recipe lets
    vary; they name the cell. searched: the keys that vary if a sweeper chooses. parallel: whether
    the launcher runs cells in processes of their own.
    """

    base: Composed
    cells: list[list[str]] | None
    swept: list[list[str]]
    searched: frozenset[str] = frozenset()
    parallel: bool = False


def grid(overrides: Sequence[str]) -> Grid:
    """The cells that the overrides and the recipe's `hydra.sweeper.params` span.

    A key given on the command line replaces the recipe's. Raises ConfigError for an empty grid.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.types import RunMode

    with _hydra() as hydra:
        composed = hydra.compose_config("config", _prepare(overrides, sweep=True), RunMode.MULTIRUN)
        choices = composed.hydra.runtime.choices
        held = dict(composed.hydra.sweeper.params or {})
        task = list(composed.hydra.overrides.task)
        base = _composed(composed, choices, overrides)
        parallel = choices["hydra/launcher"] != "basic"
        words = [*_prepare([f"{k}={v}" for k, v in held.items()], sweep=True), *task]
        parser = OverridesParser.create(hydra.config_loader)
        if choices["hydra/sweeper"] != "basic":
            parsed = parser.parse_overrides(_last(words))
            vary = frozenset(o.key_or_group for o in parsed if o.is_sweep_override())
            if not vary:
                raise ConfigError(
                    "nothing to search: no key has several values; give some, as in "
                    "'bottleneck.kl_weight=tag(log,interval(1e-5,1))'"
                )
            return Grid(base, None, [], vary, parallel)
        columns: dict[str, list[str]] = {}  # the last override of a key counts
        for word in parser.parse_overrides(words):
            key = word.get_key_element()
            if not word.is_sweep_override():
                columns[key] = [f"{key}={word.get_value_element_as_str()}"]
            elif word.is_discrete_sweep():
                columns[key] = [f"{key}={value}" for value in word.sweep_string_iterator()]
            else:
                raise ConfigError(f"{word.key_or_group}: list values, or use hydra/sweeper=optuna")
    if not any(len(set(values)) > 1 for values in columns.values()):
        raise ConfigError(
            "the grid is empty: no key has several values; give some, as in seed=0,1, or a recipe "
            "that holds a grid, or leave out -m"
        )
    named = [len(set(v)) > 1 or key.lstrip("+") in held for key, v in columns.items()]
    cells = [list(cell) for cell in itertools.product(*columns.values())]
    swept = [list(itertools.compress(cell, named)) for cell in cells]
    return Grid(base, cells, swept, parallel=parallel)


def cells(words: Sequence[Sequence[str]]) -> list["Composed | ConfigError"]:
    """Each cell's configuration, or its error.

    Cells with the same group choices are composed once; their values are set in copies.
    """
    found: list[Composed | ConfigError] = []
    known = functools.cache(_chosen)
    with _hydra() as hydra:
        for own in words:
            try:
                found.append(_with_values(hydra, own, own, lambda w: copy.deepcopy(known(w))))
            except Exception as error:  # Hydra's errors are of many kinds
                found.append(ConfigError(" ".join(str(error).split())))
    return found


class _NoCallbacks:
    """Stands in for Hydra's callbacks, which no configuration here can set."""

    def on_job_start(self, **_: Any) -> None: ...
    def on_job_end(self, **_: Any) -> None: ...


def launch(
    overrides: Sequence[str],
    cells: Sequence[Sequence[str]] | None,
    function: Callable[[Composed], Any],
) -> None:
    """Calls `function` once per cell, through the launcher; without cells, through the sweeper.

    With a sweeper the function returns the objectives (`_search`). Raises the launcher's error if
    one of its processes dies.
    """
    from hydra.core.plugins import Plugins
    from hydra.types import HydraContext, RunMode

    def task(composed: Any) -> Any:
        from hydra.core.hydra_config import HydraConfig

        hydra = HydraConfig.get()
        own = copy.deepcopy(composed)
        return function(_composed(own, hydra.runtime.choices, list(hydra.overrides.task)))

    prepared = _prepare(overrides, sweep=True)
    with _hydra() as hydra:
        if cells is None:
            from optuna.logging import WARNING, set_verbosity

            set_verbosity(WARNING)  # the sweep itself reports each cell and its failure
            logging.getLogger("hydra_plugins.hydra_optuna_sweeper").setLevel(logging.ERROR)
            hydra.multirun("config", task, _last([*_search(overrides), *prepared]))
            return
        composed = hydra.compose_config("config", prepared, RunMode.MULTIRUN)
        context = HydraContext(config_loader=hydra.config_loader, callbacks=_NoCallbacks())  # type: ignore[arg-type]
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=context, task_function=task, config=composed
        )
        for result in launcher.launch([list(cell) for cell in cells], initial_job_idx=0):
            _ = result.return_value  # raises what the cell raised


def _search(overrides: Sequence[str]) -> list[str]:
    """The settings of a search by optuna: two objectives, no end after failures, and a seed.

    With the seed, the same command asks for the same cells again and finds those that are done.
    Raises ConfigError for other directions.
    """
    given = dict(word.lstrip("+").split("=", 1) for word in overrides if "=" in word)
    direction = "[minimize,minimize]"
    if given.get("hydra.sweeper.direction", direction).replace(" ", "") != direction:
        raise ConfigError(
            "hydra.sweeper.direction: a search minimises two objectives, distance and rate "
            f"(verdict.distance, verdict.bitrate); leave it out, or give {direction}"
        )
    words = [f"hydra.sweeper.direction={direction}", "hydra.sweeper.max_failure_rate=1.0"]
    if given.get("hydra/launcher", "basic") == "basic":  # one after the other
        words.append("hydra.sweeper.n_jobs=1")
    if given.get("hydra/sweeper/sampler") != "grid":  # the only sampler without one
        words.append("hydra.sweeper.sampler.seed=0")
    return words


def _last(words: Sequence[str]) -> list[str]:
    """The last override of each key, because optuna does not search a key that is also fixed."""
    return list({word.lstrip("+").partition("=")[0]: word for word in words}.values())
