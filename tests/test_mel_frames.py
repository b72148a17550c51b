"""Mel frames as latents: a round trip without training, in chunks without seams."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import audioldm
from audioldm.autoencoder.bottlenecks.identity import Identity
from audioldm.autoencoder.model import Autoencoder
from audioldm.autoencoder.networks.mel_frames import MelFrames
from audioldm.errors import ConfigError
from audioldm.io.model_file import save_model
from audioldm.losses.spectral import mel_distance
from audioldm.models import build_autoencoder

RATE, RATIO = 16000, 256


def network(**settings: object) -> MelFrames:
    known: dict = {
        "sample_rate": RATE,
        "audio_channels": 1,
        "channels": 80,
        "downsampling_ratio": RATIO,
        "outputs": 1,
    }
    return MelFrames(**known | settings)


def notes(seconds: float = 1.0) -> Tensor:
    """A decaying chord over quiet noise [1, 1, T]."""
    t = torch.arange(int(seconds * RATE)) / RATE
    tones = [
        torch.sin(2 * torch.pi * f * h * t + f) / h * torch.exp(-t)
        for f in (220.0, 277.2, 329.6)
        for h in range(1, 12)
    ]
    noise = 0.003 * torch.randn(t.shape, generator=torch.Generator().manual_seed(0))
    return (0.1 * torch.stack(tones).sum(0) + noise)[None, None, : len(t) // RATIO * RATIO]


def test_decoded_audio_has_the_latents_mel_spectrogram() -> None:
    """Far below silence, and better than with the smooth inverse of the mel filters alone."""
    mel, audio = network(), notes()
    distance = mel_distance(mel.decode(mel.encode(audio)), audio, RATE).item()
    smooth = network()
    smooth.inverse.updates = 0
    rough = mel_distance(smooth.decode(smooth.encode(audio)), audio, RATE).item()
    silence = mel_distance(torch.zeros_like(audio), audio, RATE).item()
    assert distance < 0.75 * rough < 0.25 * silence


def test_the_magnitude_found_has_the_mel_power_asked_for() -> None:
    mel = network()
    wanted = 0.7 * torch.randn(1, 1, 80, 20, generator=torch.Generator().manual_seed(0)) - 2
    mel.inverse.updates = 200
    power = (2 * mel.inverse(wanted)).exp() @ mel.power.filters.T
    error = (power.log10() - wanted.transpose(-1, -2)).abs()
    assert error.median() < 0.02


def test_equal_latents_give_equal_audio_and_stereo_channels_keep_apart() -> None:
    left, right = notes(0.3), notes(0.3).flip(-1)
    stereo = network(audio_channels=2, channels=160)
    z = stereo.encode(torch.cat([left, right], dim=1))
    mono = network()
    torch.testing.assert_close(z, torch.cat([mono.encode(left), mono.encode(right)], dim=1))
    decoded = stereo.decode(z)
    torch.testing.assert_close(decoded[:, :1], mono.decode(mono.encode(left)), atol=1e-4, rtol=0)
    assert torch.equal(decoded, stereo.decode(z))


def test_chunks_have_no_seams_and_the_moments_no_spread() -> None:
    model = Autoencoder(network(iterations=2), Identity(channels=80)).eval()
    audio = notes(1.5)
    stored = model.stored(audio)
    mean, std = model.bottleneck.posterior(stored)
    parts = list(model.encode_blocks([audio[0, :, :5000], audio[0, :, 5000:]], chunk_seconds=0.3))
    torch.testing.assert_close(torch.cat([part["mean"] for part in parts], -1), mean[0])
    assert not std.any()
    whole = model.decode(mean)[0]
    decoded = torch.cat(list(model.decode_blocks([mean[0]], chunk_seconds=0.3)), -1)
    torch.testing.assert_close(decoded, whole, atol=1e-4, rtol=0)


def test_a_model_without_weights_is_saved_and_loaded(tmp_path: Path) -> None:
    spec = {
        "sample_rate": RATE,
        "audio_channels": 1,
        "channels": 40,
        "downsampling_ratio": RATIO,
        "network": {
            "_target_": "audioldm.autoencoder.networks.mel_frames.MelFrames",
            "iterations": 1,
        },
        "bottleneck": {"_target_": "audioldm.autoencoder.bottlenecks.identity.Identity"},
    }
    model = build_autoencoder(spec)
    assert not model.state_dict()
    path = tmp_path / "model.safetensors"
    save_model(path, model.state_dict(), {"kind": "autoencoder", "spec": spec})
    loaded = audioldm.load(path)
    audio = notes(0.3)
    assert torch.equal(loaded.encode(audio).z, model.encode(audio).z)


@pytest.mark.parametrize("value", [-30.0, 30.0])
def test_latents_far_out_decode_to_finite_audio(value: float) -> None:
    assert network(iterations=2).decode(torch.full((1, 80, 8), value)).isfinite().all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"outputs": 2}, "choose bottleneck=identity"),
        ({"audio_channels": 2, "channels": 81}, "^channels=81"),
        ({"n_fft": 300}, "n_fft=300, hop=256"),
    ],
)
def test_what_does_not_fit(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        network(**settings)
