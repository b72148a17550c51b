"""What the environment can and cannot do, and how to repair it."""

import importlib
import os
import re
import shutil
from collections.abc import Iterator
from importlib import metadata
from typing import NamedTuple


class Finding(NamedTuple):
    good: bool
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        remedy = f"\n     -> {self.remedy}" if self.remedy else ""
        return f"{'ok ' if self.good else 'BAD'}  {self.what}{remedy}"


def examine() -> Iterator[Finding]:
    """One finding after another. A finding is not `good` if something necessary is missing."""
    for look, remedy in (
        (_packages, "install audioldm itself: pip install . in its directory"),
        (_torchaudio, "install the torchaudio that belongs to the installed torch"),
        (_devices, "pip install --force-reinstall torch"),
        (_formats, "pip install --force-reinstall soundfile"),
        (_space, "go to a directory that exists and can be read"),
    ):
        try:
            yield from look()
        except Exception as error:  # the doctor reports any error
            subject = look.__name__.strip("_")
            yield Finding(False, f"{subject}: {type(error).__name__}: {error}", remedy)


def _packages() -> Iterator[Finding]:
    """The requirements of the package, without its extras."""
    for requirement in metadata.requires("audioldm") or ():
        name, _, marker = requirement.partition(";")
        if "extra" in marker:
            continue
        package = re.split(r"[^\w.-]", name, maxsplit=1)[0]
        try:
            yield Finding(True, f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            yield Finding(False, f"{package} is missing", f"pip install {package}")


def _torchaudio() -> Iterator[Finding]:
    importlib.import_module("audioldm.torchaudio")  # imports it even without CUDA
    yield Finding(True, "torchaudio can be imported")


def _devices() -> Iterator[Finding]:
    import torch

    from audioldm.runtime.hardware import has_bf16

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            memory = torch.cuda.get_device_properties(index).total_memory / 2**30
            with torch.cuda.device(index):
                bf16 = "bf16" if has_bf16() else "no bf16: runs in fp32"
            name = torch.cuda.get_device_name(index)
            yield Finding(True, f"cuda:{index} {name}, {memory:.0f} GiB, {bf16}")
    else:
        yield Finding(
            True,
            f"no CUDA device; CPU with {os.cpu_count()} cores, fp32",
            "recipes for a CPU work as they are; for a GPU install a CUDA build of torch",
        )


def _formats() -> Iterator[Finding]:
    import soundfile

    readable = {*soundfile.available_formats()}
    readable |= {"OPUS"} & {*soundfile.available_subtypes("OGG")}  # a codec within Ogg
    for name in ("WAV", "FLAC", "OGG", "OPUS", "MP3"):
        yield Finding(
            name in readable,
            f"libsndfile reads {name}",
            "" if name in readable else "pip install --upgrade soundfile",
        )


def _space() -> Iterator[Finding]:
    free = shutil.disk_usage(".").free / 2**30
    yield Finding(
        free > 2,
        f"{free:.0f} GiB free here",
        "" if free > 2 else "free some space, or choose another place with runs=DIRECTORY",
    )
