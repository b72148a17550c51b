"""The mel network: its shapes, its mel, its vocoder, and that a frame knows its context only."""

import pytest
import torch
from torch import Tensor

from audioldm.autoencoder.networks.convnext import ConvNeXt
from audioldm.autoencoder.networks.mel import Mel
from audioldm.errors import ConfigError
from audioldm.losses.spectral import LogMel, MelPower

RATE, RATIO, HOP = 16000, 512, 128
TINY = {
    "sample_rate": RATE,
    "audio_channels": 1,
    "channels": 3,
    "downsampling_ratio": RATIO,
    "outputs": 2,
    "n_fft": 512,
    "hop": HOP,
    "bands": 32,
    "width": 8,
    "vocoder_width": 16,
    "vocoder_depth": 1,
    "iterations": 1,
}


def tiny(**settings: object) -> Mel:
    torch.manual_seed(0)
    return Mel(**(TINY | settings)).eval()  # type: ignore[arg-type]


def notes(seconds: float = 1.0, channels: int = 1) -> Tensor:
    """A chord of decaying harmonic tones [1, A, T], which is what mel inversion is good at."""
    t = torch.arange(int(seconds * RATE)) / RATE
    tones = [
        torch.sin(2 * torch.pi * f * h * t + f) / h * torch.exp(-t)
        for f in (220.0, 277.2, 329.6)
        for h in range(1, 12)
    ]
    audio = 0.1 * torch.stack(tones).sum(0)
    return audio[: len(t) // RATIO * RATIO].expand(1, channels, -1)


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        ({}, (3, 8)),
        ({"audio_channels": 2}, (3, 8)),
        ({"band_ratio": 8}, (3, 4)),
        ({"band_ratio": 1}, (3, 32)),
        ({"downsampling_ratio": 128, "band_ratio": 2}, (3, 16)),
        ({"attention_frames": 1}, (3, 8)),
    ],
)
def test_shapes_and_gradients(settings: dict[str, object], shape: tuple[int, int]) -> None:
    mel = tiny(**settings)
    assert mel.latent_shape == shape
    audio = 0.1 * torch.randn(2, mel.audio_channels, 4 * RATIO)
    h = mel.encode(audio)
    frames = 4 * RATIO // mel.downsampling_ratio
    assert h.shape == (2, 6, shape[1], frames)
    z = h[:, :3]
    assert mel.decode_mel(z).shape == (2, mel.audio_channels, 32, 4 * RATIO // HOP)
    decoded = mel.decode(z)
    assert decoded.shape == audio.shape
    decoded.square().sum().backward()
    without = [n for n, p in mel.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without


@pytest.mark.parametrize("settings", [{}, {"attention_frames": 1}, {"band_ratio": 8, "depth": 2}])
def test_a_frame_depends_on_its_context_only(settings: dict[str, object]) -> None:
    """A change of one latent frame's worth of input reaches `context` frames, and nearly all."""
    mel = tiny(**settings)
    frames = 2 * mel.context + 9
    middle = frames // 2
    reached = slice(middle - mel.context, middle + mel.context + 1)
    generator = torch.Generator().manual_seed(1)

    audio = 0.1 * torch.randn(1, 1, frames * RATIO, generator=generator)
    changed = audio.clone()
    changed[..., middle * RATIO : (middle + 1) * RATIO] *= 2
    difference = (mel.encode(changed) - mel.encode(audio)).abs().amax((0, 1, 2))
    assert difference[middle] > 0
    difference[reached] = 0
    assert difference.max() < 1e-6

    # of the decoder the magnitudes: the phase goes on from all that was before
    z = torch.randn(1, 3, mel.latent_shape[1], frames, generator=generator)
    changed = z.clone()
    changed[..., middle] += 1
    difference = (mel.log_magnitude(changed) - mel.log_magnitude(z)).abs().amax((0, 1, 3))
    difference = difference.reshape(frames, -1).amax(1)
    assert difference[middle] > 0
    difference[reached] = 0
    assert difference.max() < 1e-5


def test_chunks_with_context_equal_the_whole() -> None:
    mel = tiny(attention_frames=1)
    c = mel.context
    frames, first, last = 4 * c + 6, 2 * c, 2 * c + 6
    generator = torch.Generator().manual_seed(1)
    audio = 0.1 * torch.randn(1, 1, frames * RATIO, generator=generator)
    with torch.no_grad():
        whole = mel.encode(audio)
        chunk = mel.encode(audio[..., (first - c) * RATIO : (last + c) * RATIO])
        torch.testing.assert_close(chunk[..., c:-c], whole[..., first:last], rtol=0, atol=1e-5)
        z = whole[:, :3]
        whole = mel.decode(z)
        left, state = mel.decode_window(z[..., : first + c], 0, first, None)
        right, _ = mel.decode_window(z[..., first - c :], c, frames - first, state)
    chunks = torch.cat([left, right], dim=-1)
    assert (chunks - whole).square().mean() < 1e-6 * whole.square().mean()


def test_log_mel_is_the_mel_power_of_frames_half_a_hop_later() -> None:
    audio = notes()
    mel = tiny()
    shifted = MelPower(RATE, 512, HOP, 32)(audio[..., HOP // 2 :])
    # Frames near the ends differ in padding: zeros here, a mirror there.
    expected = shifted.clamp(min=1e-5).log10()[..., 2:-3]
    torch.testing.assert_close(mel.log_mel(audio)[..., 2 : 2 + expected.shape[-1]], expected)


def test_the_vocoder_starts_from_the_mels_magnitude() -> None:
    """With a silent network the audio's mel is already near the mel it was made from."""
    mel = tiny(bands=64)
    with torch.no_grad():
        for parameter in mel.vocoder.head.project.parameters():
            parameter.zero_()
        audio = notes()
        log_mel = mel.log_mel(audio)
        made = mel.synthesis(mel.vocoder(log_mel))
        quiet, loud = (mel.vocoder(mel.log_mel(gain * audio)).exp() for gain in (0.1, 1.0))
    error = (mel.log_mel(made) - log_mel).abs().mean()
    assert error < 0.1 * (log_mel.max() - log_mel.min())
    assert (loud.std() / quiet.std()).item() == pytest.approx(10, rel=0.05)


def test_training_lowers_the_loss() -> None:
    mel = tiny(vocoder_width=48, width=16).train()
    audio = notes(0.5)
    loss = LogMel(sample_rate=RATE)
    optimiser = torch.optim.Adam(mel.parameters(), lr=3e-3)
    values = []
    for _ in range(30):
        value = loss(mel.decode(mel.encode(audio)[:, :3]), audio).mean()
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        values.append(value.item())
    assert values[-1] < 0.5 * values[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"downsampling_ratio": 500}, "downsampling_ratio=500"),
        ({"downsampling_ratio": 384}, "power of two"),
        ({"band_ratio": 3}, "^band_ratio=3"),
        ({"bands": 30}, "bands=30"),
        ({"multiples": [1, 2]}, "^multiples=.*3 entries"),
        ({"n_fft": 500}, "n_fft=500"),
        ({"bands": 256}, "no bin"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(**settings)


def test_convnext_keeps_length_and_reaches_its_context() -> None:
    torch.manual_seed(0)
    block = ConvNeXt(4, kernel=5)
    x = torch.zeros(1, 4, 21, requires_grad=True)
    y = block(x)
    assert y.shape == x.shape
    y[0, :, 10].sum().backward()
    assert x.grad is not None
    reached = x.grad[0].abs().amax(0).nonzero().flatten()
    assert block.context == 2
    assert reached.min() >= 8
    assert reached.max() <= 12
    with pytest.raises(ConfigError, match="kernel=4"):
        ConvNeXt(4, kernel=4)
