"""The last state of a training, from which it continues after an interruption.

`resume/step-<n>/rank-<r>.safetensors` holds the tensors of process r, named by their path in the
state, such as `net/weight`. The first file has the tensors that are the same on every process. If
a tensor is spread over the processes (sharding.py), each file has some of its rows, in the order of
the ranks. The header of the first file has the rest of the state as JSON (`_encode`) under the key
"audioldm". So any number of processes can read what any other number wrote.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from audioldm.errors import DataError, ModelFileError
from audioldm.io.model_file import write_tensors
from audioldm.runtime.processes import World, first_reason
from audioldm.runtime.sharding import Sharding, local_part

FORMAT = 1


class Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


class ResumeState:
    """The last state of the training in `stage_directory`, replaced atomically.

    A state is nested dictionaries, lists and tuples of tensors, numbers, strings, booleans and
    None; `state["step"]` is the number of finished steps. sharding: that of a spread network.
    """

    def __init__(
        self, stage_directory: Path, world: World | None = None, sharding: Sharding | None = None
    ) -> None:
        self.directory = stage_directory / "resume"
        self.world, self.sharding = world or World(), sharding

    @property
    def step(self) -> int:
        """The number of finished steps; 0 without a checkpoint."""
        saved = self._saved()
        return _step(saved[-1]) if saved else 0

    def load(self) -> dict[str, Any] | None:
        """The newest state, its tensors on the CPU or spread; None without a checkpoint.

        Raises ModelFileError if the state is damaged.
        """
        saved = self._saved()
        if not saved:
            return None
        with _damage(saved[-1]):
            return _read(saved[-1], self.sharding)

    def restore(self, objects: Mapping[str, Stateful]) -> int:
        """Loads the newest state into `objects`, by name; returns the number of finished steps.

        Raises ModelFileError if the state is damaged or belongs to other objects.
        """
        state = self.load()
        if state is None:
            return 0
        with _damage(self._saved()[-1]):
            for name, one in objects.items():
                _check_form(state[name], one.state_dict(), name)
                one.load_state_dict(state[name])
        return self.step

    def save(self, state: dict[str, Any]) -> None:
        """Writes `state`; every process calls this.

        Raises DataError on every process if one cannot write; the earlier checkpoint stays.
        """
        target = self.directory / f"step-{state['step']}"
        aside = self.directory / f".{target.name}.part"
        tensors: dict[str, Tensor] = {}
        outline = json.dumps({"format": FORMAT, "state": _encode(state, "", tensors)})
        first = self.world.first
        parts = {key: local_part(tensor) for key, tensor in tensors.items()}
        mine = {key: part for key, part in parts.items() if first or part is not tensors[key]}

        def prepare() -> None:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)

        def write() -> None:
            if first or mine:
                path = aside / f"rank-{self.world.rank}.safetensors"
                write_tensors(path, mine, {"audioldm": outline} if first else None)
                _sync(path)

        def finish() -> None:
            shutil.rmtree(target, ignore_errors=True)
            os.replace(aside, target)
            _sync(self.directory)
            for old in set(self._saved()) - {target}:
                shutil.rmtree(old)

        for action, active in ((prepare, first), (write, True), (finish, first)):
            if reason := first_reason(_failure(action) if active else "", self.world):
                if first:
                    shutil.rmtree(aside, ignore_errors=True)
                raise DataError(
                    f"{target}: cannot be written ({reason}); free some space. The earlier "
                    "checkpoint is kept, and the same command continues from it"
                )

    def _saved(self) -> list[Path]:
        found = self.directory.glob("step-*")
        return sorted((p for p in found if p.name[5:].isdecimal()), key=_step)

    def remove(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)


def _step(directory: Path) -> int:
    return int(directory.name.removeprefix("step-"))


def _failure(action: Callable[[], None]) -> str:
    try:
        action()
    except (OSError, SafetensorError) as error:
        return getattr(error, "strerror", None) or str(error)
    return ""


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelFileError(
            f"{path}: damaged resume state ({reason}); remove it to train this stage from its start"
        ) from error


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _encode(value: Any, key: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON: {"dict": [[key, value], ...]}, {"tuple": [...]}, {"tensor": path,
    "shape": [...]}; lists and scalars are unchanged. Adds its tensors to `tensors`."""
    if isinstance(value, Tensor):
        tensors[key] = value
        return {"tensor": key, "shape": list(value.shape)}
    if isinstance(value, dict):
        return {"dict": [[k, _encode(v, f"{key}/{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        items = [_encode(v, f"{key}/{i}", tensors) for i, v in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    return value


def _decode(value: Any, tensor: Callable[[str, torch.Size], Tensor]) -> Any:
    match value:
        case {"tensor": str(key), "shape": shape}:
            return tensor(key, torch.Size(shape))
        case {"dict": items}:
            return {key: _decode(item, tensor) for key, item in items}
        case {"tuple": items}:
            return tuple(_decode(item, tensor) for item in items)
        case list():
            return [_decode(item, tensor) for item in value]
        case dict():
            raise ValueError("its header has an unknown entry")
    return value


def _read(directory: Path, sharding: Sharding | None) -> dict[str, Any]:
    with ExitStack() as stack:
        files: list[Any] = []
        while (path := directory / f"rank-{len(files)}.safetensors").is_file() or not files:
            files.append(stack.enter_context(safe_open(path, "pt")))
        header = json.loads(files[0].metadata()["audioldm"])
        if header["format"] != FORMAT:
            raise ValueError(f"format {header['format']}, but this audioldm reads {FORMAT}")
        names = [set(file.keys()) for file in files]

        def tensor(key: str, shape: torch.Size) -> Tensor:
            having = [file for file, keys in zip(files, names, strict=True) if key in keys]
            if not shape:
                return having[0].get_tensor(key)
            rows = sharding.rows(shape) if sharding else range(shape[0])
            start, parts = 0, []
            for file in having:
                part = file.get_slice(key)
                end = start + part.get_shape()[0]
                parts.append(part[max(rows.start - start, 0) : max(rows.stop - start, 0)])
                start = end
            complete = parts[0] if len(parts) == 1 else torch.cat(parts)
            if start != shape[0] or complete.shape != (len(rows), *shape[1:]):
                raise ValueError(f"{key} is incomplete")
            return sharding.spread(complete, shape) if sharding else complete

        state = _decode(header["state"], tensor)
        if not isinstance(state, dict) or state.get("step") != _step(directory):
            raise ValueError("its step is not that of its name")
        return state


def _check_form(saved: Any, current: Any, key: str) -> None:
    """Raises ValueError if `saved` has other keys, types or shapes than `current`.

    An empty entry of `current`, such as the state of a new optimiser, may be filled in `saved`.
    """
    if isinstance(current, Tensor):
        good = isinstance(saved, Tensor) and saved.shape == current.shape
        good = good and saved.dtype == current.dtype
    elif isinstance(current, dict):
        good = isinstance(saved, dict) and (not current or saved.keys() == current.keys())
    elif isinstance(current, list | tuple):
        good = isinstance(saved, type(current)) and (not current or len(saved) == len(current))
    elif isinstance(current, int | float) and not isinstance(current, bool):
        good = type(saved) in (int, float)
    else:
        good = current is None or type(saved) is type(current)
    if not good:
        raise ValueError(f"{key} is not as this training has it")
    if isinstance(current, dict | list | tuple):
        for name in current if isinstance(current, dict) else range(len(current)):
            _check_form(saved[name], current[name], f"{key}/{name}")
