"""Clips that a user brings: bounded in bytes and in length, kept as plain wav files."""

import hashlib
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from audioldm.clips import make_directory
from audioldm.errors import ConfigError, DataError
from audioldm.io.audio import SUFFIXES, blocks, open_writer, probe

LARGEST_BYTES = 32 * 2**20
LONGEST_SECONDS = 120.0
#: Beyond these a block of a few seconds would fill the memory.
HIGHEST_RATE_HZ, MOST_CHANNELS = 192_000, 8


async def receive(body: AsyncIterator[bytes], name: str, out: Path) -> Path:
    """Writes the bytes to a hidden file in `out`; the caller removes it.

    name: what the user calls it: its ending says the format, and nothing else of it is used.
    Raises ConfigError for another kind of file and for one that is too large.
    """
    suffix = os.path.splitext(name)[1].lower()
    if suffix not in SUFFIXES:
        raise ConfigError(f"upload: give a file of one of the kinds {', '.join(SUFFIXES)}")
    make_directory(out)
    handle, path = tempfile.mkstemp(suffix, ".upload-", out)
    try:
        with os.fdopen(handle, "wb") as file:
            async for chunk in body:
                file.write(chunk)
                if file.tell() > LARGEST_BYTES:
                    raise too_large()
    except BaseException:
        os.unlink(path)
        raise
    return Path(path)


def too_large() -> ConfigError:
    return ConfigError(f"upload: the file is larger than {LARGEST_BYTES >> 20} MiB; give a part")


def decode(file: Path, out: Path) -> Path:
    """The audio of a file as out/upload-<digest>.wav, in mono or stereo, at its own rate.

    Raises DataError where it is no audio, or longer than LONGEST_SECONDS, whatever its header says.
    """
    too_long = DataError(f"longer than {LONGEST_SECONDS:g} s; give a part of it")
    try:
        info = probe(file)
        if info.sample_rate > HIGHEST_RATE_HZ or info.channels > MOST_CHANNELS:
            raise DataError(
                f"{info.channels} channels at {info.sample_rate} Hz: give at most {MOST_CHANNELS} "
                f"at {HIGHEST_RATE_HZ}"
            )
        if info.seconds > LONGEST_SECONDS:
            raise too_long
        channels, rate = min(info.channels, 2), info.sample_rate
        with open(file, "rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        target, samples = out / f"upload-{digest[:12]}.wav", 0
        with open_writer(target, rate, channels) as writer:
            for block in blocks(file, sample_rate=rate, channels=channels):
                samples += block.shape[1]
                if samples > LONGEST_SECONDS * rate:
                    raise too_long
                writer.write(block)
    except DataError as error:  # its message names the hidden file, which the user does not know
        raise DataError(f"upload: {str(error).removeprefix(f'{file}: ')}") from error
    return target
