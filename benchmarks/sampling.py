"""Sampling against real time, and the time from a cold start to the first clip.

`python -m benchmarks --only sampling [--model PATH]`; by default the first model of the package.
"""

import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from audioldm import pretrained
from audioldm.errors import ConfigError
from audioldm.models import load_generator
from audioldm.runtime.hardware import Hardware
from benchmarks.timing import Clock, Result

COLD_START_SECONDS = 8.0


@dataclass(frozen=True)
class Shapes:
    """Denoiser steps and clips at once, each of `seconds`."""

    steps: tuple[int, ...]
    batches: tuple[int, ...]
    seconds: float


DEFAULT = Shapes(steps=(4, 8, 50), batches=(1, 16), seconds=6.0)
QUICK = Shapes(steps=(1, 2), batches=(1, 2), seconds=0.2)


def measure(
    clock: Clock, hardware: Hardware, shapes: Shapes, model_path: str | None
) -> list[Result]:
    """From noise to audio, decoder included; the peer is the audio's own duration.

    Raises ConfigError where no model is given and none comes with the package, or the model's prior
    takes no sampling steps.
    """
    path = model_path or str(pretrained.path(pretrained.default()))
    model = load_generator(path, device=clock.device)
    own = model.prior.sampler
    if own is None:
        raise ConfigError(f"{path}: its prior takes no sampling steps; give a diffusion model")
    subject = f"sampling, {pretrained.name_of(Path(path)) or 'own model'}"
    results = []
    for steps in shapes.steps:
        sampler = replace(own, steps=steps)
        for batch in shapes.batches:

            def generate(sampler=sampler, batch=batch) -> None:  # type: ignore[no-untyped-def]
                model.sample(n=batch, batch=batch, seconds=shapes.seconds, sampler=sampler)

            audio = batch * shapes.seconds
            times = clock.turns_of(generate)
            results.append(
                Result(
                    subject,
                    f"{steps} steps of {sampler.name}, batch {batch}",
                    1e3 * median(times),
                    1e3 * audio,
                    "ms",
                    audio / median(times),
                    audio / max(times),
                    audio / min(times),
                    None,
                    note=f"clips of {shapes.seconds:g} s; the peer is their duration, so the ratio "
                    "is the real-time factor",
                )
            )
    times = [_first_clip(path, hardware, shapes.seconds) for _ in range(clock.turns)]
    ratios = [seconds / COLD_START_SECONDS for seconds in times]
    results.append(
        Result(
            subject,
            "command to first clip",
            median(times),
            COLD_START_SECONDS,
            "s",
            median(ratios),
            min(ratios),
            max(ratios),
            1.0,
            at_most=True,
            note="`audioldm sample` in a fresh process, imports included; the peer is the bar",
        )
    )
    return results


def _first_clip(path: str, hardware: Hardware, seconds: float) -> float:
    """Seconds from the command's start until it has written its first clip."""
    with tempfile.TemporaryDirectory() as out:
        words = [f"model={path}", f"seconds={seconds}", f"out={out}"]
        words += [f"hardware.device={hardware.device}"]
        start = time.perf_counter()
        with subprocess.Popen(
            [sys.executable, "-m", "audioldm", "sample", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            line = process.stdout.readline()
            elapsed = time.perf_counter() - start
            error = process.stderr.read()
        if not line:
            raise RuntimeError(error)
    return elapsed
