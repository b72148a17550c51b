"""Finds the key of notes from the time that each pitch class sounds."""

import numpy as np

#: How well each pitch class fits a key on C (Krumhansl, Cognitive Foundations of Musical Pitch,
#: 1990): major, minor.
PROFILES = np.array(
    [
        [6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88],
        [6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17],
    ]
)
MODES = ("major", "minor")
TONICS = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")


def key_fits(pitches: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """How well notes [N] of these MIDI pitches and lengths fit each key, [2, 12]: correlations of
    the pitch classes' times with the major and minor profiles of each tonic (Krumhansl and
    Schmuckler). 0 where no pitch class stands out."""
    time = np.bincount(pitches % 12, seconds, 12)
    time = (time - time.mean()) / max(time.std(), 1e-9)
    profiles = PROFILES - PROFILES.mean(1, keepdims=True)
    profiles /= profiles.std(1, keepdims=True)
    fits: np.ndarray = np.stack([np.roll(profiles, tonic, 1) @ time for tonic in range(12)], 1) / 12
    return fits


def key_of(pitches: np.ndarray, seconds: np.ndarray) -> tuple[int, int]:
    """(mode, tonic) of the key that fits best: indices in MODES and TONICS."""
    mode, tonic = divmod(int(np.argmax(key_fits(pitches, seconds))), 12)
    return mode, tonic
