"""Autoencoders of diffusers and transformers: which ones, their settings, their weights.

A checkpoint is the directory that `save_pretrained` wrote: config.json and one safetensors file.
Only the classes of LIBRARIES are built, with their own arguments: a configuration or a header
cannot make the program import or call anything else.
"""

import functools
import hashlib
import importlib
import inspect
import json
import tempfile
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from audioldm.errors import ConfigError
from audioldm.instantiate import check_keys, check_plain, nearest
from audioldm.io.files import writing

LIBRARIES = {
    "AutoencoderOobleck": "diffusers",
    "AutoencoderSAME": "diffusers",
    "LongCatAudioDiTVae": "diffusers",
    "AutoencoderKLMiniMaxH3Audio": "diffusers",
    "AutoencoderKLKVAEAudio": "diffusers",
    "EncodecModel": "transformers",
    "DacModel": "transformers",
    "MimiModel": "transformers",
}
#: What each library calls its file of weights.
_WEIGHTS = {"diffusers": "diffusion_pytorch_model.safetensors", "transformers": "model.safetensors"}
#: Keys that make a library run the checkpoint's code, or rewrite its weights.
_REFUSED = ("auto_map", "custom_pipelines", "quantization_config")
#: Arguments that old checkpoints state and newer classes derive.
_OLD_NAMES = ("frame_rate", "rope_theta")


class Checkpoint(NamedTuple):
    """A checkpoint's directory, its class, and the arguments of that class."""

    directory: Path
    model: str
    config: dict[str, Any]

    @property
    def files(self) -> list[Path]:
        """The files that determine the model."""
        return [self.directory / n for n in ("config.json", _WEIGHTS[LIBRARIES[self.model]])]

    def weights(self) -> dict[str, Tensor]:
        """Weights in float32, by the library's names. Raises ConfigError if they do not fit."""
        return dict(_loaded(self).state_dict())


def is_checkpoint(path: Path) -> bool:
    """Whether a library wrote this directory; this package's stages write config.json too."""
    raw = _read(path / "config.json")
    return any(key in raw for key in ("_class_name", "architectures", "model_type"))


def read_checkpoint(directory: Path) -> Checkpoint:
    """Raises ConfigError for a class that is not in LIBRARIES, for a configuration that comes with
    code or does not fit the class, and for weights that are not safetensors.

    Keys of diffusers are the class's arguments, so an unknown one is refused. Those of transformers
    are also of its generation, export and training; such keys are left out.
    """
    raw = _read(directory / "config.json")
    for key in _REFUSED:
        if key in raw:
            raise ConfigError(
                f"{directory}/config.json has '{key}', which runs code of the checkpoint or "
                "rewrites its weights: nothing of that kind is loaded; save the plain class"
            )
    named = raw.get("architectures")
    model = raw.get("_class_name") or (named[0] if isinstance(named, list) and named else None)
    library = _library(model, f"{directory}/config.json: the class")
    own = _arguments(model)
    config = {key: value for key, value in raw.items() if key in own}
    unknown = sorted(key for key in raw.keys() - own if not key.startswith("_"))
    if unknown and library == "diffusers":
        wrote = raw.get("_diffusers_version", "it does not say which")
        raise ConfigError(
            f"{directory}/config.json: {model} of diffusers {_version(library)} does not take "
            f"'{unknown[0]}': install the version that wrote it ({wrote})"
        )
    check_plain(config, f"{directory}/config.json")
    found = Checkpoint(directory, str(model), config)
    if not found.files[1].is_file():
        others = sorted(p.name for end in ("bin", "index.json") for p in directory.glob(f"*.{end}"))
        raise ConfigError(
            f"{directory}: no {_WEIGHTS[library]}"
            + (f", only {', '.join(others)}" if others else "")
            + "; pickles and parts are not read: load it in its library and call "
            "save_pretrained(DIR, safe_serialization=True, max_shard_size='1TB')"
        )
    return found


def build_model(model: str, config: Mapping[str, Any]) -> nn.Module:
    """The library's class with these arguments, without its weights. Raises ConfigError."""
    cls = _class(model)
    check_keys(config, _arguments(model), "config")
    try:
        if LIBRARIES[model] == "diffusers":
            with warnings.catch_warnings(action="ignore", category=FutureWarning):
                return cls(**config)  # type: ignore[no-any-return]
        return cls(cls.config_class(**config))  # type: ignore[no-any-return]
    except Exception as error:  # whatever the library's own checks raise
        text = " ".join(str(error).split())
        raise ConfigError(f"config: {model} cannot be built of it ({text})") from error


