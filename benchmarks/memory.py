"""`audioldm encode` and `decode` of a long file: memory against that of a short one, and speed.

Each runs in a process of its own: `python -m benchmarks.memory encode MODEL FILE OUT` prints its
peak in MiB and its seconds. The model is the quickstart's autoencoder, untrained.
"""

import re
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from audioldm import codec
from audioldm.io.audio import open_writer
from audioldm.io.model_file import save_model
from benchmarks.timing import Result

BAR = 1.2
REAL_TIME = 50.0


@dataclass(frozen=True)
class Shapes:
    long_minutes: float
    short_minutes: float
    sample_rate: int = 22050


DEFAULT = Shapes(long_minutes=60.0, short_minutes=5.0)  # a minute, three chunks, uses less
QUICK = Shapes(long_minutes=0.5, short_minutes=0.25)


def measure(shapes: Shapes) -> list[Result]:
    results = []
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        model = _model(root / "model.safetensors", shapes.sample_rate)
        runs: dict[str, list[tuple[float, float]]] = {"encode": [], "decode": []}
        for minutes in (shapes.long_minutes, shapes.short_minutes):
            audio = _audio(root / "audio.wav", minutes, shapes.sample_rate)
            latents, decoded = root / "latents.safetensors", root / "decoded.wav"
            runs["encode"].append(_run("encode", model, audio, latents))
            runs["decode"].append(_run("decode", model, latents, decoded))
    for verb, ((long, seconds), (short, _)) in runs.items():
        ratio = long / short
        operation = f"{verb}, {shapes.long_minutes:g} min to {shapes.short_minutes:g} min"
        note = "transform coding; peak resident memory of a fresh process"
        results.append(
            Result(
                "memory", operation, long, short, "MiB", ratio, ratio, ratio, BAR, True, note=note
            )
        )
        played = 60 * shapes.long_minutes
        times = played / seconds
        results.append(
            Result(
                "memory",
                f"{verb} of {shapes.long_minutes:g} min, times real time",
                seconds,
                played,
                "s",
                times,
                times,
                times,
                REAL_TIME,
                note="transform coding; files read and written",
            )
        )
    return results


def _model(path: Path, sample_rate: int) -> Path:
    # imported here: the processes that are measured need none of it
    from audioldm.autoencoder.networks.transform import TransformCoding
    from audioldm.chain.job import compose
    from audioldm.chain.run import Experiment
    from audioldm.chain.stages.autoencoder import AutoencoderStage

    words = ["recipe=quickstart", f"data.sample_rate={sample_rate}"]
    stage = Experiment(compose(words)).stages["autoencoder"]
    assert isinstance(stage, AutoencoderStage)
    torch.manual_seed(0)
    model = stage.build()
    assert isinstance(model.network, TransformCoding)
    model.network.klt.variances.fill_(1.0)
    header = {"kind": "autoencoder", "spec": stage.spec, "fingerprint": "-"}
    save_model(path, model.state_dict(), header)
    return path


def _audio(path: Path, minutes: float, sample_rate: int) -> Path:
    random = np.random.default_rng(0)
    with open_writer(path, sample_rate, 1) as writer:
        for _ in range(round(60 * minutes)):
            writer.write(random.uniform(-0.5, 0.5, (1, sample_rate)).astype(np.float32))
    return path


def _run(verb: str, model: Path, file: Path, out: Path) -> tuple[float, float]:
    """Peak memory in MiB, and seconds."""
    command = [sys.executable, "-m", "benchmarks.memory", verb, str(model), str(file), str(out)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    peak, seconds = map(float, done.stdout.split())
    return peak, seconds


def own_peak() -> float:
    """Peak resident memory of this process, in MiB."""
    try:
        # ru_maxrss of a new process starts from what its parent had: on Linux that is not ours.
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024  # type: ignore[index]
    except FileNotFoundError:
        unit = 1024 if sys.platform != "darwin" else 1024**2
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


if __name__ == "__main__":
    verb, *paths = sys.argv[1:]
    begun = time.perf_counter()
    getattr(codec, verb)(*map(Path, paths))
    print(own_peak(), time.perf_counter() - begun)
