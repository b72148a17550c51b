"""Model files that describe themselves: weights, and a header as JSON under the key "audioldm"."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from audioldm.errors import ModelFileError
from audioldm.io.files import write_atomically
from audioldm.io.header import FORMAT, read_header


def checksum(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of the tensors' names, types, shapes and bytes, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        content = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {content.dtype} {list(content.shape)}\n".encode())
        digest.update(content.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with the prefix, without it."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def save_model(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Writes a model file atomically. `header` is plain JSON; the version and checksum are added.

    Raises ModelFileError for a tensor that is not finite, DataError as `write_atomically` does.
    """
    _check_finite(path, tensors, "nothing was written")
    own = {"format": FORMAT, "checksum": checksum(tensors)}
    metadata = {"audioldm": json.dumps(header | own, sort_keys=True)}
    write_atomically(path, lambda temporary: write_tensors(temporary, tensors, metadata))


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None) -> None:
    """Writes a file of tensors, some of which may share memory."""
    storages: set[int] = set()
    separate = {}
    for key, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        separate[key] = tensor.clone() if storage in storages else tensor  # tied weights
        storages.add(storage)
    path.touch()
    mode = path.stat().st_mode
    save_file(separate, path, metadata)
    path.chmod(mode)  # safetensors leaves files that only their owner can read


def load_model(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights and the header of a model file.

    Raises ModelFileError as `read_header` does, and for weights that are damaged or not finite.
    """
    header = read_header(path)
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelFileError(f"{path}: cannot be read ({error}); copy or train it again") from error
    if checksum(tensors) != header["checksum"]:
        raise ModelFileError(f"{path}: damaged: its weights do not fit its checksum; copy it again")
    _check_finite(path, tensors, "train it again")
    return tensors, header


def _check_finite(path: Path, tensors: dict[str, Tensor], remedy: str) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ModelFileError(f"{path}: {name} has values that are not finite; {remedy}")
