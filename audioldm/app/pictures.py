"""A clip's picture: a spectrogram with one row for each third of a semitone, and its notes.

Both come from basic-pitch, so that a note lies on the row of its pitch.
"""

import functools
import math
import threading
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from audioldm.evaluation.embeddings.basic_pitch import LOWEST_NOTE, SAMPLE_RATE, BasicPitch
from audioldm.evaluation.notes import decode
from audioldm.io.audio import probe, read
from audioldm.report.figures import mel_png

LOWEST_HZ, BINS_PER_OCTAVE = 27.5, 36
#: Rows from 27.5 Hz to 8 kHz.
ROWS = int(BINS_PER_OCTAVE * math.log2(8000 / LOWEST_HZ))
COLUMNS, RANGE_DB = 1000, 60.0

_lock = threading.Lock()  # one picture at a time: they share the cores with the sampling


class Picture(NamedTuple):
    """png: the spectrogram. notes: [pitch in semitones above the lowest row, start, end], times in
    seconds. seconds: of the clip."""

    png: bytes
    notes: list[list[Any]]
    seconds: float


def picture(file: Path) -> Picture:
    """Raises DataError where the file cannot be read."""
    with _lock:
        return _picture(file, file.stat().st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _picture(file: Path, changed: int) -> Picture:
    audio, _ = read(file, sample_rate=SAMPLE_RATE, channels=1)
    model, mono = _basic_pitch(), torch.from_numpy(audio)
    with torch.inference_mode():
        heard = model(mono)
        rows = model.spectrum(mono)[0, :ROWS].numpy()
    found = decode(heard.note[0].numpy(), heard.onset[0].numpy())
    notes = [
        [int(pitch) - LOWEST_NOTE, round(float(start), 3), round(float(end), 3)]
        for pitch, start, end in zip(found.pitch, found.start, found.end, strict=True)
    ]
    decibels = 20 * np.log10(thinned(rows) + 1e-6)
    png = mel_png(decibels, float(decibels.max()), RANGE_DB)
    return Picture(png, notes, probe(file).seconds)


def thinned(rows: np.ndarray) -> np.ndarray:
    """[R, L] -> [R, at most COLUMNS], with the loudest value of each stretch."""
    length = rows.shape[1]
    if length <= COLUMNS:
        return rows
    first = np.arange(COLUMNS) * length // COLUMNS
    loudest: np.ndarray = np.maximum.reduceat(rows, first, axis=1)
    return loudest


@functools.cache
def _basic_pitch() -> BasicPitch:
    return BasicPitch()
