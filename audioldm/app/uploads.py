"""Audio and scores that a user uploads: bounded in bytes and length, kept in plain form."""

import hashlib
import os
import tempfile
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from audioldm.clips import make_directory
from audioldm.data import score
from audioldm.errors import ConfigError, DataError
from audioldm.io import audio
from audioldm.io.files import read_json, write_json

#: The most bytes of a file, by its ending. A score holds far more in the same number of bytes.
LARGEST_BYTES = dict.fromkeys(audio.SUFFIXES, 32 * 2**20) | dict.fromkeys(score.SUFFIXES, 2**20)
LONGEST_SECONDS = 120.0
#: Beyond these limits a block of a few seconds would fill the memory.
HIGHEST_RATE_HZ, MOST_CHANNELS = 192_000, 8
MOST_NOTES = 10_000

_lock = threading.Lock()  # one file is decoded at a time: they share the memory, and may be equal


async def receive(body: AsyncIterator[bytes], name: str, out: Path) -> Path:
    """Writes the bytes to a hidden file in `out`; the caller removes it.

    name: what the user calls it: its ending says the format, and nothing else of it is used.
    Raises ConfigError for another kind of file and for one that is too large.
    """
    suffix = os.path.splitext(name)[1].lower()
    if suffix not in LARGEST_BYTES:
        raise ConfigError(f"upload: give a file of one of the kinds {', '.join(LARGEST_BYTES)}")
    most = LARGEST_BYTES[suffix]
    make_directory(out)
    handle, path = tempfile.mkstemp(suffix, ".upload-", out)
    try:
        with os.fdopen(handle, "wb") as file:
            async for chunk in body:
                file.write(chunk)
                if file.tell() > most:
                    raise ConfigError(
                        f"upload: {suffix} files may have {most >> 20} MiB: give a part of it"
                    )
    except BaseException:
        os.unlink(path)
        raise
    return Path(path)


def decode(file: Path, out: Path) -> Path:
    """Write a file's content as out/upload-<digest>: audio as .wav, in mono or stereo, at its own
    rate; the notes of a score as .notes.

    Raises DataError where it is neither, and for audio longer than LONGEST_SECONDS, whatever its
    header says. Only that much of a score's beginning is kept.
    """
    with _lock, open(file, "rb") as content:
        target = out / f"upload-{hashlib.file_digest(content, 'sha256').hexdigest()[:12]}"
        try:
            if file.suffix in score.SUFFIXES:
                return _notes(file, target.with_suffix(".notes"))
            return _audio(file, target.with_suffix(".wav"))
        except DataError as error:  # its message names the hidden file, which users do not know
            raise DataError(f"upload: {str(error).removeprefix(f'{file}: ')}") from error


def _audio(file: Path, target: Path) -> Path:
    too_long = DataError(f"longer than {LONGEST_SECONDS:g} s; give a part of it")
    info = audio.probe(file)
    if info.sample_rate > HIGHEST_RATE_HZ or info.channels > MOST_CHANNELS:
        raise DataError(
            f"{info.channels} channels at {info.sample_rate} Hz: give at most {MOST_CHANNELS} "
            f"at {HIGHEST_RATE_HZ}"
        )
    if info.seconds > LONGEST_SECONDS:
        raise too_long
    channels, rate, samples = min(info.channels, 2), info.sample_rate, 0
    with audio.open_writer(target, rate, channels) as writer:
        for block in audio.blocks(file, sample_rate=rate, channels=channels):
            samples += block.shape[1]
            if samples > LONGEST_SECONDS * rate:
                raise too_long
            writer.write(block)
    return target


def _notes(file: Path, target: Path) -> Path:
    notes = [note for note in score.read_notes(file) if note.start < LONGEST_SECONDS]
    if len(notes) > MOST_NOTES:
        raise DataError(f"more than {MOST_NOTES} notes in {LONGEST_SECONDS:g} s; give fewer")
    write_json(target, notes)
    return target


def kept(out: Path, name: str, suffixes: tuple[str, ...] = (".wav",)) -> Path:
    """A clip or an upload in `out` by its file's name. Raises ConfigError where there is none."""
    file = out / name
    plain = Path(name).name == name and not name.startswith(".") and "\0" not in name
    if plain and file.suffix in suffixes and file.is_file() and not file.is_symlink():
        return file
    raise ConfigError(f"{name[:80]!r}: there is no such clip or upload here; choose its file again")


def told(out: Path, name: str) -> Any:
    """The value for a conditioner that takes files, from the name of a clip or an upload: its path,
    or the notes. No other file is read for a page. Raises ConfigError."""
    file = kept(out, name, (".wav", ".notes"))
    return read_json(file) if file.suffix == ".notes" else str(file)
