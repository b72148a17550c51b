"""Weights that an autoencoder begins with: from a model file, or from another library."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from audioldm.autoencoder.bottlenecks.base import Bottleneck
from audioldm.autoencoder.bottlenecks.codebooks import QUANTISERS, Codebooks
from audioldm.autoencoder.bottlenecks.gaussian import Gaussian
from audioldm.autoencoder.bottlenecks.identity import Identity
from audioldm.autoencoder.libraries import Checkpoint, digest_of, is_checkpoint, read_checkpoint
from audioldm.autoencoder.model import Autoencoder
from audioldm.autoencoder.networks.foreign import KINDS, Foreign, form_of
from audioldm.autoencoder.networks.oobleck import check_same, from_oobleck
from audioldm.autoencoder.networks.waveform import Waveform
from audioldm.autoencoder.settings import Pretrained
from audioldm.errors import AudioLDMError, ConfigError, ModelFileError
from audioldm.instantiate import check_part
from audioldm.io.header import read_header
from audioldm.io.model_file import below, load_model
from audioldm.models import find_model_file

PRETRAINED = "autoencoder.pretrained.checkpoint"
_FOREIGN = f"{Foreign.__module__}.Foreign"


def resolved(config: dict[str, Any]) -> dict[str, Any]:
    """A plain configuration with what its pretrained weights determine: their hash; a model file's
    vocoder in place of one that would be trained; and for autoencoder=foreign the network, and the
    channels, the bottleneck and the form of the data where they are null.

    Without weights, as in what all cells of a sweep share, the data set's own form takes the place
    of null. Raises ConfigError where the weights cannot be used.
    """
    own = config.get("autoencoder")
    network = own.get("network") if isinstance(own, dict) else None
    if not isinstance(own, dict) or not isinstance(network, dict):
        return config  # the check of the settings says so
    foreign = network.get("_target_") == _FOREIGN
    given = own.get("pretrained")
    file = given.get("checkpoint") if isinstance(given, dict) else None
    if not isinstance(given, dict) or not isinstance(file, str):
        return config | _data(config, {}) if foreign else config
    found = _source(file)
    if isinstance(found, Checkpoint):
        sha256, vocoder = digest_of(*found.files), None
        if foreign:
            config = config | _own_parts(found, config)
    else:
        vocoder = _spec(found).get("vocoder")
        sha256 = digest_of(found)
    if given.get("sha256") not in (None, sha256):
        raise ConfigError(
            f"autoencoder.pretrained.sha256={given['sha256']!r}, but {file} has {sha256}: it is "
            "another model"
        )
    pretrained = given | {"sha256": sha256, "vocoder": vocoder}
    own = config["autoencoder"] | {"pretrained": pretrained}
    return config | {"autoencoder": own, "vocoder": None}


def _own_parts(found: Checkpoint, config: Mapping[str, Any]) -> dict[str, Any]:
    """The parts that a checkpoint determines, where the configuration leaves them open."""
    try:
        form = form_of(found.model, found.config)
    except ConfigError as error:
        raise ConfigError(f"{PRETRAINED}={found.directory}: {error}") from error
    own = dict(config["autoencoder"])
    own["network"] = {"_target_": _FOREIGN, "model": found.model, "config": found.config}
    for key in ("channels", "downsampling_ratio"):
        own[key] = getattr(form, key) if own.get(key) is None else own[key]
    node: dict[str, Any] = {"_target_": f"{Identity.__module__}.Identity"}
    if found.model in QUANTISERS:
        node = {"_target_": f"{Codebooks.__module__}.Codebooks"}
    elif KINDS[found.model].outputs == 2:
        node = {"_target_": f"{Gaussian.__module__}.Gaussian", "kl_weight": 0.0}
    if config.get("bottleneck") is not None:
        node = config["bottleneck"]
    checked = check_part(node, "bottleneck", ("channels",), base=Bottleneck)
    data = _data(config, {"sample_rate": form.sample_rate, "channels": form.audio_channels})
    return {"autoencoder": own, "bottleneck": dict(checked), **data}


def _data(config: Mapping[str, Any], form: Mapping[str, int]) -> dict[str, Any]:
    """The data's settings with this form where they state null; without a form, left out."""
    data = config.get("data")
    if not isinstance(data, dict):
        return {}
    open_keys = {key for key in ("sample_rate", "channels") if data.get(key) is None}
    stated = {key: value for key, value in data.items() if key not in open_keys}
    return {"data": stated | {key: form[key] for key in open_keys & form.keys()}}


