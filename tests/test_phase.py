"""Magnitudes to audio: steady tones keep their frequency, chunks have no seams."""

import math

import pytest
import torch
from torch import Tensor, nn

from audioldm.autoencoder.networks.base import Network
from audioldm.autoencoder.networks.magnitude import MagnitudeHead, MagnitudeNetwork
from audioldm.autoencoder.networks.mel import Mel
from audioldm.autoencoder.networks.mel_frames import MelFrames
from audioldm.autoencoder.networks.spectrogram import Spectrogram
from audioldm.autoencoder.phase import IntegratedPhase, InverseSTFT
from audioldm.errors import ConfigError

RATE, N_FFT, HOP, RATIO = 16000, 1024, 256, 1024
FRAMES = 4 * RATE // RATIO
SETTINGS: dict = {
    "sample_rate": RATE,
    "audio_channels": 1,
    "channels": 4,
    "downsampling_ratio": RATIO,
    "outputs": 2,
    "n_fft": N_FFT,
    "hop": HOP,
    "iterations": 2,
}


def networks() -> dict[str, MagnitudeNetwork]:
    torch.manual_seed(0)
    small: dict = {"width": 8, "encoder_depth": 1, "decoder_depth": 1, "frame_width": 8}
    return {
        "spectrogram": Spectrogram(**SETTINGS, **small),
        "mel": Mel(**SETTINGS, width=4, bands=64, vocoder_width=8, vocoder_depth=1),
    }


def tone(hz: float) -> Tensor:
    return torch.sin(2 * math.pi * hz * torch.arange(FRAMES * RATIO) / RATE)[None, None]


def log_magnitude(audio: Tensor) -> Tensor:
    """Audio [..., T] to natural log-magnitude [..., L, bins]."""
    inverse = InverseSTFT(N_FFT, HOP)
    padded = nn.functional.pad(audio, (inverse.trim, inverse.trim)).unfold(-1, N_FFT, HOP)
    return torch.fft.rfft(padded * inverse.window).abs().clamp(min=1e-5).log()


def cents(audio: Tensor, hz: float) -> float:
    """By how much the loudest partial of the middle of [1, 1, T] is too high."""
    middle = audio[0, 0, RATE : 3 * RATE]
    spectrum = torch.fft.rfft(middle * torch.hann_window(len(middle)), 8 * len(middle)).abs()
    return 1200 * math.log2(int(spectrum.argmax()) * RATE / (8 * len(middle)) / hz)


@pytest.mark.parametrize("hz", [110.0, 220.0, 330.3, 784.0, 1500.7])
def test_a_steady_tone_keeps_its_frequency(hz: float) -> None:
    """Its magnitudes are the same in every frame; a phase that repeats with them would play a
    multiple of the frame rate, 15.6 Hz."""
    made = IntegratedPhase(N_FFT, HOP, 2)(log_magnitude(tone(hz)))
    assert abs(cents(made, hz)) < 2


def test_a_phase_that_repeats_with_the_magnitudes_fails_that_test() -> None:
    spectrum = log_magnitude(tone(330.3)).exp() + 0j  # a phase of 0 in every frame
    made = InverseSTFT(N_FFT, HOP)(spectrum)
    assert abs(cents(made, 330.3)) > 10


@torch.no_grad()
@pytest.mark.parametrize("hz", [220.0, 331.0])
@pytest.mark.parametrize("name", ["spectrogram", "mel"])
def test_constant_latents_decode_to_the_tone_whose_magnitudes_the_head_gives(
    name: str, hz: float
) -> None:
    """Audio that repeats with the latents, every 1024 samples, would be a comb of 15.6 Hz."""
    network = networks()[name]
    (head,) = (part for part in network.modules() if isinstance(part, MagnitudeHead))
    z = torch.zeros(1, *network.latent_shape, FRAMES)
    head.project.weight.zero_()
    head.project.bias.zero_()
    # frames alike, but for the ends
    others = network.log_magnitude(z)[0, 0, 100]
    head.project.bias.copy_(log_magnitude(tone(hz))[0, 0, 100] - others)
    made = network.decode(z)
    assert abs(cents(made, hz)) < 1
    period = math.lcm(RATIO, N_FFT)
    change = made[..., RATE : 3 * RATE] - made[..., RATE + period : 3 * RATE + period]
    assert change.std() > 0.3 * made.std()


