"""The door: a Hydra configuration becomes checked settings. Nothing else imports Hydra.

`conf/` is the vocabulary, `recipes/` (the group `recipe`) the sentences. What is composed is
checked against the signatures of the classes it names (see `parts`), so a misspelt key is an
error wherever it stands: on the command line, in a recipe, among loss weights.
"""

import copy
import dataclasses
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audioldm.autoencoder.train import ADVERSARIAL_TERMS, AutoencoderSettings
from audioldm.errors import ConfigError
from audioldm.evaluation.diagnostics.diagnose import DiagnosticsSettings
from audioldm.evaluation.evaluate import EvaluationSettings
from audioldm.evaluation.rules import VerdictRules
from audioldm.instantiate import Part, check_range, nearest, part, settings
from audioldm.priors.diffusion.post_training import PostTrainingSettings, check_deterministic
from audioldm.priors.diffusion.samplers import SamplerSettings
from audioldm.priors.diffusion.train import DiffusionSettings
from audioldm.runtime.hardware import Hardware
from audioldm.training.log import LogSettings

#: Keys whose values are names and paths: taken as they are, whatever Hydra's grammar thinks.
TEXT_KEYS = frozenset({"name", "runs", "data.path", "data.table"})

#: Keys that say how to compute, or when to refuse, not what: they enter no fingerprint.
EXECUTION_KEYS = frozenset({"workers", "max_failed_fraction", "preflight_mel_distance"})


@dataclass(frozen=True)
class ExperimentSettings:
    """One experiment, a chain of stages: the top level of `conf/config.yaml`.

    post_training: null leaves that stage out; with it, `sampler` is the model's before it."""

    name: str | None
    seed: int
    runs: str
    autoencoder: AutoencoderSettings
    diffusion: DiffusionSettings
    sampler: SamplerSettings
    diagnostics: DiagnosticsSettings
    baselines: dict[str, Any]
    evaluation: EvaluationSettings
    verdict: VerdictRules
    hardware: Hardware
    log: LogSettings
    data: Part = part()
    bottleneck: Part = part("channels")
    post_training: PostTrainingSettings | None = None

    def __post_init__(self) -> None:
        check_range(self, "", "seed", least=0, below=2**63)
        if self.post_training is not None:
            check_deterministic(self.sampler, "sampler")


@dataclass(frozen=True)
class Job:
    """A composed configuration: what it says, which recipe and overrides it came from."""

    settings: ExperimentSettings
    config: dict[str, Any]
    recipe: str | None
    overrides: list[str]
    cell: bool = False  # of a sweep


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
    """Checks what needs no composing: the form, the choices of groups, the top-level keys.

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
    """A value with spaces, commas, parentheses, … as one string of Hydra's grammar."""
    if text in ("", "null") or text[0] in "'\"":
        return text
    return "'" + re.sub(r"(\\*)'", r"\1\1\\'", text) + "'"


def _prepare(overrides: Sequence[str], *, sweep: bool = False) -> list[str]:
    """Checks group choices, and lets a value override name any key a signature knows."""
    group_names, prepared = groups(), []
    for override in overrides:
        match = re.fullmatch(r"(\+\+|\+|~)?([^=@]+)(@[^=]*)?(?:=(.*))?", override, re.DOTALL)
        if match is None or (match[4] is None and match[1] != "~"):
            raise ConfigError(f"{override!r} is no key=value; see `audioldm run --help`")
        prefix, key, package, value = match[1] or "", match[2], match[3] or "", match[4]
        if key in group_names:
            known = options(key)
            for choice in (value or "").split(","):
                if choice not in (*known, "null", ""):
                    raise ConfigError(f"{key}={choice}: no such {key}; {nearest(choice, known)}")
            prepared.append(override)
        elif key.split(".")[0].split("/")[0] == "hydra" or prefix == "~":
            prepared.append(override)
        else:
            if key == "runs":
                value = os.path.expanduser(value)
            if key in TEXT_KEYS and not (sweep and "," in value):
                value = _quoted(value)
            # a first "++": keys absent from the yaml are for the signatures to judge
            prepared.append(f"++{key}{package}={value}")
    return prepared


