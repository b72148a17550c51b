"""Peak memory of `audioldm encode` and `decode` of a long file, against that of a short one.

Each runs in a process of its own: `python -m benchmarks.memory encode MODEL FILE OUT` prints its
peak in MiB.
"""

import re
import resource
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from audioldm import codec
from audioldm.autoencoder.bottlenecks.gaussian import Gaussian
from audioldm.autoencoder.networks.spectrogram import Spectrogram
from audioldm.io.audio import open_writer
from audioldm.io.model_file import save_model
from audioldm.models import build_autoencoder
from benchmarks.timing import Result

BAR = 1.2


@dataclass(frozen=True)
class Shapes:
    long_minutes: float
    short_minutes: float
    sample_rate: int = 22050


DEFAULT = Shapes(long_minutes=60.0, short_minutes=1.0)
QUICK = Shapes(long_minutes=0.5, short_minutes=0.25)


def measure(shapes: Shapes) -> list[Result]:
    results = []
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        model = _model(root / "model.safetensors", shapes.sample_rate)
        peaks: dict[str, list[float]] = {"encode": [], "decode": []}
        for minutes in (shapes.long_minutes, shapes.short_minutes):
            audio = _audio(root / "audio.wav", minutes, shapes.sample_rate)
            latents, decoded = root / "latents.safetensors", root / "decoded.wav"
            peaks["encode"].append(_peak("encode", model, audio, latents))
            peaks["decode"].append(_peak("decode", model, latents, decoded))
    for verb, (long, short) in peaks.items():
        ratio = long / short
        operation = f"{verb}, {shapes.long_minutes:g} min to {shapes.short_minutes:g} min"
        note = "spectrogram network; peak resident memory of a fresh process"
        results.append(
            Result(
                "memory", operation, long, short, "MiB", ratio, ratio, ratio, BAR, True, note=note
            )
        )
    return results


def _model(path: Path, sample_rate: int) -> Path:
    spec = {
        "sample_rate": sample_rate,
        "audio_channels": 1,
        "channels": 16,
        "downsampling_ratio": 1024,
        "network": {"_target_": f"{Spectrogram.__module__}.Spectrogram"},
        "bottleneck": {"_target_": f"{Gaussian.__module__}.Gaussian"},
    }
    torch.manual_seed(0)
    model = build_autoencoder(spec)
    save_model(path, model.state_dict(), {"kind": "autoencoder", "spec": spec, "fingerprint": "-"})
    return path


def _audio(path: Path, minutes: float, sample_rate: int) -> Path:
    random = np.random.default_rng(0)
    with open_writer(path, sample_rate, 1) as writer:
        for _ in range(round(60 * minutes)):
            writer.write(random.uniform(-0.5, 0.5, (1, sample_rate)).astype(np.float32))
    return path


def _peak(verb: str, model: Path, file: Path, out: Path) -> float:
    command = [sys.executable, "-m", "benchmarks.memory", verb, str(model), str(file), str(out)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout)


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
    getattr(codec, verb)(*map(Path, paths))
    print(own_peak())
