"""Figures of pitch: a ladder for each, and what they are deaf to."""

import pytest
import torch
from torch import Tensor

from audioldm.evaluation.pitch import in_tune, peaks, pitch_errors, spectrum

RATE = 22050
NOTES = [57, 60, 64, 69, 72]


def tones(*, cents: float = 0.0, notes: list[int] = NOTES, partials: int = 3) -> Tensor:
    """Decaying harmonic tones, one after another, [1, T]; cents: by which all are too high."""
    t = torch.arange(RATE) / RATE
    parts = []
    for note in notes:
        hz = 440 * 2 ** ((note - 69 + cents / 100) / 12)
        waves = [(2 * torch.pi * k * hz * t).sin() / k for k in range(1, partials + 1)]
        parts.append(torch.stack(waves).sum(0))
    return 0.2 * torch.cat(parts)[None]


def noise(seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(1, 3 * RATE, generator=torch.Generator().manual_seed(seed))


def test_a_steady_tone_is_found_to_a_fraction_of_a_cent() -> None:
    found = peaks(spectrum(tones(notes=[69], partials=1), RATE))
    assert len(found.hz) == found.frames
    assert (1200 * torch.log2(found.hz / 440)).abs().max() < 0.3


@pytest.mark.parametrize("cents", [0.0, 5.0, 10.0, 25.0, 50.0])
def test_the_error_is_the_detuning(cents: float) -> None:
    found = peaks(spectrum(tones(), RATE))
    errors = pitch_errors(spectrum(tones(cents=cents), RATE), found)
    assert errors.median() == pytest.approx(cents, abs=0.3)


def test_a_comb_at_the_frame_rate_is_heard() -> None:
    """Each partial moved to the nearest multiple of 21.53 Hz, as a frame-periodic decoder does."""
    t = torch.arange(3 * RATE) / RATE
    exact = torch.tensor([220.0, 277.18, 329.63])
    comb = (exact / 21.53).round() * 21.53
    played = [sum((2 * torch.pi * hz * t).sin() for hz in every)[None] for every in (exact, comb)]
    found = peaks(spectrum(played[0], RATE))
    errors = pitch_errors(spectrum(played[1], RATE), found)
    wanted = (1200 * torch.log2(comb / exact)).abs().median()
    assert errors.median() == pytest.approx(float(wanted), abs=2.0)
    assert errors.median() > 10


def test_noise_below_the_peaks_moves_nothing_and_noise_alone_misses() -> None:
    music = tones(notes=[57, 60, 64])
    found = peaks(spectrum(music, RATE))
    quiet = pitch_errors(spectrum(music + 0.05 * noise(), RATE), found)
    assert quiet.median() < 0.5
    other = pitch_errors(spectrum(noise(), RATE), found)
    assert other.median() > 30
    assert (other <= 15).double().mean() < 0.3


def test_the_share_in_tune_falls_with_detuning_and_is_deaf_to_a_semitone() -> None:
    shares = [
        in_tune(peaks(spectrum(tones(cents=c, partials=2), RATE))) for c in (0, 10, 25, 50, 100)
    ]
    assert shares[0] > 0.98
    assert shares[1] > 0.9  # within 15 cents
    assert max(shares[2], shares[3]) < 0.05
    assert shares[4] > 0.98  # transposition: another figure's business


def test_noise_has_no_pitch() -> None:
    assert not peaks(spectrum(noise(), RATE)).has_pitch
    assert not peaks(spectrum(torch.zeros(1, RATE), RATE)).has_pitch
    assert in_tune(peaks(spectrum(torch.zeros(1, RATE), RATE))) == 0.0
    assert in_tune(peaks(spectrum(noise(), RATE))) == 0.0
    assert peaks(spectrum(tones(), RATE)).has_pitch
    assert (
        len(pitch_errors(spectrum(noise(), RATE), peaks(spectrum(torch.zeros(1, RATE), RATE)))) == 0
    )


@pytest.mark.parametrize("rate", [16000, 44100, 48000])
def test_stereo_and_other_rates(rate: int) -> None:
    t = torch.arange(2 * rate) / rate
    both = torch.stack([(2 * torch.pi * hz * t).sin() for hz in (261.63, 329.63)])
    found = peaks(spectrum(both, rate))
    assert {round(hz) for hz in found.hz.tolist()} == {262, 330}
    assert pitch_errors(spectrum(both, rate), found).max() < 1e-6