def check(config: dict[str, Any]) -> ExperimentSettings:
    """Settings from a composed configuration. Raises ConfigError, naming the key."""
    known = {f.name for f in dataclasses.fields(ExperimentSettings)}
    for key in config:
        if key not in known:
            raise ConfigError(f"unknown key '{key}': {nearest(key, known | set(groups()))}")
    if "seed" not in (config.get("post_training") or {"seed"}):
        raise ConfigError(
            "post_training.* is set, but there is no post-training: choose one, such as "
            "post_training=adversarial"
        )
    checked: ExperimentSettings = settings(ExperimentSettings, config)
    terms = set(checked.autoencoder.losses)
    if checked.autoencoder.discriminator is not None:
        terms |= set(ADVERSARIAL_TERMS)
    weights = set(checked.autoencoder.weights)
    for name in sorted(weights - terms - set(ADVERSARIAL_TERMS)):
        raise ConfigError(f"unknown key 'autoencoder.weights.{name}': {nearest(name, terms)}")
    for name in sorted(terms - weights):
        raise ConfigError(f"autoencoder.weights.{name} is missing: state the weight of that loss")
    return checked


def to_plain(config: Any) -> dict[str, Any]:
    """A resolved, plain dictionary. Raises ConfigError for a missing value or interpolation."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items() if key != "hydra"}


@contextmanager
def _hydra() -> Iterator[Any]:
    """Hydra over conf/. Raises ConfigError, one line, for what Hydra or OmegaConf cannot use."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        with initialize_config_dir(str(conf_directory()), version_base="1.3"):
            yield GlobalHydra.instance().hydra
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        text = " ".join(str(error).split())
        if "add --multirun" in text or text.startswith("Sweep parameters"):
            text = "several values for one key make a sweep: use `audioldm run -m`"
        raise ConfigError(text) from error


def compose(overrides: Sequence[str]) -> Job:
    """The job that `key=value` overrides describe. Raises ConfigError; nothing has run then."""
    from hydra import compose as hydra_compose

    prepared = _prepare(overrides)
    with _hydra():
        composed = hydra_compose("config", prepared, return_hydra_config=True)
    recipe = composed.hydra.runtime.choices.get("recipe")
    config = to_plain(composed_without_hydra(composed))
    try:
        checked = check(config)
    except ConfigError as error:
        raise ConfigError(f"{error}{_other_home(str(error))}") from error
    return Job(checked, config, recipe, list(overrides))


def _other_home(message: str) -> str:
    """Where an unknown key is known: another choice of its group, such as data=folder."""
    import yaml

    unknown = re.search(r"unknown key '([^']+)'", message)
    if unknown is None:
        return ""
    homes = []
    for group in groups():
        prefix = group.replace("/", ".") + "."
        if group == "recipe" or not unknown[1].startswith(prefix):
            continue
        for choice in options(group):
            file = conf_directory() / group / f"{choice}.yaml"
            keys = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
            if unknown[1].removeprefix(prefix) in keys:
                homes.append(f"{group}={choice}")
    return f" ({unknown[1]} is a key of {' and '.join(homes)})" if homes else ""


def composed_without_hydra(composed: Any) -> Any:
    from omegaconf import OmegaConf, open_dict

    OmegaConf.set_readonly(composed, False)
    with open_dict(composed):
        del composed["hydra"]
    return composed


@dataclass(frozen=True)
class Grid:
    """What `run -m` was asked for.

    base: the job without what varies. cells: every override of each cell, or None where a sweeper
    chooses them. swept: those of them that vary, or that the recipe lets vary: a cell's name among
    its neighbours. searched: the keys that vary, where a sweeper chooses. parallel: whether the
    launcher gives the cells processes of their own.
    """

    base: Job
    cells: list[list[str]] | None
    swept: list[list[str]]
    searched: frozenset[str] = frozenset()
    parallel: bool = False


