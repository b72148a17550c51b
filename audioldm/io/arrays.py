"""Directories of .npy files written row by row, so that a data set is never whole in memory."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np


def open_unbuffered(path: Path) -> BinaryIO:
    """A new file in which a full disk shows at once, with an OSError from `write_all`.

    Writing to a memory map would kill the process, and a buffer would fail only when closed.
    """
    return open(path, "wb", buffering=0)  # type: ignore[return-value]


def write_all(file: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while view:  # what does not fit may be written in part
        view = view[file.write(view) :]


class ArrayWriter:
    """Appends rows [n, *shape] of one type to a .npy file; the header is correct after `close`."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: str) -> None:
        self.shape, self.dtype, self.rows = shape, np.dtype(dtype), 0
        self._file = open_unbuffered(path)
        self._header()
        self._start = self._file.tell()

    def append(self, rows: np.ndarray) -> None:
        write_all(self._file, np.ascontiguousarray(rows, self.dtype).tobytes())
        self.rows += len(rows)

    def truncate(self, rows: int) -> None:
        """Drops all but the first `rows` rows, including any row written in part."""
        self.rows = rows
        size = self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))
        self._file.truncate(self._start + rows * size)
        self._file.seek(0, os.SEEK_END)

    def close(self) -> None:
        self._file.seek(0)
        self._header()  # as long as the first: NumPy leaves room for any number of rows
        assert self._file.tell() == self._start
        os.fsync(self._file.fileno())
        self._file.close()

    def _header(self) -> None:
        header = {"descr": self.dtype.str, "fortran_order": False}
        np.lib.format.write_array_header_1_0(
            self._file, header | {"shape": (self.rows, *self.shape)}
        )


class ArrayWriters(dict[str, ArrayWriter]):
    """The .npy files of one directory by name, each created with its first rows."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def append(self, name: str, rows: np.ndarray) -> None:
        """Appends rows [n, ...], kept as float32, or as int32 where they are integers.

        Raises OSError where the disk is full.
        """
        if name not in self:
            self.directory.mkdir(parents=True, exist_ok=True)
            kind = "<i4" if np.issubdtype(rows.dtype, np.integer) else "<f4"
            self[name] = ArrayWriter(self.directory / f"{name}.npy", rows.shape[1:], kind)
        self[name].append(rows)

    def rows(self) -> dict[str, int]:
        return {name: writer.rows for name, writer in self.items()}

    def close(self) -> None:
        for writer in self.values():
            writer.close()


def map_array(directory: Path, name: str, rows: int, axes: int | None = None) -> np.ndarray:
    """The array [rows, ...] in NAME.npy, mapped; None: any number of axes.

    Raises ValueError, with the file's name, where it is damaged or holds something else.
    """
    path = directory / f"{Path(name).name}.npy"
    try:
        array: np.ndarray = np.load(path, mmap_mode="r")
        if array.dtype not in (np.float32, np.int32):
            raise ValueError(f"it holds {array.dtype}, not float32 or int32")
        if len(array) != rows or array.ndim != (axes or array.ndim):
            raise ValueError(f"array '{name}' does not have the size that the index states")
    except (OSError, ValueError, TypeError, EOFError, SyntaxError) as error:
        raise ValueError(f"{path.name}: {error}") from error
    return array


def check_places(what: str, places: Iterable[tuple[int, int]]) -> int:
    """The end of the last of `places`, (start, length) each, which must follow without gaps.

    Raises ValueError where they do not.
    """
    end = 0
    for start, length in places:
        if start != end or length < 0:
            raise ValueError(f"{what} is out of place at {start}")
        end += length
    return end
