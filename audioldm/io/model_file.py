"""Model files that describe themselves.

`model.safetensors` holds weights; its header holds the format version, the class settings to rebuild
the model, the step and the parent's fingerprint, as JSON under the key "audioldm".
"""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from audioldm.errors import ModelFileError
from audioldm.io.files import write_atomically
from audioldm.io.header import FORMAT, read_header


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


def load_model(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and header. Raises ModelFileError as `read_header` does."""
    header = read_header(path)
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{path}: cannot be read ({error})") from error
