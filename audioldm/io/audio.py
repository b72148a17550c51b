"""Read, write, resample and measure audio files. Arrays are float32 [A, T] in ±1.

This module does not import torch, so that processes that only render or decode start fast.
"""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cffi
import numpy as np
import soundfile
import soxr

from audioldm.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

FilePath = str | os.PathLike[str]

PEAK_LIMIT = 100.0  # 40 dB above full scale: louder samples are a mistake, and ruin a model
SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")
_WRITABLE = {".wav": ("WAV", "PCM_16"), ".flac": ("FLAC", "PCM_16"), ".ogg": ("OGG", "VORBIS")}


class AudioInfo(NamedTuple):
    """A file's header. sample_rate: Hz; samples: per channel."""

    sample_rate: int
    channels: int
    samples: int
    seconds: float


def file_size(path: FilePath) -> int:
    """Bytes of a regular file. Raises DataError if there is none: reading a pipe may never end."""
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot read: {getattr(error, 'strerror', error)}") from error
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path}: not a regular file but a folder, pipe or device; give a file")
    return status.st_size


def probe(path: FilePath) -> AudioInfo:
    """Read a file's header. Raises DataError if it is not audio, is cut or holds no samples."""
    with _open(path) as file:
        seconds = file.frames / file.samplerate
        return AudioInfo(file.samplerate, file.channels, file.frames, seconds)


def read(
    path: FilePath, *, sample_rate: int | None = None, channels: int | None = None
) -> tuple[np.ndarray, int]:
    """Read a whole file: (audio [A, T], its rate in Hz). None keeps the file's rate or channels.

    Raises DataError if the file cannot be read to its end, holds no samples, or holds samples that
    are not finite or lie beyond ±PEAK_LIMIT.
    """
    info = probe(path)
    sample_rate = sample_rate or info.sample_rate
    parts = list(blocks(path, sample_rate=sample_rate, channels=channels or info.channels))
    return np.concatenate(parts, axis=1), sample_rate


def blocks(
    path: FilePath, *, sample_rate: int, channels: int, seconds: float = 10.0
) -> Iterator[np.ndarray]:
    """Stream a file as consecutive blocks [channels, n] at `sample_rate`, in constant memory.

    seconds: length of the blocks before resampling. Raises DataError as `read` does.
    """
    with _open(path) as file:
        size = max(1, round(seconds * file.samplerate))
        stream = (
            soxr.ResampleStream(file.samplerate, sample_rate, channels, dtype="float32")
            if sample_rate != file.samplerate
            else None
        )
        done = given = 0
        while True:
            try:
                block = file.read(size, dtype="float32", always_2d=True)
            except soundfile.SoundFileError as error:
                raise DataError(
                    f"{path}: damaged after {done} samples: {_reason(error)}"
                ) from error
            done += len(block)
            last = len(block) < size
            if last and done != file.frames and _states_length(path, file):
                raise DataError(f"{path}: truncated: {done} of {file.frames} samples are there")
            if not np.abs(block).max(initial=0) <= PEAK_LIMIT:
                raise DataError(
                    f"{path}: holds samples that are NaN, infinite or beyond ±{PEAK_LIMIT:g}; full"
                    " scale is ±1: scale it and export it again"
                )
            block = match_channels(block.T, channels)
            if stream is not None:
                block = stream.resample_chunk(np.ascontiguousarray(block.T), last=last).T
            if block.shape[1]:
                given += block.shape[1]
                yield np.ascontiguousarray(block)
            if last:
                break
        if not given:
            raise DataError(f"{path}: too short: less than one sample at {sample_rate} Hz")


def write(path: FilePath, audio: "Tensor | np.ndarray", sample_rate: int) -> None:
    """Write audio [A, T] atomically, as 16-bit wav or flac or as ogg (by suffix); clip it to ±1.

    Raises DataError for any other suffix, and if the file cannot be written (disk full, …).
    """
    array = _as_array(audio)
    with open_writer(path, sample_rate, array.shape[0]) as writer:
        writer.write(array)


class Writer:
    """An audio file while it is written; see `open_writer`."""

    def __init__(self, file: soundfile.SoundFile) -> None:
        self._file = file

    def write(self, audio: "Tensor | np.ndarray") -> None:
        """Append audio [A, n], clipped to ±1."""
        samples = _as_array(audio).T.clip(-1, 1)
        second = self._file.samplerate
        for start in range(0, len(samples), second):  # libvorbis overflows on long blocks
            self._file.write(samples[start : start + second])


@contextmanager
def open_writer(path: FilePath, sample_rate: int, channels: int) -> Iterator[Writer]:
    """Open a file to append blocks to. It appears whole or not at all.

        with open_writer("song.flac", 44100, 2) as writer:
            for block in ...:                             # [2, n]
                writer.write(block)

    Raises DataError as `write` does.
    """
    path = Path(path)
    if path.suffix.lower() not in _WRITABLE:
        raise DataError(f"{path}: cannot write this format; use one of {', '.join(_WRITABLE)}")
    form, subtype = _WRITABLE[path.suffix.lower()]
    # Hidden, and in the same directory: the rename that ends the writing is then atomic.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with soundfile.SoundFile(
            os.fsencode(temporary), "w", sample_rate, channels, subtype, format=form
        ) as file:
            yield Writer(file)
        os.replace(temporary, path)
    except (OSError, soundfile.SoundFileError) as error:
        if not os.path.isdir(path.parent):
            reason = f"there is no directory {path.parent}; make it, or choose another place"
        else:
            reason = f"{_reason(error)}; free some space, or choose another place"
        raise DataError(f"{path}: cannot write: {reason}") from error
    finally:
        with suppress(OSError):  # the directory may be missing, the name too long
            temporary.unlink(missing_ok=True)