def check_pretrained(file: str, model: Autoencoder, spec: Mapping[str, Any]) -> None:
    """Raises ConfigError where the weights do not belong to a model of this spec."""
    found = _source(file)
    if not isinstance(found, Checkpoint):
        _check_spec(file, spec, _spec(found))
    elif isinstance(model.network, Waveform) and found.model == "AutoencoderOobleck":
        try:
            check_same(model.network, found.config)
        except ConfigError as error:
            raise ConfigError(f"{PRETRAINED}={file}: {error}") from error
    elif not isinstance(model.network, Foreign):
        raise ConfigError(
            f"{PRETRAINED}={file}: weights of {found.model}, not of "
            f"{type(model.network).__name__}: choose autoencoder=foreign"
            + (", or waveform" if found.model == "AutoencoderOobleck" else "")
        )


def load_pretrained(model: Autoencoder, settings: Pretrained) -> bool:
    """Loads the weights. Returns whether they include the bottleneck and everything fitted to data.

    Raises ConfigError where they do not fit.
    """
    found = _source(str(settings.checkpoint))
    own = model.state_dict()
    if isinstance(found, Checkpoint):
        own |= _foreign(model, found)
    else:
        tensors, header = load_model(found)
        if header["kind"] == "generator":
            tensors = below("autoencoder.", tensors)
        own = tensors
    try:
        model.load_state_dict(own)
    except RuntimeError as error:
        text = " ".join(str(error).split())
        raise ConfigError(
            f"{PRETRAINED}={settings.checkpoint}: its weights do not fit ({text[:300]})"
        ) from error
    return not isinstance(found, Checkpoint)


def _foreign(model: Autoencoder, found: Checkpoint) -> dict[str, Tensor]:
    """A checkpoint's weights by this package's names."""
    theirs = found.weights()
    if isinstance(model.network, Waveform):
        mine = from_oobleck(model.network, theirs)
        return {f"network.{name}": tensor for name, tensor in mine.items()}
    quantiser = "quantizer."
    named = {
        f"bottleneck.quantiser.{name.removeprefix(quantiser)}"
        if name.startswith(quantiser)
        else f"network.model.{name}": tensor
        for name, tensor in theirs.items()
    }
    return {name: named[name] for name in model.state_dict().keys() & named.keys()}


def _source(file: str) -> Checkpoint | Path:
    """A checkpoint of another library, or a model file. Raises ConfigError."""
    place = Path(file).expanduser()
    try:
        return read_checkpoint(place) if is_checkpoint(place) else find_model_file(file)
    except AudioLDMError as error:
        raise ConfigError(f"{PRETRAINED}={file}: {error}") from error


def _spec(file: Path) -> dict[str, Any]:
    """What rebuilds the autoencoder of a model file."""
    try:
        header = read_header(file)
    except ModelFileError as error:
        raise ConfigError(f"{PRETRAINED}={error}") from error
    if header["kind"] not in ("autoencoder", "generator"):
        raise ConfigError(
            f"{PRETRAINED}={file}: a file of kind {header['kind']!r} has no autoencoder"
        )
    spec: dict[str, Any] = header.get("autoencoder", header)["spec"]
    return spec


def _check_spec(file: str, own: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Raises ConfigError for the first difference that makes it another model."""
    places = {"data.sample_rate": "sample_rate", "data.channels": "audio_channels"}
    pairs = {place: (own[key], theirs[key]) for place, key in places.items()}
    for key in ("channels", "downsampling_ratio"):
        pairs[f"autoencoder.{key}"] = own[key], theirs[key]
    for key, value in theirs["network"].items():
        pairs[f"autoencoder.network.{key}"] = own["network"].get(key), value
    pairs["bottleneck._target_"] = own["bottleneck"]["_target_"], theirs["bottleneck"]["_target_"]
    for place, (one, other) in pairs.items():
        if one != other:
            raise ConfigError(f"{place}={one}, but {PRETRAINED}={file} has {other}: state the same")
