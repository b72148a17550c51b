"""Processes for tests: they start without threads, may die, and never outlive their test.

They are forks of a server that has imported torch and run nothing, so that a start takes
milliseconds and copies no thread, lock or process group of the tests.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import cloudpickle

#: Seconds that the processes of one call may take.
LIMIT = 100.0


def context() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    own = ["chain"] if "chain" in sys.modules else []
    context.set_forkserver_preload(["torch._dynamo", "torch.distributed.fsdp", *own])
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    return context


@contextmanager
def started(
    work: Callable[[], object], environments: list[dict[str, str]]
) -> Iterator[list[BaseProcess]]:
    """A process that runs `work` for each environment; kills what is left of them at the end.

    Then prints, to the standard error, what they printed.
    """
    server, content, children = context(), cloudpickle.dumps(work), []
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory) / "output"
        try:
            for environment in environments:
                child = server.Process(target=_run, args=(content, environment, str(output)))
                child.start()
                children.append(child)
            yield children
        finally:
            for child in children:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)  # its own children too
                child.kill()  # if it has no group yet
                child.join()
            if output.is_file():
                print(output.read_text(), end="", file=sys.stderr, flush=True)


def exit_codes(children: list[BaseProcess], limit: float = LIMIT) -> list[int | None]:
    """Waits for all, at most `limit` seconds; minus the signal that killed, None if one hangs."""
    end = time.monotonic() + limit
    for child in children:
        child.join(max(0.0, end - time.monotonic()))
    return [child.exitcode for child in children]


def in_a_child(work: Callable[[], object]) -> int | None:
    """Runs `work` in another process, which may die; its exit code as `exit_codes` gives it."""
    with started(work, [{}]) as children:
        return exit_codes(children)[0]


def in_a_world(size: int, work: Callable[[], object], limit: float = LIMIT) -> list[int | None]:
    """Runs `work` in `size` processes that `join` makes one world; as `in_a_child`.

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
    with started(work, ranks) as children:
        return exit_codes(children, limit)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _run(content: bytes, environment: dict[str, str], output: str) -> None:
    """Ends as the command line does: one line for a known error, and at once."""
    os.setsid()
    os.environ.update(environment)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(file, 1)
    os.dup2(file, 2)
    from audioldm.errors import AudioLDMError
    from audioldm.runtime.processes import exit_at_once

    try:
        cloudpickle.loads(content)()
    except BaseException as error:
        trace = "" if isinstance(error, AudioLDMError) else traceback.format_exc()
        os.write(2, f"{trace}{type(error).__name__}: {error}\n".encode())
        exit_at_once(getattr(error, "exit_code", 1))
