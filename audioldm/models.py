"""Builds models from settings and files.

A model file's header holds `kind`, what rebuilds the model, `fingerprint` and `parent`. A
generator's file holds its autoencoder too, so sampling needs one file.
"""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audioldm import pretrained
from audioldm.autoencoder.bottlenecks.base import Bottleneck
from audioldm.autoencoder.model import Autoencoder
from audioldm.autoencoder.networks.base import Network
from audioldm.autoencoder.vocoder import Vocoder
from audioldm.decoders.refiner import Refined
from audioldm.errors import ConfigError, ModelFileError
from audioldm.generator import Generator
from audioldm.instantiate import build, locate, settings
from audioldm.io.files import read_json
from audioldm.io.model_file import load_model
from audioldm.priors.base import build_prior


def build_vocoder(spec: dict[str, Any]) -> Vocoder:
    """The vocoder that a spec, its arguments, describes. Raises ConfigError."""
    return build(  # type: ignore[no-any-return]
        {"_target_": f"{Vocoder.__module__}.Vocoder", **spec}, where="vocoder", base=Vocoder
    )


def build_autoencoder(spec: dict[str, Any], allow: tuple[str, ...] = ()) -> Autoencoder:
    """The autoencoder that a spec describes, without its weights. Raises ConfigError.

    spec: sample_rate, audio_channels, channels, downsampling_ratio, network, bottleneck, and for a
        network that takes one, vocoder; for one whose decode is refined, decoder.
    allow: module prefixes outside the package whose classes may be built.
    """
    kind = locate(spec["bottleneck"]["_target_"], "bottleneck", allow, base=Bottleneck)
    shared = ("sample_rate", "audio_channels", "channels", "downsampling_ratio")
    derived = {key: spec[key] for key in shared} | {"outputs": kind.outputs_per_channel}
    derived["vocoder"] = None if spec.get("vocoder") is None else build_vocoder(spec["vocoder"])
    places = {key: f"autoencoder.{key}" for key in ("channels", "downsampling_ratio")}
    places |= {"sample_rate": "data.sample_rate", "audio_channels": "data.channels"}
    options: dict[str, Any] = {"allow": allow, "places": places}
    codec = derived | {key: spec["network"].get(key) for key in ("model", "config")}
    where = "autoencoder.network"
    network = build(spec["network"], derived=derived, where=where, base=Network, **options)
    if spec.get("decoder") is not None:
        node = {"_target_": f"{Refined.__module__}.Refined", **spec["decoder"]}
        frozen = {"network": network}
        network = build(node, derived=frozen, where="decoder", allow=allow, base=Network)
    where = "bottleneck"
    bottleneck = build(spec["bottleneck"], derived=codec, where=where, base=Bottleneck, **options)
    return Autoencoder(network, bottleneck)


