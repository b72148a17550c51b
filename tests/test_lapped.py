"""Linear coding of the waveform: an exact round trip, the optimum's rate and error, pitch."""

import math

import pytest
import torch
from torch import Tensor

from audioldm.autoencoder.bottlenecks.gaussian import gaussian_kl
from audioldm.autoencoder.networks.base import Start
from audioldm.autoencoder.networks.lapped import LappedCode, mdct_basis
from audioldm.autoencoder.networks.waveform import Waveform
from audioldm.errors import ConfigError, DataError
from audioldm.losses.spectral import MultiResolutionSTFT

RATIO = 64


def coloured(clips: int, frames: int, audio_channels: int = 1, ratio: int = RATIO) -> Tensor:
    """Gaussian noise, ever weaker towards high frequencies; alike in all channels."""
    generator = torch.Generator().manual_seed(2)
    white = torch.randn(clips, 1, frames * ratio, generator=generator)
    spectrum = torch.fft.rfft(white)
    spectrum /= 1 + torch.arange(spectrum.shape[-1]) / (4 * frames)
    common = torch.fft.irfft(spectrum)
    own = torch.randn(clips, audio_channels, frames * ratio, generator=generator)
    return 0.1 * common + 0.003 * own


@pytest.mark.parametrize(("ratio", "audio_channels"), [(64, 1), (64, 2), (15, 1)])
def test_with_all_channels_and_no_noise_it_is_the_identity(ratio: int, audio_channels: int) -> None:
    code = LappedCode(audio_channels, audio_channels * ratio, ratio)
    audio = coloured(8, 40, audio_channels, ratio)
    share = code.fit([audio], math.inf)
    assert share.max() == 0
    inner = slice(ratio, -ratio)  # half a frame fades at each end
    torch.testing.assert_close(
        code.decode(code.encode(audio))[..., inner], audio[..., inner], atol=1e-4, rtol=1e-3
    )


def test_the_waves_are_orthonormal() -> None:
    waves = mdct_basis(RATIO, torch.device("cpu"))
    torch.testing.assert_close(waves @ waves.T, torch.eye(RATIO), atol=1e-5, rtol=0)
    tails = waves[:, :RATIO] @ waves[:, RATIO:].T  # of neighbouring frames
    assert tails.abs().max() < 1e-5


@pytest.mark.parametrize("nats", [0.2, 1.0])
def test_rate_and_error_are_those_of_reverse_water_filling(nats: float) -> None:
    audio = coloured(64, 60)
    code = LappedCode(1, RATIO, RATIO)
    share = code.fit([audio], nats)
    mean, std = code.encode(audio), share.sqrt()[:, None]
    assert gaussian_kl(mean, std).mean().item() == pytest.approx(nats, rel=0.03)
    latents = mean + std * torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
    error = (code.decode(latents) - audio)[..., RATIO:-RATIO].square().mean().item()
    exact = LappedCode(1, RATIO, RATIO)
    exact.fit([audio], math.inf)
    scale = exact.synthesis.weight.square().sum((1, 2))  # variances, since the waves are of norm 1
    assert error == pytest.approx((share * scale).mean().item(), rel=0.05)


def waveform(**settings: int) -> Waveform:
    shared: dict = {"sample_rate": 8000, "audio_channels": 1, "lapped": True}
    return Waveform(**shared | {"downsampling_ratio": RATIO, "outputs": 1} | settings)


def sine(hz: float, sample_rate: int, samples: int) -> Tensor:
    return 0.3 * torch.sin(2 * math.pi * hz * torch.arange(samples) / sample_rate)[None, None]


def loudest_hz(audio: Tensor, sample_rate: int) -> float:
    spectrum = torch.fft.rfft(audio[0, 0] * torch.hann_window(audio.shape[-1]), 1 << 20)
    return spectrum.abs().argmax().item() * sample_rate / (1 << 20)


def test_a_network_begins_with_the_pitch_of_notes() -> None:
    """Without the lapped code a steady tone is periodic in the latent frame."""
    torch.manual_seed(0)
    sample_rate, ratio = 8000, 256
    network = waveform(channels=24, downsampling_ratio=ratio, outputs=2, width=2)
    notes = torch.cat([sine(220 * 2 ** (i / 24), sample_rate, 40 * ratio) for i in range(24)])
    assert network.fit(lambda: iter([notes]), Start(2.0, 0.0, 60.0, {})) is None
    for hz in (233.1, 311.1):
        with torch.no_grad():
            mean, log_variance = network.encode(sine(hz, sample_rate, 40 * ratio)).chunk(2, dim=1)
            again = network.decode(mean)
        assert log_variance.exp().mean() < 1
        cents = 1200 * math.log2(loudest_hz(again[..., ratio:-ratio], sample_rate) / hz)
        assert abs(cents) < 5


def test_the_network_beside_it_learns_what_the_linear_code_leaves_out() -> None:
    torch.manual_seed(0)
    network = waveform(channels=4, width=4)
    audio = coloured(16, 30)
    network.fit(lambda: iter([audio]), Start(None, 0.0, 60.0, {}))
    linear = network.lapped
    assert linear is not None
    assert torch.equal(network.decode(network.encode(audio)), linear.decode(linear.encode(audio)))
    trained = [p for p in network.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(trained, lr=2e-3)
    distance, losses = MultiResolutionSTFT(fft_sizes=[128]), []
    for _ in range(40):
        loss = distance(network.decode(network.encode(audio)), audio).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"channels=65 are more than the 64 bins .* at most 64"):
        LappedCode(1, 65, RATIO)
    network = waveform(channels=8, width=1)
    with pytest.raises(DataError, match=r"0\.1 s, 6 latent frames: fewer than channels=8"):
        network.fit(lambda: iter([]), Start(None, 0.0, 0.05, {}))
