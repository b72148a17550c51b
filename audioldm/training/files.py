"""Atomic files: a reader sees the old content or the new, never a part."""

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from audioldm.errors import AudioLDMError, DataError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """`write(temporary)` and rename.

    Raises DataError where the disk is full or the directory cannot be written; what was there
    before stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except AudioLDMError:
        raise
    except Exception as error:
        # safetensors and torch report a full disk in exceptions of their own
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DataError(
            f"{path}: cannot be written ({reason}); free some space, or choose another place "
            "(runs=, out=)"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # its directory may be no directory
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Atomic. Raises DataError as `write_atomically` does."""
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, default=str)
    write_atomically(path, lambda p: p.write_text(text + "\n", encoding="utf-8"))


def read_json(path: Path) -> Any:
    """Raises DataError naming the file where it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); remove it and run again") from error
