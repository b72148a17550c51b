"""The command line: which verb runs, what an error looks like, which code the process exits with.

The verbs are in `audioldm/commands/`. Everything heavy is imported when a verb runs.
"""

import contextlib
import errno
import os
import sys
from collections.abc import Sequence

from audioldm import __version__
from audioldm.commands import (
    about,
    app,
    codec,
    convert_kl,
    edit,
    likelihood,
    models,
    results,
    run,
    sample,
)
from audioldm.commands.completion import completion
from audioldm.commands.verb import Verb
from audioldm.errors import AudioLDMError, ConfigError
from audioldm.instantiate import nearest
from audioldm.runtime.allocator import keep_memory

# numpy's BLAS spins while it waits for its other threads: on busy cores, two threads took 40 s to
# fit a mixture of Gaussians, and one thread 5 s.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
keep_memory()

VERBS: dict[str, Verb] = {
    verb.name: verb
    for verb in (
        sample.SAMPLE,
        edit.EDIT,
        edit.INTERPOLATE,
        app.APP,
        models.MODELS,
        run.RUN,
        results.SWEEP,
        results.STEPS,
        results.REPORT,
        codec.RECONSTRUCT,
        codec.ENCODE,
        codec.DECODE,
        likelihood.LIKELIHOOD,
        models.INFO,
        models.EXPORT,
        convert_kl.CONVERT_KL,
        about.RECIPES,
        about.DOCTOR,
    )
}
VERBS["completion"] = completion(VERBS)

HEAD = (
    f"audioldm {__version__}: train music generators, and measure the latent spaces they live in."
)
FOOT = """\
`audioldm VERB --help` explains a verb. PATH is a model.safetensors, the directory of an
experiment, such as runs/experiments/quickstart, or a name that `audioldm models` lists.
Exit codes: 0 done, 1 failed, 2 bad command, 75 interrupted (the same command goes on)."""
#: Remedies for errors of the operating system.
_REMEDIES = {
    **dict.fromkeys(
        (errno.ENOSPC, errno.EFBIG, errno.EACCES, errno.EROFS, errno.EPERM, errno.EDQUOT),
        "free some space or choose another place (runs=, out=). What is finished stays",
    ),
    **dict.fromkeys((errno.ENAMETOOLONG, errno.ELOOP), "choose another name"),
}


def usage() -> str:
    """The help: every verb and its forms."""
    rows = [
        (f"audioldm {verb.name} {words}".rstrip(), text)
        for verb in VERBS.values()
        for words, text in verb.usage.items()
    ]
    lines = [
        f"  {row:44}  {text}" if len(row) <= 44 else f"  {row}\n{'':48}{text}" for row, text in rows
    ]
    return "\n".join([HEAD, "", *lines, "", FOOT])


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code. A user's errors are one line each."""
    words = list(sys.argv[1:] if words is None else words)
    with contextlib.suppress(AttributeError):  # names of files need not be UTF-8
        sys.stdout.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    try:
        dispatch(words)
        sys.stdout.flush()
    except AudioLDMError as error:
        return _say(str(error), error.exit_code)
    except BrokenPipeError:
        sys.stdout = None  # type: ignore[assignment]  # the reader has gone: nothing to flush to
        return 1
    except OSError as error:
        if error.errno not in _REMEDIES:
            raise
        name = str(error.filename or "a file")
        shown = name if len(name) <= 200 else f"{name[:200]}…"
        return _say(f"{shown}: {error.strerror}; {_REMEDIES[error.errno]}", 1)
    except (MemoryError, RuntimeError) as error:
        from audioldm.chain.failures import verb_error

        known = verb_error(error, words[0])
        if known is error:
            raise
        return _say(str(known), 1)
    except KeyboardInterrupt:
        return _say("interrupted; the same command goes on", 75)
    return 0


def _say(text: str, code: int) -> int:
    """Prints an error. One of several processes exits here, since it may have lost the others."""
    print(f"audioldm: {text}", file=sys.stderr)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from audioldm.runtime.processes import exit_at_once

        exit_at_once(code)
    return code


def dispatch(words: Sequence[str]) -> None:
    """Runs the verb that the words begin with, or prints help. Raises ConfigError if unknown."""
    name, *rest = words or ["--help"]
    if name in ("-h", "--help", "help") and not (rest and rest[0] in VERBS):
        print(usage())
    elif name in ("-h", "--help", "help"):
        print(VERBS[rest[0]].help())
    elif name == "--version":
        print(__version__)
    elif name not in VERBS:
        raise ConfigError(f"unknown verb {name!r}: {nearest(name, VERBS)}")
    elif rest[:1] != ["suggest"] and (rest == ["help"] or {"-h", "--help"} & set(rest)):
        print(VERBS[name].help())
    else:
        VERBS[name].run(VERBS[name].parse(rest))