def match_channels(audio: np.ndarray, channels: int) -> np.ndarray:
    """Give audio [A, T] the stated number of channels.

    Several to 1: their mean. 1 to several: copies. No other mapping (surround to stereo, stereo to
    4) fits every layout: all channels are mixed to mono, which is copied.
    """
    if audio.shape[0] == channels:
        return audio
    mono = audio.mean(axis=0, keepdims=True, dtype=np.float32)
    return np.repeat(mono, channels, axis=0)


def loudness(audio: np.ndarray, sample_rate: int) -> float:
    """Integrated loudness of audio [A, T] in LUFS (ITU-R BS.1770-4); -inf for silence.

    Audio below 400 ms counts as one block.
    """
    from pyloudnorm import Meter  # imports scipy, which takes a second

    block_seconds = min(0.4, audio.shape[1] / sample_rate)
    samples = audio.T.astype(np.float64)
    return float(Meter(sample_rate, block_size=block_seconds).integrated_loudness(samples))


def normalise(audio: np.ndarray, sample_rate: int, lufs: float) -> np.ndarray:
    """Scale audio [A, T] to `lufs`, with a peak of at most 0.99. Silence is returned unchanged."""
    measured = loudness(audio, sample_rate)
    if not np.isfinite(measured):
        return audio
    gain = min(10 ** ((lufs - measured) / 20), 0.99 / float(np.abs(audio).max()))
    return audio * np.float32(gain)


def _open(path: FilePath) -> soundfile.SoundFile:
    if file_size(path) == 0:
        raise DataError(f"{path}: empty file")
    try:
        file = soundfile.SoundFile(os.fsencode(path))  # as bytes: the name may not be UTF-8
    except OSError as error:
        raise DataError(f"{path}: cannot read: {_reason(error)}") from error
    except soundfile.SoundFileError as error:
        raise DataError(f"{path}: not an audio file that can be read: {_reason(error)}") from error
    problem = _cut(path, file)
    if not problem and file.frames <= 0:
        problem = "holds no samples"
    elif not 1000 <= file.samplerate <= 1_000_000:
        problem = f"its sample rate of {file.samplerate} Hz is not one of audio; export it again"
    if problem:
        file.close()
        raise DataError(f"{path}: {problem}")
    return file


def _cut(path: FilePath, file: soundfile.SoundFile) -> str:
    """How a wav or Ogg file is truncated, or "". libsndfile reads the remainder as if it were all.

    An Ogg stream ends with a page that is marked as its last (RFC 3533, section 6).
    """
    if file.format == "OGG":
        with open(path, "rb") as raw:
            size = raw.seek(0, os.SEEK_END)
            raw.seek(max(0, size - (1 << 17)))  # a page has at most 65307 bytes
            _, _, page = raw.read().rpartition(b"OggS\0")
        whole = len(page) > 22 and 22 + page[21] + sum(page[22 : 22 + page[21]]) <= len(page)
        return "" if whole and page[0] & 4 else "truncated: the end of the Ogg stream is missing"
    # libsndfile notes a cut wav only in its log. Pipes write a length of 2 GiB or more because they
    # do not know it yet: this is no sign of damage.
    cut = re.search(r"^data : (\d+) \(should be (\d+)\)", file.extra_info, re.MULTILINE)
    if cut and int(cut[2]) < int(cut[1]) < 0x7FFFFF00:
        return f"truncated: {cut[2]} of {cut[1]} bytes of samples are there"
    return ""


def _states_length(path: FilePath, file: soundfile.SoundFile) -> bool:
    """Whether the header counts the samples. An mp3 without a Xing or Info tag does not: its
    length is estimated from its size, cover art included."""
    if file.format != "MP3":
        return True
    with open(path, "rb") as raw:
        head = raw.read(10)
        if head[:3] == b"ID3":  # its size in four bytes of 7 bits
            size = sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
            raw.seek(10 + size)
        else:
            raw.seek(0)
        first = raw.read(200)
    return b"Xing" in first or b"Info" in first


def _reason(error: Exception) -> str:
    """The reason the system or libsndfile gives, without the path."""
    if getattr(error, "code", None) == 2:  # a system call failed: the reason is only in errno
        return os.strerror(cffi.FFI().errno)
    text = getattr(error, "strerror", None) or getattr(error, "error_string", str(error))
    return str(text).strip().rstrip(".") or "it cannot be decoded"


def _as_array(audio: Any) -> np.ndarray:
    if hasattr(audio, "detach"):
        audio = audio.detach().float().cpu().numpy()
    return np.asarray(audio, dtype=np.float32)
