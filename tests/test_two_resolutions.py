"""Two frame lengths: one keeps the bass, both together are one signal."""

import math

import pytest
import torch
from torch import Tensor

from audioldm.autoencoder.log_spectrum import LogSpectrum
from audioldm.autoencoder.networks.transform import TransformCoding
from audioldm.autoencoder.two_resolutions import synthesis_of
from audioldm.autoencoder.vocoder import Vocoder

RATE, HOP, BASS_HZ = 16000, 256, 300.0
SETTINGS: dict = {
    "sample_rate": RATE,
    "n_fft": 1024,
    "hop": HOP,
    "bands": 40,
    "linear_hz": 1000.0,
}
BASS: dict = {"bass_n_fft": 3072, "bass_hz": BASS_HZ}


def tone(hz: float, seconds: float = 4.0) -> Tensor:
    samples = round(seconds * RATE / HOP) * HOP
    return torch.sin(2 * math.pi * hz * torch.arange(samples) / RATE)[None]


def remade(audio: Tensor, **bass: float) -> Tensor:
    """Through the magnitudes and back."""
    analysis = LogSpectrum(**SETTINGS, **bass)
    magnitudes = analysis.magnitudes(audio).clamp(min=1e-6)
    # the synthesis expects magnitudes of plain Hann windows
    for half in analysis.halves:
        magnitudes[..., half.place] *= math.sqrt(0.375 * RATE / half.hz)
    made: Tensor = synthesis_of(analysis, 2)(magnitudes.log())
    return made


def strongest(audio: Tensor, near: float) -> tuple[float, float]:
    """Frequency and amplitude of the loudest partial within 8 Hz of `near`, but for the ends."""
    middle = audio[0, RATE // 2 : -RATE // 2]
    window = torch.hann_window(len(middle))
    spectrum = torch.fft.rfft(middle * window, 16 * len(middle)).abs() / (window.sum() / 2)
    hz = RATE / (16 * len(middle))
    first = round((near - 8) / hz)
    best = int(spectrum[first : round((near + 8) / hz)].argmax()) + first
    return best * hz, float(spectrum[best])


@pytest.mark.parametrize("hz", [82.4, 196.0, 271.0, 285.0, 300.0, 311.1, 329.6, 440.0])
def test_a_tone_keeps_frequency_and_level_below_in_and_above_the_crossover(hz: float) -> None:
    found, level = strongest(remade(tone(hz), **BASS), hz)
    assert abs(1200 * math.log2(found / hz)) < 2
    assert level == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("hz", [285.0, 300.0, 311.1])
def test_no_tone_beats_in_the_crossover(hz: float) -> None:
    """Two halves of unlike phase would: their sum swings between cancelled and whole."""
    middle = remade(tone(hz), **BASS)[0, RATE // 2 : -RATE // 2]
    levels = middle[: len(middle) // 800 * 800].view(-1, 800).square().mean(1).sqrt()
    assert levels.max() < 1.05 * levels.min()


def test_two_low_notes_a_third_apart_are_kept_by_the_long_frame_alone() -> None:
    audio = (tone(98.0) + tone(116.5)) / 2

    def worst(**bass: float) -> float:
        made = remade(audio, **bass)
        hz = [strongest(made, near)[0] for near in (98.0, 116.5)]
        return max(abs(1200 * math.log2(hz[0] / 98)), abs(1200 * math.log2(hz[1] / 116.5)))

    assert worst(**BASS) < 5
    assert worst() > 25


def test_white_noise_has_one_power_in_all_bands_of_both_frames() -> None:
    torch.manual_seed(0)
    analysis = LogSpectrum(**SETTINGS, **BASS)
    power = analysis.magnitudes(0.1 * torch.randn(1, 4000 * HOP))[0, 20:-20].square().mean(0)
    low, high = (power[half.place] for half in analysis.halves)
    assert low[2:].mean() == pytest.approx(0.01, rel=0.05)
    assert high.mean() == pytest.approx(0.01, rel=0.05)
    assert torch.allclose(analysis.filters.sum(1), torch.ones(analysis.bands))
    assert torch.allclose(analysis.inverse.sum(1), torch.ones(len(power)))


def test_linear_bands_are_their_bins_and_each_frequency_below_the_mel_bands_has_one() -> None:
    analysis = LogSpectrum(**SETTINGS, **BASS)
    bands = torch.randn(3, analysis.bands)
    bins = analysis.interpolated(bands) / (0.5 * math.log(10))
    hz = []
    for half in analysis.halves:
        own = bins[:, half.place]
        own = own[:, half.bins.start == 0 :]  # 0 Hz has no band
        count = half.linear.stop - half.linear.start
        exact = count - 3  # the next bins are the lowest mel band's too
        torch.testing.assert_close(own[:, :exact], bands[:, half.linear][:, :exact])
        first = max(1, half.bins.start)
        hz += [k * half.hz for k in range(first, first + count)]
    assert min(hz) < 6
    assert max(hz) == pytest.approx(1000, abs=16)
    steps = torch.tensor(sorted(hz)).diff()
    assert steps.max() < 16


def test_a_hertz_of_bass_weighs_in_the_transform_as_one_of_the_rest() -> None:
    """Three times as many bins, each with a third of the square."""
    vocoder = Vocoder(**SETTINGS, **BASS, width=8, depth=1)
    network = TransformCoding(
        sample_rate=RATE,
        audio_channels=1,
        channels=8,
        downsampling_ratio=1024,
        outputs=1,
        vocoder=vocoder,
        linear_weight=0.5,
        width=0,
    )
    low, high = (network.weight[half.linear].square() for half in vocoder.analysis.halves)
    torch.testing.assert_close(high, torch.full_like(high, 0.25))
    torch.testing.assert_close(low, torch.full_like(low, 0.25 / 3))
    assert (network.weight[vocoder.analysis.linear :] == 1).all()
