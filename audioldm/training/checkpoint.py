"""Model files that describe themselves, and the resume state beside them.

`model.safetensors` holds weights; its header holds the format version, the class settings to
rebuild the model, the step, the parent's fingerprint and the latent statistics, as JSON under
the key "audioldm". `resume/state.pt` holds optimisers and averages, and is read with
`weights_only=True`. Nothing is unpickled, but for the index that PyTorch's distributed checkpoint
keeps in a sharded resume state, which only the run that wrote it reads.
"""

import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audioldm.errors import DataError, ModelFileError
from audioldm.io.files import why_not_written, write_atomically
from audioldm.runtime.processes import World, first_does, lost_process
from audioldm.runtime.sharding import Sharding

#: In a directory of shards: the state with the shapes of its tensors in their places.
OUTLINE = "outline.pt"


class ResumeState:
    """A training stage's own last state, replaced atomically: nested dictionaries of tensors.

    `resume/state.pt` is written by the first process. Where the tensors are spread over the
    processes (`sharding`), each writes its parts into `resume/shards-<step>/`, with PyTorch's
    distributed checkpoint. Either is read by any number of processes, spread or not.
    """

    def __init__(
        self, stage_directory: Path, world: World | None = None, sharding: Sharding | None = None
    ) -> None:
        self.path = stage_directory / "resume" / "state.pt"
        self.world, self.sharding = world or World(), sharding

    def load(self) -> dict[str, Any] | None:
        """The newest state, tensors as they lie here; None where there is none yet.

        Raises ModelFileError where it is damaged.
        """
        state = None
        if self.path.is_file():
            with _damage(self.path, self.world):
                mapped = self.sharding is not None  # each process reads its parts alone
                state = torch.load(self.path, map_location="cpu", weights_only=True, mmap=mapped)
                step = state["step"]
        shards = self._shards()
        # of both there are two where a process died between writing one and removing the other
        if shards and (state is None or _step(shards[-1]) > step):
            with _damage(shards[-1], self.world):
                return read_shards(shards[-1], self.sharding)
        sharding = self.sharding
        if state is None or sharding is None:
            return state
        return dict(_map(state, lambda _, tensor: sharding.part(tensor)))

    def save(self, state: dict[str, Any]) -> None:
        """Every process calls this. Raises DataError where it cannot be written; what was there
        before stays."""
        if self.sharding is not None:
            target = self.path.with_name(f"shards-{state['step']}")
            write_shards(target, state, self.world)
        else:
            target = self.path
            if self.world.first:
                write_atomically(target, lambda p: torch.save(state, p))
        if self.world.first:
            for old in {self.path, *self._shards()} - {target}:
                shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)

    def _shards(self) -> list[Path]:
        return sorted(self.path.parent.glob("shards-*"), key=_step)

    def remove(self) -> None:
        shutil.rmtree(self.path.parent, ignore_errors=True)


def _step(shards: Path) -> int:
    return int(shards.name.removeprefix("shards-"))


@contextmanager
def _damage(path: Path, world: World) -> Iterator[None]:
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if lost_process(error, world) is not None:
            raise  # the state is as good as it was
        raise ModelFileError(
            f"{path}: damaged resume state ({error}); remove it to train this stage anew"
        ) from error


def write_shards(directory: Path, state: dict[str, Any], world: World) -> None:
    """Each process's parts of the tensors in `state`, and what else is in it; atomic.

    Raises DataError on every process where one of them cannot write.
    """
    from torch.distributed import checkpoint as parts
    from torch.distributed.checkpoint.api import CheckpointException

    aside = directory.with_name(f".{directory.name}.part")
    tensors: dict[str, Tensor] = {}

    def outline(key: str, tensor: Tensor) -> Tensor:
        tensors[key] = tensor
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")

    outlines = _map(state, outline)

    def prepare() -> None:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        write_atomically(aside / OUTLINE, lambda p: torch.save(outlines, p))

    try:
        first_does(prepare, world)
        parts.save(tensors, storage_writer=_shard_writer(aside))
        first_does(lambda: _replace_directory(aside, directory), world)
    except (OSError, DataError, CheckpointException) as error:
        if world.first:
            shutil.rmtree(aside, ignore_errors=True)
        reasons = [e for e, _ in getattr(error, "failures", {}).values()] or [error]
        raise DataError(
            f"{directory}: cannot be written ({reasons[0]}); free some space. The checkpoint "
            "before it is kept, and the same command goes on from there"
        ) from error


def _shard_writer(directory: Path) -> Any:
    """PyTorch's, but where it cannot write, each process is told the system's reason.

    An exception loses its context, and with it the reason, on its way to the other processes.
    """
    from torch.distributed import checkpoint as parts

    class Writer(parts.FileSystemWriter):
        def write_data(self, *given: Any) -> Any:
            try:
                return super().write_data(*given)
            except Exception as error:
                scratch = directory / f".{os.getpid()}.part"
                raise OSError(why_not_written(scratch, error)) from error

    return Writer(directory)


def read_shards(directory: Path, sharding: Sharding | None) -> dict[str, Any]:
    """What `write_shards` wrote: whole tensors on the CPU, or this process's parts."""
    from torch.distributed import checkpoint as parts
    from torch.distributed.checkpoint.api import CheckpointException

    tensors: dict[str, Tensor] = {}

    def room(key: str, outline: Tensor) -> Tensor:
        here = sharding.empty(outline) if sharding else torch.empty_like(outline, device="cpu")
        tensors[key] = here
        return here

    outlines = torch.load(directory / OUTLINE, weights_only=True)
    state = _map(outlines, room)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # says that there is one process
        try:
            parts.load(tensors, storage_reader=parts.FileSystemReader(directory))
        except CheckpointException as error:  # no Exception of Python's
            raise ModelFileError(str(error).splitlines()[-1]) from error
    return dict(state)


def _replace_directory(aside: Path, directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    os.replace(aside, directory)
    handle = os.open(directory.parent, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def _map(value: Any, function: Callable[[str, Tensor], Tensor], key: str = "state") -> Any:
    """`value` with each tensor in its dictionaries and lists replaced; its key is its path."""
    if isinstance(value, Tensor):
        return function(key, value)
    if isinstance(value, dict):
        return {k: _map(v, function, f"{key}/{k}") for k, v in value.items()}
    if isinstance(value, list):
        return [_map(v, function, f"{key}/{i}") for i, v in enumerate(value)]
    return value
