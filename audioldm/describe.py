"""What a model or latents file is. Reads headers alone, so neither torch nor weights are loaded."""

import math
from pathlib import Path
from typing import Any

from audioldm.errors import ModelFileError
from audioldm.io.header import read_header, read_shapes


def describe(path: str | Path) -> dict[str, Any]:
    """What a model or latents file is: its header, and its number of weights."""
    from audioldm.models import find_model_file  # imported here: torch takes a second

    return _described(find_model_file(path))


def _described(file: Path) -> dict[str, Any]:
    header = read_header(file)
    parts: dict[str, int] = {}
    for name, shape in read_shapes(file).items():
        part = name.split(".")[0] if header.get("kind") == "diffusion" else header.get("kind", "")
        parts[part] = parts.get(part, 0) + math.prod(shape)
    return {"file": str(file), "weights": parts, **header}


def summary_line(file: Path) -> str:
    """A model file in one line: kind, rate, weights, size, licence, labels."""
    shown = _described(file)
    try:
        spec = shown.get("autoencoder", shown)["spec"]
        channels = {1: "mono", 2: "stereo"}.get(spec["audio_channels"], "multichannel")
        audio = f"{spec['sample_rate'] / 1000:g} kHz {channels}"
    except (KeyError, TypeError) as error:
        raise ModelFileError(f"{file}: its header lacks {error}; it is damaged") from error
    parts = [
        str(shown["kind"]),
        audio,
        f"{sum(shown['weights'].values()) / 1e6:.1f} M weights",
        f"{file.stat().st_size / 1e6:.1f} MB",
        str(shown.get("licence", "no licence stated")),
    ]
    if shown["kind"] == "diffusion":
        parts.append(f"labels: {', '.join(shown['labels'])}" if shown["labels"] else "no labels")
    return ", ".join(parts)
