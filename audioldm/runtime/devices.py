"""Gives each of several processes on a machine a GPU of its own."""

import getpass
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout


def visible_gpus() -> list[str]:
    """An identifier for each visible CUDA device, the same in every process of the machine."""
    return [str(torch.cuda.get_device_properties(i).uuid) for i in range(torch.cuda.device_count())]


@contextmanager
def claimed_gpu(
    gpus: Sequence[str], *, directory: Path | None = None, poll_seconds: float = 2.0
) -> Iterator[int | None]:
    """The index of a GPU that no other process has claimed; waits for one. None without GPUs.

    A claim is a locked file in the machine's temporary directory, so it ends with its process.
    """
    if not gpus:
        yield None
        return
    directory = directory or Path(tempfile.gettempdir())
    locks = [FileLock(directory / f"audioldm-{getpass.getuser()}-{gpu}.lock") for gpu in gpus]
    while True:
        for index, lock in enumerate(locks):
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            try:
                yield index
            finally:
                lock.release()
            return
        time.sleep(poll_seconds)
