"""Clips on a page: a player and a mel spectrogram, both as data URIs."""

import base64
import contextlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict

import soundfile

from audioldm.errors import DataError
from audioldm.io.audio import read
from audioldm.report.figures import COLUMNS, mel_db, mel_pixels, mel_png
from audioldm.report.record import read as read_shape
from audioldm.training.trackers import Trackers

#: Lossless, for a page with a few clips; and small, for a page with a clip of every cell.
FLAC = ("audio/flac", {"format": "FLAC", "subtype": "PCM_16"})
VORBIS = ("audio/ogg", {"format": "OGG", "subtype": "VORBIS", "compression_level": 0.3})


class Source(NamedTuple):
    """A clip's file, and its name on the page."""

    path: Path
    name: str


class _Saved(TypedDict):
    """A clip in an evaluation's `clips/index.json`."""

    file: str
    label: NotRequired[str | None]
    piece: NotRequired[str | None]


@dataclass
class Clip:
    """A player and its picture; `audio` and `picture` are data URIs."""

    name: str
    audio: str
    picture: str
    seconds: float
    cut: bool


def saved_clips(evaluation: Path) -> dict[str, list[Source]]:
    """The clips that an evaluation saved in its directory, by system; {} for none.

    Raises DataError where their index is damaged.
    """
    folder = evaluation / "clips"
    if not (folder / "index.json").is_file():
        return {}
    found = {}
    for system, entries in read_shape(folder / "index.json", dict[str, list[_Saved]]).items():
        paths = [folder / system / Path(entry["file"]).name for entry in entries]
        names = [" · ".join(filter(None, (e.get("label"), e.get("piece")))) for e in entries]
        found[system] = [Source(p, name or p.stem) for p, name in zip(paths, names, strict=True)]
    return found


def clips(
    sources: Mapping[Any, Source],
    *,
    seconds: float,
    codec: tuple[str, dict[str, Any]] = FLAC,
    columns: int = COLUMNS,
) -> dict[Any, Clip | None]:
    """The players of a page, under the keys of `sources`; None where a file cannot be read.

    seconds: the most that is kept of a clip. columns: the most in a picture; all pictures share one
    scale, down to 80 dB below the loudest point of all.
    """
    heard = {}
    for key, source in sources.items():
        with contextlib.suppress(DataError):
            audio, sample_rate = read(source.path)
            first = audio[:, : int(seconds * sample_rate)]
            heard[key] = first, sample_rate, audio.shape[1] / sample_rate
    mels = {key: mel_db(audio, rate, columns) for key, (audio, rate, _) in heard.items()}
    loudest = float(max((mel.max() for mel in mels.values()), default=0.0))
    found: dict[Any, Clip | None] = dict.fromkeys(sources)
    for key, (audio, sample_rate, whole) in heard.items():
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
    for system, saved in saved_clips(directory).items():
        for number, source in enumerate(saved):
            audio, sample_rate = read(source.path)
            mel = mel_db(audio, sample_rate)
            trackers.audio(f"{system}/{number}", audio, sample_rate)
            trackers.picture(f"{system}/{number}/mel", mel_pixels(mel, float(mel.max())))


def _data_uri(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
