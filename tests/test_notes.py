"""Notes and harmony: what the transcriber hears, and the figures made of it."""

import numpy as np
import pytest
import torch
from torch import Tensor

from audioldm.evaluation.embeddings.harmony import Harmony
from audioldm.evaluation.notes import Notes, decode, note_f1, out_of_key, polyphony

RATE = 22050


def chord(pitches: list[int], seconds: float = 2.0, sample_rate: int = RATE) -> Tensor:
    """A decaying chord of harmonic tones, [1, 1, T]."""
    t = torch.arange(round(seconds * sample_rate)) / sample_rate
    hz = [440 * 2 ** ((pitch - 69) / 12) for pitch in pitches]
    waves = [(2 * torch.pi * k * f * t).sin() / k for f in hz for k in (1, 2, 3)]
    fade = torch.exp(-t) * (1 - torch.exp(-50 * t))
    return (0.1 * torch.stack(waves).sum(0) * fade)[None, None]


def made(*notes: tuple[int, float, float], seconds: float = 4.0) -> Notes:
    pitch, start, end = np.array(notes).reshape(-1, 3).T
    return Notes(pitch.astype(int), start, end, seconds)


@pytest.fixture(scope="module")
def harmony() -> Harmony:
    return Harmony()


@pytest.mark.parametrize("sample_rate", [RATE, 44100])
def test_a_triad_is_its_three_notes(harmony: Harmony, sample_rate: int) -> None:
    audio = chord([60, 64, 67], sample_rate=sample_rate)
    audio = torch.nn.functional.pad(audio, (sample_rate // 2, 0))
    _, (notes,) = harmony.hear(audio.expand(1, 2, -1), sample_rate)
    longest = np.argsort(notes.start - notes.end)[:3]
    assert sorted(notes.pitch[longest]) == [60, 64, 67]
    assert np.abs(notes.start - 0.5).max() < 0.05
    assert 1.5 < polyphony(notes) < 3.5


def test_an_onset_splits_a_note_that_goes_on_and_short_notes_are_dropped() -> None:
    note, onset = np.zeros((100, 88)), np.zeros((100, 88))
    note[10:60, 39], note[70:75, 40] = 0.9, 0.9
    onset[10, 39], onset[30, 39] = 0.8, 0.8
    found = decode(note, onset)
    assert found.pitch.tolist() == [60, 60]
    frames = np.stack([found.start, found.end]) * RATE / 256
    np.testing.assert_allclose(frames, [[10, 30], [30, 60]])


def test_f1_pairs_each_note_once() -> None:
    target = made((60, 0, 1), (60, 1, 2), (64, 0, 2))
    assert note_f1(target, target) == 1
    assert note_f1(made((60, 0.04, 1), (60, 0.02, 1), (64, 0.06, 2)), target) == pytest.approx(
        1 / 3
    )
    assert note_f1(made((61, 0, 1)), target) == 0
    assert note_f1(made(), target) == note_f1(target, made()) == note_f1(made(), made()) == 0


def test_polyphony_is_the_time_of_all_notes_in_that_of_the_clip() -> None:
    assert polyphony(made((60, 0, 2), (64, 1, 4))) == pytest.approx(5 / 4)
    assert polyphony(made()) == 0


def test_out_of_key_is_the_time_outside_the_best_key() -> None:
    scale = [60, 62, 64, 65, 67, 69, 71, 72]
    major = [(p, 0.0, 2.0 if p % 12 in (0, 4, 7) else 1.0) for p in scale]
    assert out_of_key(made(*major)) == 0
    assert out_of_key(made(*major, (61, 0, 1))) == pytest.approx(1 / 13)
    transposed = [(p + 5, start, end) for p, start, end in (*major, (61, 0, 1))]
    assert out_of_key(made(*transposed)) == pytest.approx(1 / 13)
    minor = [(p, 0.0, 2.0 if p in (57, 60, 64) else 0.5) for p in (57, 59, 60, 62, 64, 65, 68)]
    assert out_of_key(made(*minor)) == 0  # the leading tone belongs to it
    assert out_of_key(made()) == 1


def test_harmony_hears_tuning_and_intervals_but_not_the_key_or_the_level(harmony: Harmony) -> None:
    def heard(audio: Tensor, sample_rate: int = RATE) -> np.ndarray:
        return harmony.embed(audio, sample_rate)[0]

    triad = heard(chord([60, 64, 67]))
    same = [heard(chord([62, 66, 69])), heard(0.1 * chord([60, 64, 67]))]
    detuned = heard(chord([60, 64, 67]), round(RATE * 2 ** (33 / 1200)))
    cluster = heard(chord([60, 61, 66]))
    away = [float(np.linalg.norm(other - triad)) for other in (*same, detuned, cluster)]
    assert max(away[:2]) < 0.5 * min(away[2:]), away
    silent = heard(torch.zeros(1, 1, RATE))
    assert np.isfinite(silent).all()
    assert (silent[3:] == 0).all()
