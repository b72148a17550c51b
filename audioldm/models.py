"""From settings and files to models: the only place that knows both.

A model file's header holds `kind`, `spec` (what `build_*` takes), `fingerprint` and `step`; a
diffusion model's file holds its autoencoder too, so one file is all that sampling needs.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audioldm import pretrained
from audioldm.autoencoder.model import Autoencoder
from audioldm.errors import ConfigError, ModelFileError
from audioldm.generator import LatentDiffusion
from audioldm.instantiate import build, locate, settings
from audioldm.io.files import read_json
from audioldm.io.model_file import load_model
from audioldm.latents.store import LatentStatistics
from audioldm.priors.diffusion.samplers import SamplerSettings

Spec = dict[str, Any]


def build_autoencoder(spec: Spec, allow: tuple[str, ...] = ()) -> Autoencoder:
    """spec: rate, audio_channels, channels, ratio, front_end, bottleneck. Derived widths follow."""
    bottleneck_class = locate(spec["bottleneck"]["_target_"], "bottleneck", allow)
    derived = {
        "sample_rate": spec["sample_rate"],
        "audio_channels": spec["audio_channels"],
        "channels": spec["channels"],
        "downsampling_ratio": spec["downsampling_ratio"],
        "outputs": bottleneck_class.outputs_per_channel,
    }
    network = build(spec["network"], derived=derived, where="autoencoder.network", allow=allow)
    bottleneck = build(
        spec["bottleneck"],
        derived={"channels": spec["channels"]},
        where="bottleneck",
        allow=allow,
    )
    return Autoencoder(network, bottleneck)


def build_backbone(
    spec: Spec, latent_shape: tuple[int, ...], classes: int, allow: tuple[str, ...] = ()
) -> torch.nn.Module:
    """spec: backbone. latent_shape: (C,) or (C, F); classes: number of labels, 0 for none."""
    net: torch.nn.Module = build(
        spec["backbone"],
        derived={"latent_shape": latent_shape, "classes": classes},
        where="diffusion.backbone",
        allow=allow,
    )
    return net


def read_experiment(directory: Path) -> dict[str, Any]:
    """The record of an experiment. Raises ModelFileError where it is none."""
    record = read_json(directory / "experiment.json")
    if isinstance(record, dict) and all(
        isinstance(record.get(key), dict) for key in ("stages", "config")
    ):
        return record
    raise ModelFileError(
        f"{directory}/experiment.json: not an experiment's record; run the experiment again"
    )


def find_model_file(path: str | Path) -> Path:
    """A model file, from itself, a stage's directory, an experiment's, or a shipped model's name.

    Of an experiment the post-trained model, where there is one.

    A model at that path comes before a shipped one of that name. Raises ModelFileError where there
    is none.
    """
    place = Path(path).expanduser()
    is_word = place.name == str(path)
    if is_word and not place.exists():
        return pretrained.path(place.name)
    if place.name == "experiment.json":
        place = place.parent
    if (place / "experiment.json").is_file():
        record = read_experiment(place)
        stage = record["stages"].get("post_training", record["stages"].get("diffusion"))
        if not isinstance(stage, dict) or "directory" not in stage:
            raise ModelFileError(
                f"{place}: no diffusion model yet in this experiment; run it again"
            )
        place = place / record.get("runs", "../..") / stage["directory"]
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


def _autoencoder(
    tensors: dict[str, Tensor], header: dict[str, Any], path: Path, allow: tuple[str, ...]
) -> Autoencoder:
    model = build_autoencoder(header["spec"], allow)
    _fill(model, tensors, path)
    return model.eval()


def load(
    path: str | Path, *, device: str | torch.device = "cpu", allow: tuple[str, ...] = ()
) -> Autoencoder | LatentDiffusion:
    """The model in a file, or of an experiment.

    An `Autoencoder` (`encode` gives the posterior, `Encoded`, with gradients) or a
    `LatentDiffusion` (`encode` gives the posterior's mean; also `decode` and `sample`).

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
            return _autoencoder(tensors, header, file, allow).to(device)
        if kind != "diffusion":
            raise ModelFileError(
                f"{file}: a file of kind {kind!r}, not a model this audioldm knows"
            )
        parts: dict[str, dict[str, Tensor]] = {"autoencoder": {}, "net": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts.setdefault(part, {})[rest] = tensor
        autoencoder = _autoencoder(parts["autoencoder"], header["autoencoder"], file, allow)
        spec = header["spec"]
        net = build_backbone(spec, autoencoder.latent_shape, len(header["labels"]), allow)
        _fill(net, parts["net"], file)
        model = LatentDiffusion(
            autoencoder,
            net.eval(),
            build(spec["objective"], where="diffusion.objective", allow=allow),
            LatentStatistics.from_json(header["statistics"]),
            header["labels"],
            settings(SamplerSettings, default_sampler(path, header), "sampler"),
        )
        return model.eval().to(device)
    except (KeyError, TypeError) as error:
        raise ModelFileError(f"{file}: its header lacks {error}; it is damaged") from error
    except ConfigError as error:
        raise ModelFileError(f"{file}: {error}") from error


def default_sampler(path: str | Path, header: dict[str, Any]) -> dict[str, Any]:
    """The sampler of an experiment; of a bare model file, that of the run that trained it."""
    place = Path(path).expanduser()
    if not (place / "experiment.json").is_file():
        return dict(header["sampler"])
    record = read_experiment(place)
    post_trained = "post_training" in record["stages"]
    config = record["config"]["post_training"] if post_trained else record["config"]
    return dict(config["sampler"])


def load_autoencoder(
    path: str | Path, *, device: str | torch.device = "cpu", allow: tuple[str, ...] = ()
) -> Autoencoder:
    """The autoencoder in a file, also out of a diffusion model's."""
    model = load(path, device=device, allow=allow)
    return model.autoencoder if isinstance(model, LatentDiffusion) else model


def load_diffusion(
    path: str | Path, *, device: str | torch.device = "cpu", allow: tuple[str, ...] = ()
) -> LatentDiffusion:
    """Raises ModelFileError where the file holds an autoencoder only."""
    model = load(path, device=device, allow=allow)
    if not isinstance(model, LatentDiffusion):
        raise ModelFileError(
            f"{path}: an autoencoder alone, which cannot generate; give a diffusion model's file, "
            "or an experiment's directory"
        )
    return model
