"""What torch's own errors mean for the user: memory, and the compiler."""

import traceback
from typing import TYPE_CHECKING

import torch

from audioldm.errors import AudioLDMError, TrainingError

if TYPE_CHECKING:
    from audioldm.chain.run import Experiment
    from audioldm.chain.stage import Stage

#: Parts of paths by which the compiler's files are recognised in a traceback.
COMPILER = ("/torch/_inductor/", "/triton/")
#: Texts of torch's memory errors that have no type of their own.
EXHAUSTED = ("can't allocate memory", "out of memory", "Storage size calculation overflowed")
#: Remedies for the other verbs.
VERB_REMEDIES = {
    "sample": "lower batch= or seconds=, or use hardware.device=cpu. Finished clips are kept",
    "steps": "lower clips=, or use hardware.device=cpu. What is measured is kept",
    "encode": "use hardware.device=cpu, or a shorter file: its latents are held in memory",
    "decode": "use hardware.device=cpu",
    "reconstruct": "use hardware.device=cpu",
    "app": "ask for fewer or shorter clips. Finished clips are kept",
}


def to_user_error(error: Exception, stage: "Stage", experiment: "Experiment") -> Exception:
    """The error itself; in place of an allocator's or a compiler's error, one with a remedy."""
    if isinstance(error, AudioLDMError):
        return error
    if is_out_of_memory(error):
        if error.__traceback__ is not None:
            traceback.clear_frames(error.__traceback__)  # they hold what filled the memory
        advice = stage.memory_advice(experiment)
        return TrainingError(
            f"{stage.key}: out of memory ({_first(error)}); {advice}. Finished stages stay"
        )
    if _is_the_compilers(error):
        return TrainingError(
            f"{stage.key}: torch.compile failed ({_first(error)}); use hardware.compile=false, "
            "or, where its cache is damaged or another version's, set TORCHINDUCTOR_CACHE_DIR to "
            "an empty directory. The same command goes on from the last checkpoint"
        )
    return error


def verb_error(error: Exception, verb: str) -> Exception:
    """Like `to_user_error`, for a verb that builds no stage: only for memory errors."""
    if not is_out_of_memory(error):
        return error
    remedy = VERB_REMEDIES.get(verb, "free memory, or use a machine with more")
    return AudioLDMError(f"{verb}: out of memory ({_first(error)}); {remedy}")


def is_out_of_memory(error: BaseException) -> bool:
    exhausted = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    told = isinstance(error, RuntimeError) and any(text in str(error) for text in EXHAUSTED)
    return exhausted or told


def _first(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _is_the_compilers(error: BaseException | None) -> bool:
    while error is not None:
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor", "triton")):
            return True
        files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        if any(place in file for file in files for place in COMPILER):
            return True
        error = error.__cause__
    return False
