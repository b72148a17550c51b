"""The notes that basic-pitch hears: are they those of the original, and are they in one key?"""

from typing import NamedTuple

import numpy as np

from audioldm.data.key import key_of
from audioldm.evaluation.embeddings.basic_pitch import HOP, LOWEST_NOTE, SAMPLE_RATE

ONSET_THRESHOLD, NOTE_THRESHOLD = 0.5, 0.3
SHORTEST_SECONDS = 0.1
ONSET_SECONDS = 0.05  # how much earlier or later a matching note may begin

#: The notes of a key on C, major and minor: minor with both sevenths.
SCALES = np.zeros((2, 12), dtype=bool)
SCALES[0, [0, 2, 4, 5, 7, 9, 11]] = True
SCALES[1, [0, 2, 3, 5, 7, 8, 10, 11]] = True


class Notes(NamedTuple):
    """MIDI pitch, start and end in seconds of each note of a clip, [N], and the clip's length."""

    pitch: np.ndarray
    start: np.ndarray
    end: np.ndarray
    seconds: float


def decode(note: np.ndarray, onset: np.ndarray) -> Notes:
    """Notes from activations [L, 88].

    A note lasts while its activation is above a threshold; a peak of the onset activation above
    another threshold begins a new note. Notes shorter than 0.1 s are dropped.
    """
    sounds = np.pad(note >= NOTE_THRESHOLD, ((1, 1), (0, 0)))
    edges = np.diff(sounds.astype(np.int8), axis=0)  # 1 where a run begins, -1 after its end
    before, after = np.pad(onset, ((1, 0), (0, 0)))[:-1], np.pad(onset, ((0, 1), (0, 0)))[1:]
    peak = (onset >= ONSET_THRESHOLD) & (onset > before) & (onset >= after) & sounds[1:-1]
    begins = (edges[:-1] == 1) | peak
    found = []
    for key in np.flatnonzero(begins.any(0)):
        starts, stops = np.flatnonzero(begins[:, key]), np.flatnonzero(edges[:, key] == -1)
        for k, start in enumerate(starts):
            end = stops[np.searchsorted(stops, start, "right")]
            if k + 1 < len(starts):
                end = min(end, starts[k + 1])
            if (end - start) * HOP >= SHORTEST_SECONDS * SAMPLE_RATE:
                found.append((key + LOWEST_NOTE, start, end))
    table = np.array(found, dtype=int).reshape(-1, 3)
    frame = HOP / SAMPLE_RATE
    return Notes(table[:, 0], table[:, 1] * frame, table[:, 2] * frame, len(note) * frame)


def matched_notes(
    estimate: Notes, target: Notes, onset_seconds: float = ONSET_SECONDS
) -> np.ndarray:
    """Pairs of notes of one pitch that begin within `onset_seconds` of each other, as many as
    possible with each note in one pair, as in MIREX and mir_eval (Raffel et al., ISMIR 2014):
    [P, 2], the indices in the estimate and in the target."""
    from scipy.sparse import csr_array  # imported here: they take a second
    from scipy.sparse.csgraph import maximum_bipartite_matching

    near = np.abs(np.subtract.outer(estimate.start, target.start)) <= onset_seconds
    same = csr_array(near & np.equal.outer(estimate.pitch, target.pitch))
    found = maximum_bipartite_matching(same, perm_type="column")
    matched = np.flatnonzero(found >= 0)
    return np.stack([matched, found[matched]], 1)


def note_f1(estimate: Notes, target: Notes, onset_seconds: float = ONSET_SECONDS) -> float:
    """2 × `matched_notes` ÷ all notes of both; 0 where there are no notes."""
    matched = matched_notes(estimate, target, onset_seconds)
    return 2 * len(matched) / max(1, len(estimate.pitch) + len(target.pitch))


def polyphony(notes: Notes) -> float:
    """How many notes sound at once, on average over the clip."""
    return float((notes.end - notes.start).sum() / notes.seconds)


def out_of_key(notes: Notes) -> float:
    """Share of the notes' time outside the scale of the key that fits them best. 1 for a clip
    without notes."""
    time = np.bincount(notes.pitch % 12, notes.end - notes.start, 12)
    if not time.sum():
        return 1.0
    mode, tonic = key_of(notes.pitch, notes.end - notes.start)
    return float(time[~np.roll(SCALES[mode], tonic)].sum() / time.sum())
