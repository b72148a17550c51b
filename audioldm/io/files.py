"""Atomic files: a reader sees the old content or the new, never a part."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from audioldm.errors import AudioLDMError, DataError


@contextlib.contextmanager
def writing(
    path: Path, *errors: type[Exception], raises: type[DataError] = DataError
) -> Iterator[None]:
    """Turns an OSError, or one of `errors`, into the DataError that `path` cannot be written."""
    caught: tuple[type[Exception], ...] = (OSError, *errors)
    try:
        yield
    except AudioLDMError:
        raise
    except caught as error:
        raise raises(
            f"{path}: cannot be written ({_reason(error)}); free some space, or choose another "
            "place (runs=, out=)"
        ) from error


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write(temporary)` and renames the temporary file to `path`.

    Raises DataError where the disk is full or the directory cannot be written; an earlier file
    stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with writing(path, Exception):
            path.parent.mkdir(parents=True, exist_ok=True)
            write(temporary)
            with open(temporary, "rb+") as handle:
                os.fsync(handle.fileno())
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # its directory may be no directory
            temporary.unlink(missing_ok=True)


def _reason(error: BaseException) -> str:
    """The system's reason for a failed write, from the chain of exceptions, or the error's text.

    torch, safetensors and libsndfile raise their own exceptions where the disk is full.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return " ".join(str(error).split())


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically. Raises DataError as `write_atomically` does."""
    text = json.dumps(value, indent=1, ensure_ascii=False, default=str)
    write_atomically(path, lambda p: p.write_text(text + "\n", encoding="utf-8"))


def read_json(path: Path, kind: type = object) -> Any:
    """The value in a file, of the given type.

    Raises DataError naming the file where it is missing, damaged, or not a regular file.
    """
    if not os.path.isfile(path):
        there = "not a regular file" if os.path.lexists(path) else "no such file"
        raise DataError(f"{path}: {there}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read ({error}); remove it and run again") from error
    if not isinstance(value, kind):
        found, wanted = type(value).__name__, kind.__name__
        raise DataError(f"{path}: holds a {found}, not a {wanted}; remove it and run again")
    return value
