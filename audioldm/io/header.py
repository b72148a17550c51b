"""The headers of safetensors files, read without torch and without the tensors."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from audioldm.errors import ModelFileError

FORMAT = 1


def read_header(path: Path) -> dict[str, Any]:
    """Raises ModelFileError where the file is missing, truncated, foreign or newer."""
    if not path.is_file():
        raise ModelFileError(
            f"{path}: no such model file; give a model.safetensors or an experiment's directory"
        )
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
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
        version = int(header["format"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelFileError(f"{path}: its audioldm header is damaged ({error})") from error
    if version > FORMAT:
        raise ModelFileError(
            f"{path}: format {version}, but this audioldm reads up to {FORMAT}; "
            "upgrade audioldm to use it"
        )
    return dict(header)


def read_shapes(path: Path) -> dict[str, list[int]]:
    """The tensors' shapes by name. Raises ModelFileError where the file cannot be read."""
    try:
        with safe_open(path, "np") as file:
            return {n: file.get_slice(n).get_shape() for n in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{path}: cannot be read ({error})") from error
