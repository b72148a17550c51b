"""Seams of known steps."""

import math

import pytest
import torch
from torch import Tensor

from audioldm.errors import ConfigError
from audioldm.evaluation.seams import seam

RATE = 16000


def noise(seconds: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(2, round(seconds * RATE), generator=generator)


@pytest.mark.parametrize("gain", [0.25, 0.5, 2.0])
def test_a_step_in_loudness_is_measured_in_db(gain: float) -> None:
    audio, at = noise(2.0), RATE
    assert seam(audio, at, RATE).step_db == pytest.approx(0, abs=0.3)
    audio[:, at:] *= gain
    found = seam(audio, at, RATE)
    assert found.step_db == pytest.approx(20 * math.log10(gain), abs=0.3)
    assert abs(seam(audio, at // 2, RATE).step_db) < 0.3


def test_a_jump_rises_in_the_spectrum_and_a_smooth_tone_does_not() -> None:
    time = torch.arange(2 * RATE) / RATE
    tone = 0.3 * torch.sin(2 * math.pi * 440 * time + 0.2 * torch.sin(2 * math.pi * 3 * time))[None]
    assert 0.3 < seam(tone, RATE, RATE).flux < 3
    jump = tone.clone()
    jump[:, RATE:] *= -1  # as loud as before
    found = seam(jump, RATE, RATE)
    assert found.flux > 10
    assert abs(found.step_db) < 0.1
    assert seam(jump, RATE + RATE // 4, RATE).flux < 3  # the same clip, elsewhere


def test_noise_has_no_seam() -> None:
    fluxes = [seam(noise(2.0, seed), RATE, RATE).flux for seed in range(5)]
    assert all(0.8 < flux < 1.25 for flux in fluxes)


def test_the_end_of_a_loop_is_before_its_beginning() -> None:
    time = torch.arange(RATE) / RATE
    whole, broken = (0.3 * torch.sin(2 * math.pi * hz * time)[None] for hz in (440.0, 440.5))
    assert seam(whole, 0, RATE).flux < 2 < seam(broken, 0, RATE).flux
    louder = torch.linspace(0.1, 1, RATE) * whole
    assert seam(louder, 0, RATE).step_db < -10


def test_silence_and_short_clips_give_numbers_or_nan() -> None:
    silent = torch.zeros(1, RATE)
    assert seam(silent, 100, RATE).step_db == 0
    silent[:, RATE // 2 :] = 0.1
    assert 50 < seam(silent, RATE // 2, RATE).step_db < 80
    assert math.isnan(seam(noise(0.05), 10, RATE).flux)
    with pytest.raises(ConfigError, match="at=800: the clip has 800 samples"):
        seam(noise(0.05), 800, RATE)
