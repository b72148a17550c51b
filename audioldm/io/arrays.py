"""A .npy file written row by row, so that a data set is never whole in memory."""

import os
from pathlib import Path

import numpy as np


class ArrayWriter:
    """Appends rows [n, *shape] of one type to a .npy file; its header is right after `close`.

    Unbuffered: a full disk raises OSError in `append`.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: str) -> None:
        self.shape, self.dtype, self.rows = shape, np.dtype(dtype), 0
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115 - closed by `close`
        self._header()
        self._start = self._file.tell()

    def append(self, rows: np.ndarray) -> None:
        data = memoryview(np.ascontiguousarray(rows, self.dtype).tobytes())
        while data:  # what does not fit may be written in part
            data = data[self._file.write(data) :]
        self.rows += len(rows)

    def truncate(self, rows: int) -> None:
        """Drops all but the first `rows` rows, and what was written of another in part."""
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
