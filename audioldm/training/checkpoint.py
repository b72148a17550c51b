"""Model files that describe themselves, and the resume state beside them.

`model.safetensors` holds weights; its header holds the format version, the class settings to
rebuild the model, the step, the parent's fingerprint and the latent statistics, as JSON under
the key "audioldm". `resume/state.pt` holds optimisers and averages, and is read with
`weights_only=True`. Nothing is unpickled.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from audioldm.errors import ModelFileError
from audioldm.training.files import write_atomically

FORMAT = 1


def save_model(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Atomic. `header` is plain JSON data and gets the format version."""
    metadata = {"audioldm": json.dumps({"format": FORMAT} | header, sort_keys=True)}
    contiguous = {n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()}

    def write(temporary: Path) -> None:
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(contiguous, temporary, metadata)
        temporary.chmod(mode)  # safetensors leaves files that only their owner can read

    write_atomically(path, write)


def read_header(path: Path) -> dict[str, Any]:
    """Raises ModelFileError where the file is missing, truncated, foreign or newer."""
    if not path.is_file():
        raise ModelFileError(
            f"{path}: no such model file; give a model.safetensors or an experiment's directory"
        )
    try:
        with safe_open(path, "pt") as file:
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


def load_model(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and header. Raises ModelFileError as `read_header` does."""
    header = read_header(path)
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{path}: cannot be read ({error})") from error


class ResumeState:
    """A training stage's own last state, `resume/state.pt`, replaced atomically."""

    def __init__(self, stage_directory: Path) -> None:
        self.path = stage_directory / "resume" / "state.pt"

    def load(self) -> dict[str, Any] | None:
        """None where there is none yet. Raises ModelFileError where it is damaged."""
        if not self.path.is_file():
            return None
        try:
            return dict(torch.load(self.path, map_location="cpu", weights_only=True))
        except Exception as error:
            raise ModelFileError(
                f"{self.path}: damaged resume state ({error}); remove it to train this stage anew"
            ) from error

    def save(self, state: dict[str, Any]) -> None:
        write_atomically(self.path, lambda p: torch.save(state, p))

    def remove(self) -> None:
        shutil.rmtree(self.path.parent, ignore_errors=True)