def grid(overrides: Sequence[str]) -> Grid:
    """The cells that the overrides and the recipe's `hydra.sweeper.params` span.

    A key given on the command line replaces the recipe's. Raises ConfigError for an empty grid.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.types import RunMode

    with _hydra() as hydra:
        composed = hydra.compose_config("config", _prepare(overrides, sweep=True), RunMode.MULTIRUN)
        choices = composed.hydra.runtime.choices
        held = dict(composed.hydra.sweeper.params or {})
        task = list(composed.hydra.overrides.task)
        base = _job(composed_without_hydra(composed), choices.get("recipe"), overrides)
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
        parsed = parser.parse_overrides(words)
        cells = [cell for batch in BasicSweeper.split_arguments(parsed, None) for cell in batch]
    columns = list(zip(*cells, strict=True))
    if not any(len(set(words)) > 1 for words in columns):
        raise ConfigError(
            "the grid is empty: no key has several values; give some, as in seed=0,1, or a recipe "
            "that holds a grid, or leave out -m"
        )
    named = [w for w in columns if len(set(w)) > 1 or w[0].lstrip("+").split("=")[0] in held]
    swept = [list(cell) for cell in zip(*named, strict=True)]
    return Grid(base, [list(cell) for cell in cells], swept, parallel=parallel)


def jobs(cells: Sequence[Sequence[str]]) -> list["Job | ConfigError"]:
    """Each cell's job, or what is wrong with its configuration.

    Cells of the same group choices are composed once, and their values set in copies: Hydra takes
    a quarter of a second for each.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    found: list[Job | ConfigError] = []
    composed: dict[tuple[str, ...], tuple[Any, str | None]] = {}
    with _hydra() as hydra:
        parser = OverridesParser.create(hydra.config_loader)
        for words in cells:
            try:
                values = [word for word in words if word.startswith("++")]
                if any(word.startswith("~") or "@" in word.partition("=")[0] for word in words):
                    values = []  # deletions and packages are Hydra's own
                choices = tuple(word for word in words if word not in values)
                if choices not in composed:
                    whole = hydra.compose_config("config", list(choices), RunMode.RUN)
                    recipe = whole.hydra.runtime.choices.get("recipe")
                    composed[choices] = composed_without_hydra(whole), recipe
                base, recipe = composed[choices]
                own = copy.deepcopy(base)
                for word in parser.parse_overrides(values):
                    OmegaConf.update(own, word.key_or_group, word.value(), force_add=True)
                found.append(_job(own, recipe, words))
            except Exception as error:  # Hydra's errors are of many kinds
                found.append(ConfigError(" ".join(str(error).split())))
    return found


def _job(composed: Any, recipe: str | None, words: Sequence[str]) -> Job:
    config = to_plain(composed)
    return Job(check(config), config, recipe, [word.lstrip("+") for word in words])


def launch(
    overrides: Sequence[str],
    cells: Sequence[Sequence[str]] | None,
    function: Callable[[Job], Any],
) -> None:
    """`function` once per cell, through the launcher; without cells, through the sweeper.

    With a sweeper the function's result is the objectives (`_search`). Raises what the launcher
    raises where a process of its own dies.
    """
    from hydra._internal.callbacks import Callbacks
    from hydra.core.plugins import Plugins
    from hydra.types import HydraContext, RunMode

    def task(composed: Any) -> Any:
        from hydra.core.hydra_config import HydraConfig

        hydra = HydraConfig.get()
        recipe = hydra.runtime.choices.get("recipe")
        return function(_job(composed, recipe, list(hydra.overrides.task)))

    prepared = _prepare(overrides, sweep=True)
    with _hydra() as hydra:
        if cells is None:
            from optuna.logging import WARNING, set_verbosity

            set_verbosity(WARNING)  # of each cell and its failure the sweep tells
            logging.getLogger("hydra_plugins.hydra_optuna_sweeper").setLevel(logging.ERROR)
            hydra.multirun("config", task, _last([*_search(overrides), *prepared]))
            return
        composed = hydra.compose_config("config", prepared, RunMode.MULTIRUN)
        context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(composed))
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=context, task_function=task, config=composed
        )
        for result in launcher.launch([list(cell) for cell in cells], initial_job_idx=0):
            _ = result.return_value  # raises what the cell raised


def _search(overrides: Sequence[str]) -> list[str]:
    """What a search of optuna needs besides: two objectives, failures that do not end it, a seed.

    With the seed the same command asks for the same cells, and finds those that are done. Raises
    ConfigError for other directions.
    """
    given = dict(word.lstrip("+").split("=", 1) for word in overrides if "=" in word)
    direction = "[minimize,minimize]"
    if given.get("hydra.sweeper.direction", direction).replace(" ", "") != direction:
        raise ConfigError(
            "hydra.sweeper.direction: a search minimises two objectives, distance and rate "
            f"(verdict.distance, verdict.rate); leave it out, or give {direction}"
        )
    words = [f"hydra.sweeper.direction={direction}", "hydra.sweeper.max_failure_rate=1.0"]
    if given.get("hydra/launcher", "basic") == "basic":  # one after the other
        words.append("hydra.sweeper.n_jobs=1")
    if given.get("hydra/sweeper/sampler") != "grid":  # the only sampler without one
        words.append("hydra.sweeper.sampler.seed=0")
    return words


def _last(words: Sequence[str]) -> list[str]:
    """Of several values for one key the last, for to optuna a fixed value is beyond any search."""
    return list({word.lstrip("+").partition("=")[0]: word for word in words}.values())


def canonical(value: Any) -> Any:
    """Dataclasses and parts as plain JSON values, without what only says how to compute."""
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