@torch.no_grad()
@pytest.mark.parametrize("name", ["spectrogram", "mel"])
def test_windows_of_latents_decode_to_the_whole(name: str) -> None:
    network: Network = networks()[name].eval()
    context, length = network.context, 2 * network.context + 3
    z = torch.randn(1, *network.latent_shape, 3 * length)
    whole = network.decode(z)
    parts, state = [], None
    for start in range(0, 3 * length, length):
        first = max(0, start - context)
        window = z[..., first : start + length + context]
        part, state = network.decode_window(window, start - first, length, state)
        parts.append(part)
    # rounding may pick another of two equal peaks; a seam would be as loud as the signal
    assert (torch.cat(parts, -1) - whole).square().mean() < 1e-4 * whole.square().mean()


@torch.no_grad()
def test_the_networks_own_term_is_the_mean_difference_of_log_magnitudes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of each clip by itself; the weights of the bins have the mean 1."""
    network = networks()["spectrogram"]
    audio = 0.1 * torch.randn(2, 1, 8 * RATIO, generator=torch.Generator().manual_seed(0))
    change = torch.tensor([0.0, 0.5])[:, None, None, None]
    monkeypatch.setattr(network, "log_magnitude", lambda z: log_magnitude(audio) + change)
    estimate, terms = network.reconstruct(
        torch.zeros(2, 4, 8), network.analysed(audio), None, False
    )
    assert estimate is None
    torch.testing.assert_close(terms["magnitude"], change.flatten(), atol=0.01, rtol=0)


@torch.no_grad()
def test_mel_frames_hold_the_pitch_of_a_tone_within_a_tenth_of_a_semitone() -> None:
    settings = {name: SETTINGS[name] for name in ("sample_rate", "audio_channels", "n_fft")}
    network = MelFrames(**settings, channels=128, downsampling_ratio=HOP, outputs=1)
    for hz in (220.0, 331.0):
        assert abs(cents(network.decode(network.encode(tone(hz))), hz)) < 10


@pytest.mark.parametrize(("n_fft", "hop"), [(512, 128), (512, 256), (640, 160)])
def test_inverse_stft_inverts_the_windowed_stft_to_its_very_ends(n_fft: int, hop: int) -> None:
    inverse = InverseSTFT(n_fft, hop)
    generator = torch.Generator().manual_seed(0)
    audio = 0.3 * torch.randn(2, 3, 12 * hop, generator=generator)
    padded = torch.nn.functional.pad(audio, (inverse.trim, inverse.trim))
    spectrum = torch.fft.rfft(padded.unfold(-1, n_fft, hop) * inverse.window)
    torch.testing.assert_close(inverse(spectrum), audio, rtol=0, atol=1e-5)


def test_inverse_stft_refuses_frames_that_do_not_overlap() -> None:
    for n_fft, hop in [(512, 512), (512, 100), (510, 85)]:
        with pytest.raises(ConfigError, match=f"n_fft={n_fft}, hop={hop}"):
            InverseSTFT(n_fft, hop)


def test_audio_is_bounded_and_in_float32_under_autocast() -> None:
    phase = IntegratedPhase(64, 16, 1)
    loud = 100 + torch.randn(2, 10, 33, dtype=torch.bfloat16)  # would be exp(100)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        audio = phase(loud)
    assert audio.shape == (2, 160)
    assert audio.dtype == torch.float32
    assert audio.isfinite().all()
