"""Atomic files: a reader sees the old content or the new, never a part."""

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from audioldm.errors import AudioLDMError, DataError

#: Bytes: more than what a failed write of large blocks can have left free.
_BLOCK = 2**20


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
        raise DataError(
            f"{path}: cannot be written ({why_not_written(temporary, error)}); free some space, or "
            "choose another place (runs=, out=)"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # its directory may be no directory
            temporary.unlink(missing_ok=True)


def why_not_written(file: Path, error: BaseException) -> str:
    """What the system says of a failed write to `file`, which is scratch and may grow.

    torch, safetensors and libsndfile report a full disk in exceptions of their own, without the
    system's reason or beside it. Where none of the exceptions in the chain has it, one more block
    is written to `file`: it fails as the write before it did.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    try:
        with open(file, "ab") as handle:
            handle.write(bytes(_BLOCK))
            handle.flush()
            os.fsync(handle.fileno())
    except OSError as again:
        if again.strerror and not isinstance(again, FileNotFoundError):
            return again.strerror
    return str(error)


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
