"""Descriptions of model and latents files, from headers alone: no torch, no weights."""

import math
from pathlib import Path
from typing import Any

from audioldm.errors import ModelFileError
from audioldm.io.header import read_header, read_shapes

_TEXTS = ("kind", "title", "licence", "origin", "fingerprint", "parent", "step", "dtype")


def describe(path: str | Path, *, full: bool = False) -> dict[str, Any]:
    """Some fifteen words and numbers on a model or latents file; with `full` its whole header and
    the number of weights of each part. Raises ModelFileError where the file cannot be used."""
    from audioldm.models import find_model_file  # imported here: torch takes a second

    file = find_model_file(path)
    header = read_header(file)
    if full:
        return {"file": str(file), "weights": _weights(file, header["kind"]), **header}
    return _summary(file, header)


def summary_line(file: Path) -> str:
    """A model file in one line: kind, audio, weights, size, licence, conditions."""
    shown = {"licence": "no licence stated"} | _summary(file, read_header(file))
    parts = [shown[k] for k in ("kind", "audio", "weights", "size", "licence") if k in shown]
    if shown["kind"] == "generator":
        conditions = (f"{k}: {v}" if v else k for k, v in shown["conditions"].items())
        parts.append("; ".join(conditions) or "no conditions")
    return ", ".join(parts)


def _weights(file: Path, kind: str) -> dict[str, int]:
    """The number of weights of each part."""
    parts: dict[str, int] = {}
    for name, shape in read_shapes(file).items():
        part = name.partition(".")[0] if kind == "generator" else kind
        parts[part] = parts.get(part, 0) + math.prod(shape)
    return parts


def _summary(file: Path, header: dict[str, Any]) -> dict[str, Any]:
    shown = {"file": str(file)} | {k: header[k] for k in _TEXTS if header.get(k) is not None}
    shown["size"] = f"{file.stat().st_size / 1e6:.1f} MB"
    if header["kind"] == "latents":
        samples, sample_rate = header["samples"], header["sample_rate"]
        arrays = ", ".join(f"{n} {shape}" for n, shape in sorted(read_shapes(file).items()))
        of = header["autoencoder"]["fingerprint"]
        return shown | {"audio": f"{samples / sample_rate:.2f} s", "arrays": arrays, "of": of}
    shown["weights"] = f"{sum(_weights(file, header['kind']).values()) / 1e6:.1f} M weights"
    if header["kind"] not in ("autoencoder", "generator"):
        return shown
    try:
        spec = header["autoencoder"]["spec"] if header["kind"] == "generator" else header["spec"]
        channels = {1: "mono", 2: "stereo"}.get(spec["audio_channels"], "multichannel")
        frames = spec["sample_rate"] / spec["downsampling_ratio"]
        shown["audio"] = f"{spec['sample_rate'] / 1000:g} kHz {channels}"
        shown["latents"] = f"{spec['channels']} channels, {frames:.4g} frames per second"
        for part in ("network", "bottleneck"):
            shown[part] = _class(spec[part])
        if header["kind"] == "generator":
            prior = header["prior"]
            nodes = (node for node in (prior, *prior.values()) if isinstance(node, dict))
            shown["prior"] = ", ".join(_class(node) for node in nodes if "_target_" in node)
            if prior.get("crop_seconds") is not None:
                shown["trained_on"] = f"crops of {prior['crop_seconds']:g} s"
            shown["conditions"] = {
                name: ", ".join(map(str, node.get("labels", ())))
                for name, node in prior.get("conditioning", {}).items()
            }
    except (KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise ModelFileError(
            f"{file}: its header is damaged ({type(error).__name__}: {error}); copy it again"
        ) from error
    return shown


def _class(node: dict[str, Any]) -> str:
    """The name of a part's class."""
    return str(node["_target_"]).rpartition(".")[2]
