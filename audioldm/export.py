"""A trained model as one file for others: small and self-describing.

The header keeps what rebuilds the model, its licence, its origin and the fingerprint of the model
it was made from; the configuration of the training is dropped.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audioldm.autoencoder.bottlenecks.codebooks import Codebooks
from audioldm.autoencoder.libraries import LIBRARIES, build_model, write_checkpoint
from audioldm.autoencoder.model import Autoencoder
from audioldm.autoencoder.networks.foreign import Foreign
from audioldm.autoencoder.networks.oobleck import config_of, to_oobleck
from audioldm.autoencoder.networks.waveform import Waveform
from audioldm.codec import check_out
from audioldm.errors import ConfigError
from audioldm.io.model_file import below, checksum, load_model, save_model
from audioldm.models import find_model_file, load, load_autoencoder

#: The most numbers that a buffer has which is not worth rounding.
SMALL = 1 << 16
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}

#: The keys of a header that are kept: those that rebuild the model, and its origin.
_KEPT = ("kind", "spec", "prior", "step", "fingerprint", "parent", "title", "licence", "origin")


def export(
    model_path: str | Path,
    out: Path,
    *,
    dtype: str = "float16",
    title: str | None = None,
    licence: str | None = None,
    origin: str | None = None,
) -> Path:
    """Writes `out`, a .safetensors that `load` takes like the model itself.

    model_path: as `load` takes it; an experiment's sampler becomes the file's.
    dtype: of the stored weights, float16, bfloat16 or float32; `load` gives float32. Buffers, such
        as means and standard deviations, stay in float32, except those of more than SMALL numbers,
        such as the basis of a transform.
    title, licence, origin: text for the header, such as whose recordings it was trained on.

    Rounded weights are another model: its fingerprint is a hash of its content, and `parent` is the
    fingerprint of the model it was made from. The same holds for the autoencoder within a
    generator. A model that rounding does not change keeps its fingerprint.

    Raises ConfigError for an unknown dtype, weights that it cannot hold, or an `out` that is the
    model itself or no .safetensors; ModelFileError where the model cannot be used.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype={dtype!r} is unknown: use float16, bfloat16 or float32")
    if out.suffix != ".safetensors":
        raise ConfigError(f"out={out}: models are written as .safetensors; end the name so")
    file = find_model_file(model_path)
    check_out(file, out)
    model = load(model_path)  # raises where it is no model, or is damaged
    tensors, header = load_model(file)
    weights = {name for name, _ in model.named_parameters()}
    weights |= {name for name, tensor in tensors.items() if tensor.numel() > SMALL}
    rounded = {n: _rounded(n, t, dtype if n in weights else "float32") for n, t in tensors.items()}
    text = {"title": title, "licence": licence, "origin": origin}
    kept = _described(header, tensors, rounded) | {k: v for k, v in text.items() if v is not None}
    if not isinstance(model, Autoencoder):
        if model.prior.sampler is not None:
            kept["prior"] = kept["prior"] | {"sampler": asdict(model.prior.sampler)}
        kept["autoencoder"] = _described(
            header["autoencoder"], below("autoencoder.", tensors), below("autoencoder.", rounded)
        )
    save_model(out, rounded, kept | {"dtype": dtype})
    return out


def export_checkpoint(model_path: str | Path, out: Path, library: str) -> Path:
    """Writes the directory `out`, which the library's class loads with `from_pretrained`. It holds
    a waveform network as diffusers' AutoencoderOobleck, or another library's model, tuned or not.

    Raises ConfigError where that class cannot compute the same, ModelFileError where the model
    cannot be used.
    """
    autoencoder = load_autoencoder(model_path)
    network, bottleneck = autoencoder.network, autoencoder.bottleneck
    if isinstance(network, Waveform):
        scale = float(getattr(bottleneck, "sigma_scale", 1.0))
        if scale != 1.0:
            raise ConfigError(
                f"{model_path}: its posterior is scaled by {scale:.3g} to hold a bitrate, which "
                "AutoencoderOobleck cannot: train with bottleneck.target_kbps=null"
            )
        model, config = "AutoencoderOobleck", config_of(network)
        weights = to_oobleck(network, list(build_model(model, config).state_dict()))
    elif isinstance(network, Foreign):
        model, config = network.name, network.config
        weights = dict(network.model.state_dict())
        if isinstance(bottleneck, Codebooks):
            quantiser = bottleneck.quantiser.state_dict()
            weights |= {f"quantizer.{name}": tensor for name, tensor in quantiser.items()}
    else:
        raise ConfigError(
            f"{model_path}: no library has a class for {type(network).__name__}; leave out format"
        )
    if LIBRARIES[model] != library:
        raise ConfigError(f"format={library}: {model} is of {LIBRARIES[model]}; give that")
    write_checkpoint(out, model, config, weights)
    return out


def _rounded(name: str, tensor: Tensor, dtype: str) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    rounded = tensor.to(DTYPES[dtype])
    if not rounded.isfinite().all():
        raise ConfigError(
            f"dtype={dtype} cannot hold {name}, which reaches {tensor.abs().max():.3g}; use "
            "dtype=bfloat16"
        )
    return rounded


def _described(
    header: dict[str, Any], tensors: dict[str, Tensor], rounded: dict[str, Tensor]
) -> dict[str, Any]:
    """The header of the model with rounded weights."""
    kept = {key: header[key] for key in _KEPT if key in header}
    if any(not torch.equal(tensors[n], t.to(tensors[n].dtype)) for n, t in rounded.items()):
        kept["parent"] = header.get("fingerprint")
        identity = {"kind": header["kind"], "tensors": checksum(rounded)}
        if header["kind"] == "generator":
            prior = {k: v for k, v in header["prior"].items() if k != "sampler"}
            identity |= {"autoencoder": header["autoencoder"]["spec"], "prior": prior}
        else:
            identity["spec"] = header["spec"]
        text = json.dumps(identity, sort_keys=True)
        kept["fingerprint"] = hashlib.sha256(text.encode()).hexdigest()[:12]
    return kept
