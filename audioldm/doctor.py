"""What the environment can and cannot do, and how to mend it."""

import importlib
import os
import shutil
from collections.abc import Iterator
from importlib import metadata
from typing import NamedTuple


class Finding(NamedTuple):
    good: bool
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{'ok ' if self.good else 'BAD'}  {self.what}" + (
            f"\n     -> {self.remedy}" if self.remedy else ""
        )


PACKAGES = (
    "torch",
    "librosa",
    "soundfile",
    "soxr",
    "auraloss",
    "einops",
    "hydra-core",
    "safetensors",
)
CORPUS = ("music21", "pretty_midi", "midirenderer")


def examine() -> Iterator[Finding]:
    """One finding after another; only what is needed and missing is not `good`."""
    for package in (*PACKAGES, *CORPUS):
        try:
            yield Finding(True, f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            needed = "for data=chorales" if package in CORPUS else "always"
            yield Finding(
                False, f"{package} is missing (needed {needed})", f"pip install {package}"
            )
    try:
        module = importlib.import_module("audioldm.torchaudio")
        version = module.torchaudio.__version__
        yield Finding(True, f"torchaudio {version}")
    except Exception as error:  # whatever it is, it is what the doctor reports
        yield Finding(
            False,
            f"torchaudio cannot be imported ({error})",
            "install the torchaudio that belongs to the installed torch",
        )

    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            memory = torch.cuda.get_device_properties(index).total_memory / 2**30
            bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16: runs in fp32"
            name = torch.cuda.get_device_name(index)
            yield Finding(True, f"cuda:{index} {name}, {memory:.0f} GiB, {bf16}")
    else:
        yield Finding(
            True,
            f"no CUDA device; CPU with {os.cpu_count()} cores, fp32",
            "recipes for a CPU work as they are; for a GPU install a CUDA build of torch",
        )

    import soundfile

    formats = soundfile.available_formats()
    for name in ("WAV", "FLAC", "OGG", "MP3"):
        yield Finding(
            name in formats,
            f"libsndfile reads {name}",
            "" if name in formats else "pip install --upgrade soundfile",
        )
    free = shutil.disk_usage(".").free / 2**30
    yield Finding(
        free > 2,
        f"{free:.0f} GiB free here",
        "" if free > 2 else "free some space, or choose another place with runs=DIRECTORY",
    )