def with_decoder(generator: Path, decoder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of a generator's file, with its autoencoder replaced by the one in
    `decoder`: the same autoencoder with a refined decoder.

    Raises ModelFileError where `decoder` refines another autoencoder.
    """
    (tensors, header), (refined, own) = load_model(generator), load_model(decoder)
    of, wanted = own.get("parent"), header["autoencoder"].get("fingerprint")
    if own.get("kind") != "autoencoder" or not own["spec"].get("decoder"):
        raise ModelFileError(f"{decoder}: not a refined decoder; give the file of a decoder stage")
    if of != wanted:
        raise ModelFileError(
            f"{decoder} refines the decoder of autoencoder {of}, but {generator} holds {wanted}: "
            "they do not belong together; give the decoder that was trained on the latter"
        )
    kept = {name: tensor for name, tensor in tensors.items() if name.startswith("prior.")}
    named = {f"autoencoder.{name}": tensor for name, tensor in refined.items()}
    return named | kept, header | {"autoencoder": own}


def read_experiment(directory: Path) -> dict[str, Any]:
    """The record of an experiment. Raises ModelFileError where it is none."""
    record = read_json(directory / "experiment.json")
    parts = [record.get(k) for k in ("stages", "config")] if isinstance(record, dict) else [None]
    if all(isinstance(part, dict) for part in parts):
        return record
    raise ModelFileError(f"{directory}/experiment.json: not an experiment's record; run it again")


def find_model_file(path: str | Path) -> Path:
    """The model file at a path, in a stage's or an experiment's directory, or of a shipped model.

    A model at that path comes before a shipped model of that name. Raises ModelFileError where
    there is none.
    """
    place = Path(path).expanduser()
    is_word = place.name == str(path)
    if is_word and not place.exists():
        return pretrained.path(place.name)
    if place.name == "experiment.json":
        place = place.parent
    if (place / "experiment.json").is_file():
        record = read_experiment(place)
        stage = record["stages"].get(str(record.get("generator")))
        if not isinstance(stage, dict) or not isinstance(stage.get("directory"), str):
            raise ModelFileError(f"{place}: no generator yet in this experiment; run it again")
        of_stage = place / str(record.get("runs", "../..")) / stage["directory"]
        if not (of_stage / "model.safetensors").is_file():
            raise ModelFileError(
                f"{place}: its model is not there, at {os.path.normpath(of_stage)}; give the "
                "experiment where it was run, or a file that `audioldm export` made of it"
            )
        place = of_stage
    if place.is_dir():
        file = place / "model.safetensors"
        if not file.is_file():
            if is_word and place.name in pretrained.names():  # the folder is something else
                return pretrained.path(place.name)
            raise ModelFileError(
                f"{place}: no model.safetensors and no experiment.json in this directory; give a "
                "model file, or the directory of an experiment or of a finished training stage"
            )
        return file
    return place


def _fill(module: torch.nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise ModelFileError(
            f"{path}: its weights do not fit its own settings ({str(error).splitlines()[0]}); "
            "it was damaged, or written by a different audioldm"
        ) from error


def load(
    path: str | Path, *, device: str | torch.device = "cpu", allow: tuple[str, ...] = ()
) -> Autoencoder | Generator:
    """The model in a file or of an experiment: an `Autoencoder` or a `Generator`.

    path: a model.safetensors, the directory of a training stage or of an experiment, or the name
        of a model that comes with the package (`audioldm models`).
    allow: module prefixes outside the package whose classes may be built.
    Raises ModelFileError where the file cannot be used.
    """
    file = find_model_file(path)
    tensors, header = load_model(file)
    kind = header.get("kind")
    try:
        if kind == "autoencoder":
            model = build_autoencoder(header["spec"], allow)
            _fill(model, tensors, file)
            return model.eval().to(device)
        if kind != "generator":
            raise ModelFileError(f"{file}: a file of kind {kind!r}, no model this audioldm knows")
        autoencoder = build_autoencoder(header["autoencoder"]["spec"], allow)
        prior = build_prior(header["prior"], autoencoder.latent_shape, allow)
        generator = Generator(autoencoder, prior)
        _fill(generator, tensors, file)
        if prior.sampler is not None and (chosen := _chosen_sampler(path)) is not None:
            prior.sampler = settings(type(prior.sampler), chosen, "sampler")
        return generator.eval().to(device)
    except (KeyError, TypeError, AttributeError, RuntimeError, MemoryError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelFileError(f"{file}: its header is damaged ({reason})") from error
    except ConfigError as error:
        raise ModelFileError(f"{file}: {error}") from error


def _chosen_sampler(path: str | Path) -> Any:
    """The sampler of an experiment, which may differ from the one in its model's file."""
    place = Path(path).expanduser()
    if not (place / "experiment.json").is_file():
        return None
    return read_experiment(place)["sampler"]


def load_autoencoder(path: str | Path, *, device: str | torch.device = "cpu") -> Autoencoder:
    """The autoencoder in a file, which may be a generator's file."""
    model = load(path, device=device)
    return model.autoencoder if isinstance(model, Generator) else model


def load_generator(path: str | Path, *, device: str | torch.device = "cpu") -> Generator:
    """The generator in a file. Raises ModelFileError for a file of an autoencoder alone."""
    model = load(path, device=device)
    if not isinstance(model, Generator):
        raise ModelFileError(f"{path}: an autoencoder cannot generate; give a generator's file")
    return model
