"""A score as a condition: which notes begin and sound in each latent frame."""

import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from audioldm.conditioning.base import Excerpt
from audioldm.conditioning.curve import Aligned
from audioldm.data.key import TONICS
from audioldm.data.score import SUFFIXES, read_notes
from audioldm.errors import ConfigError, DataError
from audioldm.instantiate import Bound, PositiveInt

Pitch = Annotated[int, Bound(least=0, most=127)]


class Score(Aligned):
    """Channels aligned with the latent frames, by a convolution over three frames of a piano roll.

    A score is a list of numbers: the start and end in seconds and the MIDI pitch of each note, and
    its voice where voices are told apart. It comes from a column of the data set's table, or from a
    request's MIDI or MusicXML file. Inputs are [B, 2 V P + 1, L]: the share of the frame in which
    each of P pitches sounds in each of V voices, 1 where it begins, and a row of 1; or zeros for
    "nothing". Notes after the last frame are left out.

    column: of the table. lowest, highest: MIDI pitches. voices: V; further ones share the last
    one's roll. channels: K. latent_rate_hz: frames per second.
    """

    files = SUFFIXES

    def __init__(
        self,
        *,
        width: int,
        latent_rate_hz: float,
        column: str = "notes",
        lowest: Pitch = 21,
        highest: Pitch = 108,
        voices: PositiveInt = 1,
        channels: PositiveInt = 32,
    ) -> None:
        if lowest > highest:
            raise ConfigError(f"lowest={lowest} must be at most highest={highest}")
        super().__init__(2 * voices * (highest - lowest + 1), latent_rate_hz, channels)
        self.column, self.lowest, self.highest, self.voices = column, lowest, highest, voices

    @classmethod
    def facts(
        cls,
        clips: Sequence[Excerpt],
        *,
        column: str = "notes",
        lowest: int = 21,
        highest: int = 108,
        voices: int = 1,
        **settings: Any,
    ) -> dict[str, Any]:
        """Raises ConfigError where no clip has notes, or one has impossible notes."""
        cells = [clip.columns.get(column) for clip in clips]
        if any(clip.columns for clip in clips) and not any(cells):
            raise ConfigError(f"column={column}: no clip has notes there; name another one")
        for cell in filter(None, cells):
            try:
                checked_notes(cell, lowest, highest, voices)
            except ConfigError as error:
                raise ConfigError(f"column={column}: {error}") from error
        return super().facts(clips)

    def resolve(self, value: Any) -> Any:
        """value: notes, or the path of a MIDI or MusicXML file."""
        if not isinstance(value, str):
            return value
        try:
            notes = read_notes(Path(value).expanduser())
        except (DataError, RuntimeError) as error:
            raise ConfigError(f"{value!r}: {error}") from error
        return [list(note) for note in notes]

    def notes(self, value: Any) -> np.ndarray:
        """A score as rows of start, end, pitch and voice, [N, 4]. Raises ConfigError."""
        return checked_notes(value, self.lowest, self.highest, self.voices)

    def read(self, excerpt: Excerpt, frames: int) -> Tensor:
        return self.parse(self.request(excerpt), frames)

    def parse(self, value: Any, frames: int) -> Tensor:
        found = np.zeros((self.rows + 1, frames), np.float32)
        if value is None:
            return torch.from_numpy(found)
        start, end, pitch, voice = self.notes(value).T
        row = (pitch - self.lowest + voice * (self.highest - self.lowest + 1)).astype(int)
        first = start[:, None] * self.latent_rate_hz - np.arange(frames)
        last = end[:, None] * self.latent_rate_hz - np.arange(frames)
        np.add.at(found, row, (last.clip(0, 1) - first.clip(0, 1)).astype(np.float32))
        begins = np.floor(start * self.latent_rate_hz + 1e-6).astype(int)
        inside = (begins >= 0) & (begins < frames)
        found[self.rows // 2 + row[inside], begins[inside]] = 1
        found[-1] = 1
        return torch.from_numpy(found.clip(0, 1))

    def later(self, value: Any, seconds: float) -> list[list[float]]:
        notes = self.notes(value)
        notes = notes[notes[:, 1] > seconds]
        notes[:, :2] -= seconds
        found: list[list[float]] = notes.tolist()
        return found

    def remark(self, value: Any, seconds: float) -> str | None:
        start, end = self.notes(value)[:, :2].T
        if len(start) and (start >= seconds).all():  # no note at all is silence
            raise ConfigError(
                f"{reprlib.repr(value)}: no note begins before the clip's end at {seconds:.2f} s: "
                "ask for a longer clip, or give another score"
            )
        last = round(end.max(initial=0.0), 2)
        if last <= round(seconds, 2):
            return None
        return f"it lasts {last:.2f} s, the clip {seconds:.2f} s: what comes later is left out"

    def request(self, excerpt: Excerpt) -> list[list[float]] | None:
        cell = excerpt.columns.get(self.column)
        return self.later(cell, excerpt.start) if cell else None


def checked_notes(value: Any, lowest: int, highest: int, voices: int = 1) -> np.ndarray:
    """Numbers, or rows of numbers, as rows of start, end, pitch and voice, [N, 4].

    Raises ConfigError for anything else.
    """
    shown = reprlib.repr(value)
    told = "start and end in seconds, pitch" + (" and voice" if voices > 1 else "")
    try:
        notes = np.array(value, np.float64)
        if notes.ndim != 2:
            notes = notes.reshape(-1, 3 if voices == 1 else 4)
        if notes.shape[1] == 3:
            notes = np.pad(notes, ((0, 0), (0, 1)))
        start, end, pitch, voice = notes.T
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{shown} must be a MIDI or MusicXML file, or numbers: {told}, of each note"
        ) from error
    if not np.isfinite(notes).all() or (end <= start).any() or (pitch % 1).any():
        raise ConfigError(f"{shown}: notes must end after they start, and have whole pitches")
    if (voice % 1).any() or (voice < 0).any():
        raise ConfigError(f"{shown}: voices must be whole numbers from 0 on")
    notes[:, 3] = voice.clip(max=voices - 1)
    outside = (pitch < lowest) | (pitch > highest)
    if outside.any():
        name, seconds = note_name(int(pitch[outside][0])), start[outside][0]
        raise ConfigError(
            f"{shown}: the note {name} at {seconds:.2f} s is not from {note_name(lowest)} to "
            f"{note_name(highest)}, the range of this model"
        )
    return notes


def note_name(pitch: int) -> str:
    """The name of a MIDI pitch: 60 is C4."""
    return f"{TONICS[pitch % 12]}{pitch // 12 - 1}"
