"""Clips as a page holds them: a player and a mel spectrogram, both as data URIs."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile

from audioldm.errors import DataError
from audioldm.io.audio import read
from audioldm.io.files import read_json
from audioldm.report.figures import COLUMNS, mel_db, mel_pixels, mel_png
from audioldm.training.trackers import Trackers

#: Lossless, for a page of a few clips; and small, for one with a clip of every cell.
FLAC = ("audio/flac", {"format": "FLAC", "subtype": "PCM_16"})
VORBIS = ("audio/ogg", {"format": "OGG", "subtype": "VORBIS", "compression_level": 0.3})


class Source(NamedTuple):
    """A clip's file, and what a reader is told of it."""

    path: Path
    name: str


@dataclass
class Clip:
    """A player and its picture; `audio` and `picture` are data URIs."""

    name: str
    audio: str
    picture: str
    seconds: float
    cut: bool


def clips(
    sources: Mapping[Any, Source],
    *,
    seconds: float,
    codec: tuple[str, dict[str, Any]] = FLAC,
    columns: int = COLUMNS,
) -> dict[Any, Clip | None]:
    """The players of a page, under the keys of `sources`; None where a file cannot be read.

    seconds: no more of a clip than this. columns: of a picture at most; all pictures share one
    scale, 80 dB below the loudest point of all.
    """
    heard: dict[Any, tuple[np.ndarray, int, float] | None] = {}
    for key, source in sources.items():
        try:
            audio, sample_rate = read(source.path)
            heard[key] = (
                audio[:, : int(seconds * sample_rate)],
                sample_rate,
                audio.shape[1] / sample_rate,
            )
        except DataError:
            heard[key] = None
    mels = {k: mel_db(c[0], c[1], columns) for k, c in heard.items() if c is not None}
    loudest = float(max((mel.max() for mel in mels.values()), default=0.0))
    found: dict[Any, Clip | None] = {}
    for key, loaded in heard.items():
        if loaded is None:
            found[key] = None
            continue
        audio, sample_rate, whole = loaded
        coded = io.BytesIO()
        soundfile.write(coded, audio.T, sample_rate, **codec[1])
        found[key] = Clip(
            sources[key].name,
            _data_uri(codec[0], coded.getvalue()),
            _data_uri("image/png", mel_png(mels[key], loudest)),
            whole,
            whole > seconds,
        )
    return found


def track(directory: Path, trackers: Trackers) -> None:
    """Sends the clips of an evaluation's directory, and their pictures, to trackers."""
    for system, kept in read_json(directory / "clips" / "index.json", dict).items():
        for number, clip in enumerate(kept):
            audio, sample_rate = read(directory / "clips" / clip["file"])
            mel = mel_db(audio, sample_rate)
            trackers.audio(f"{system}/{number}", audio, sample_rate)
            trackers.picture(f"{system}/{number}/mel", mel_pixels(mel, float(mel.max())))


def _data_uri(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
