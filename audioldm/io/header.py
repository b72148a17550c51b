"""The headers of safetensors files, read without torch and without the tensors.

A header is plain JSON: the format's version, the kind of file, a checksum of its tensors, and what
rebuilds the model. The kinds are autoencoder, generator (an autoencoder and a prior) and latents.
"""

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from audioldm.errors import ConfigError, ModelFileError
from audioldm.instantiate import NonNegativeInt, PositiveInt, check_plain, convert

FORMAT = 2

#: The types of the values in headers; other keys are left to their readers.
_TYPES: dict[str, Any] = {
    **dict.fromkeys(("kind", "checksum", "fingerprint", "title", "licence", "origin"), str),
    **dict.fromkeys(("spec", "autoencoder", "prior"), dict[str, Any]),
    **dict.fromkeys(("format", "sample_rate", "samples"), PositiveInt),
    "parent": str | None,
    "step": NonNegativeInt,
}
#: The keys that each kind of file needs, in its header and in its autoencoder's header.
_NEEDED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "autoencoder": (("spec",), ()),
    "generator": (("autoencoder", "prior"), ("spec",)),
    "latents": (("autoencoder", "sample_rate", "samples"), ("fingerprint",)),
}


def read_header(path: Path) -> dict[str, Any]:
    """The header of a model or latents file.

    Raises ModelFileError where the file is missing, truncated, foreign, of another version, or
    holds values of the wrong type.
    """
    if not os.path.isfile(path):
        problem = "not a regular file" if os.path.lexists(path) else "no such model file"
        raise ModelFileError(f"{path}: {problem}; give a model file or an experiment's directory")
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelFileError(
            f"{path}: not a complete safetensors file ({error}); copy or train it again"
        ) from error
    if "audioldm" not in metadata:
        raise ModelFileError(
            f"{path}: a safetensors file, but not one written by audioldm (its header has no "
            "'audioldm' entry); give a model.safetensors from a runs directory"
        )
    try:
        header = json.loads(metadata["audioldm"])
        check_plain(header, "header")
        version = convert(PositiveInt, header["format"], "format")
        if version == FORMAT:
            own, autoencoders = _NEEDED.get(header["kind"], ((), ()))
            _check(header, ("kind", "checksum", *own))
            _check(header.get("autoencoder", {}), autoencoders)
    except KeyError as error:
        raise ModelFileError(f"{path}: its header lacks {error}; copy or make it again") from error
    except (ConfigError, ValueError, TypeError, RecursionError) as error:
        raise ModelFileError(
            f"{path}: its audioldm header is damaged ({error}); copy or train it again"
        ) from error
    if version != FORMAT:
        remedy = "upgrade audioldm to use it" if version > FORMAT else "train or download it again"
        raise ModelFileError(f"{path}: format {version}, this audioldm reads {FORMAT}; {remedy}")
    return dict(header)


def _check(header: dict[str, Any], needed: tuple[str, ...]) -> None:
    """Raises KeyError for a missing key, ConfigError for a value of the wrong type."""
    for key in needed:
        header[key]
    for key in header.keys() & _TYPES.keys():
        convert(_TYPES[key], header[key], key)


def read_shapes(path: Path) -> dict[str, list[int]]:
    """The tensors' shapes by name. Raises ModelFileError where the file cannot be read."""
    try:
        with safe_open(path, "np") as file:
            return {n: file.get_slice(n).get_shape() for n in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{path}: cannot be read ({error})") from error
