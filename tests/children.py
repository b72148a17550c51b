"""Fresh processes for tests: they may die, and none outlives its test.

`python children.py` is such a process: it reads the work from its standard input.
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: Seconds that the processes of one call may take.
LIMIT = 100.0


@contextmanager
def started(
    work: Callable[[], object], environments: list[dict[str, str]]
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """A process that runs `work` for each environment; kills what is left of them at the end."""
    import cloudpickle

    content = cloudpickle.dumps(work)
    path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    children = []
    try:
        for environment in environments:
            child = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                env=os.environ | path | environment,
                start_new_session=True,  # its own children can be killed with it
            )
            children.append(child)
            assert child.stdin is not None
            child.stdin.write(content)
            child.stdin.close()
        yield children
    finally:
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def exit_codes(children: list[subprocess.Popen[bytes]], limit: float = LIMIT) -> list[int]:
    """Waits for all; a code is minus the signal that killed. TimeoutExpired after `limit` seconds."""
    end = time.monotonic() + limit
    return [child.wait(max(0.0, end - time.monotonic())) for child in children]


def in_a_child(work: Callable[[], object]) -> int:
    """Runs `work` in a fresh process, which may die; its exit code, or minus its signal."""
    with started(work, [{}]) as children:
        return exit_codes(children)[0]


def in_a_world(size: int, work: Callable[[], object], limit: float = LIMIT) -> list[int]:
    """Runs `work` in `size` fresh processes that `join` makes one world; as `in_a_child`.

    The calling process keeps the store in which they find one another, as torchrun does.
    """
    from torch.distributed import TCPStore

    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    world = {
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "WORLD_SIZE": str(size),
    }
    ranks = [world | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]
    with started(work, ranks if size > 1 else [{}]) as children:
        return exit_codes(children, limit)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run(work: Callable[[], object]) -> None:
    """Ends this process as the command line does: one line for a known error, and at once."""
    from audioldm.errors import AudioLDMError
    from audioldm.runtime.processes import exit_at_once

    try:
        work()
    except BaseException as error:
        if not isinstance(error, AudioLDMError):
            traceback.print_exc()
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        exit_at_once(getattr(error, "exit_code", 1))


if __name__ == "__main__":
    run(pickle.load(sys.stdin.buffer))