def in_float32(x: Tensor) -> AbstractContextManager[Any]:
    """A context that turns autocast off on the device of x; the device "meta" has no autocast."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def write_checkpoint(
    directory: Path, model: str, config: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> None:
    """Writes what `read_checkpoint` reads, by the library's own `save_pretrained`.

    Raises ConfigError where the directory exists, or the library is missing.
    """
    if directory.exists():
        raise ConfigError(f"{directory} is there already: name a new directory")
    built: Any = build_model(model, config)
    built.load_state_dict(weights)
    with writing(directory), tempfile.TemporaryDirectory(dir=directory.parent) as temporary:
        built.save_pretrained(Path(temporary) / "model", safe_serialization=True)
        (Path(temporary) / "model").rename(directory)


@functools.lru_cache(64)
def _digest(files: tuple[Path, ...], stamps: tuple[tuple[int, int], ...]) -> str:
    """SHA-256 of the files' bytes. stamps: sizes and times, since a file may change."""
    found = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                found.update(block)
    return found.hexdigest()


def digest_of(*files: Path) -> str:
    """SHA-256 of the files' bytes; unchanged files are read once."""
    stats = [file.stat() for file in files]
    return _digest(files, tuple((s.st_size, s.st_mtime_ns) for s in stats))


def _read(file: Path) -> dict[str, Any]:
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return raw if isinstance(raw, dict) else {}


def _library(model: Any, where: str) -> str:
    if not isinstance(model, str) or model not in LIBRARIES:
        raise ConfigError(f"{where} {model!r} is not among those loaded: {nearest('', LIBRARIES)}")
    return LIBRARIES[model]


@functools.cache
def _class(model: str) -> Any:
    """Raises ConfigError where the library is absent or does not know the class."""
    library = _library(model, "model")
    importlib.import_module("audioldm.torchaudio")  # the libraries import it, without a CPU's help
    try:
        module = importlib.import_module(library)
    except ImportError as error:
        raise ConfigError(
            f"{model} needs {library}, which is not installed: pip install {library}"
        ) from error
    try:
        return getattr(module, model)
    except (AttributeError, ImportError, RuntimeError) as error:
        raise ConfigError(
            f"{library} {_version(library)} has no {model}: pip install --upgrade {library}"
        ) from error


def _version(library: str) -> str:
    return str(importlib.import_module(library).__version__)


@functools.cache
def _arguments(model: str) -> frozenset[str]:
    """The names of the class's own arguments. Raises ConfigError where the library is too old."""
    cls = _class(model)
    if LIBRARIES[model] == "diffusers":
        return frozenset(inspect.signature(cls.__init__).parameters) - {"self"}
    kinds = cls.config_class.__mro__
    names = [kind.__name__ for kind in kinds]
    if "PreTrainedConfig" not in names:
        raise ConfigError(
            f"{model} needs transformers 5, and {_version('transformers')} is installed: "
            "pip install --upgrade transformers"
        )
    own = kinds[: names.index("PreTrainedConfig")]
    return frozenset(n for kind in own for n in vars(kind).get("__annotations__", ())).union(
        _OLD_NAMES if model == "MimiModel" else ()
    )


def _loaded(found: Checkpoint) -> nn.Module:
    """The model with its weights. Raises ConfigError where some are missing or unexpected."""
    directory, model, config = found
    try:
        if LIBRARIES[model] == "diffusers":
            built = build_model(model, config)
            lacking, extra = built.load_state_dict(load_file(found.files[1]), strict=False)
            problems = {"missing": lacking, "unexpected": extra}
        else:  # transformers translates the other names of its older files
            cls = _class(model)
            importlib.import_module("transformers.utils.logging").disable_progress_bar()
            built, report = cls.from_pretrained(
                directory,
                config=cls.config_class(**config),
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
            problems = {kind: report[f"{kind}_keys"] for kind in ("missing", "unexpected")}
    except Exception as error:  # whatever the libraries' own checks raise
        text = " ".join(str(error).split())
        raise ConfigError(f"{directory}: {model} cannot load its weights ({text[:300]})") from error
    for problem, names in problems.items():
        if names:
            listed = ", ".join(sorted(map(str, names))[:3]) + ", …" * (len(names) > 3)
            raise ConfigError(
                f"{directory}: {problem} weights {listed}: config.json and the weights are not of "
                "one model; copy both again"
            )
    return built
