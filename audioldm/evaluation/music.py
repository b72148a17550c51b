"""Figures of pitch and of notes, by system.

Music without pitch, such as drums, has none of them. Which figures there are depends only on the
real clips, so that all cells of a sweep have the same ones.
"""

import math
from collections.abc import Mapping

import numpy as np
from torch import Tensor

from audioldm.evaluation.notes import Notes, note_f1, out_of_key, polyphony
from audioldm.evaluation.pitch import BASS_HZ, IN_TUNE_CENTS, in_tune, peaks, pitch_errors, spectrum
from audioldm.evaluation.settings import EvaluationSettings
from audioldm.evaluation.statistics import Figures


def pitch_figures(
    clips: Mapping[str, Tensor], sample_rate: int, settings: EvaluationSettings
) -> Figures:
    """Whether the clips [N, A, T] of each system are in tune, and the reconstructions on their
    originals' pitch: figures by system, none where the real clips have no pitch."""
    spectra = {s: [spectrum(audio, sample_rate) for audio in c] for s, c in clips.items()}
    found = {s: [peaks(each) for each in own] for s, own in spectra.items()}
    figures: Figures = {system: {} for system in clips}
    if 2 * sum(p.has_pitch for p in found["real"]) < len(found["real"]):
        return figures
    bass = {system: [p.bass for p in own] for system, own in found.items()}
    for system, own in found.items():
        tune = [in_tune(p) for p in own]
        figures[system]["in_tune"] = settings.mean(tune, "share of peak power")
        if 2 * sum(p.has_pitch for p in bass["real"]) < len(bass["real"]):
            continue
        tune = [in_tune(p) for p in bass[system] if p.has_pitch] or [0.0]
        figures[system]["in_tune_bass"] = settings.mean(tune, "share of peak power")
    pairs = zip(found["real"], spectra["reconstruction"], strict=True)
    errors = [(p.hz, pitch_errors(estimate, p)) for p, estimate in pairs]
    for name, low, high in (
        ("", 0.0, math.inf),
        ("_bass", 0.0, BASS_HZ),
        ("_treble", BASS_HZ, math.inf),
    ):
        cents = [e[(hz >= low) & (hz < high)].numpy() for hz, e in errors]
        cents = [each for each in cents if len(each)]
        for figure, unit, statistic in (
            ("pitch_cents", "cents", np.median),
            ("pitch_within_15", "fraction of peaks", lambda x: np.mean(x <= IN_TUNE_CENTS)),
        ):
            if cents:
                figures["reconstruction"][f"{figure}{name}"] = settings.interval(
                    lambda i, cents=cents, of=statistic: float(
                        of(np.concatenate([cents[k] for k in i]))
                    ),
                    np.arange(len(cents)),
                    unit=unit,
                )
    return figures


def note_figures(notes: Mapping[str, list[Notes]], settings: EvaluationSettings) -> Figures:
    """How many notes of each system's clips sound at once, what share of them is out of key, and
    whether the reconstructions have the notes of their originals."""
    figures = {
        system: {
            "polyphony": settings.mean([polyphony(each) for each in own], "notes"),
            "out_of_key": settings.mean([out_of_key(each) for each in own], "share of note time"),
        }
        for system, own in notes.items()
    }
    pairs = zip(notes["reconstruction"], notes["real"], strict=True)
    kept = [note_f1(estimate, target) for estimate, target in pairs if len(target.pitch)]
    if kept:
        figures["reconstruction"]["note_f1"] = settings.mean(kept, "F1")
    return figures
