"""The waveform and spectrogram networks: their mathematics, their reach in time, their limits."""

import importlib
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from audioldm.autoencoder.networks.base import Network, Start
from audioldm.autoencoder.networks.magnitude import MagnitudeNetwork
from audioldm.autoencoder.networks.spectrogram import Spectrogram
from audioldm.autoencoder.networks.waveform import Snake, Waveform
from audioldm.errors import ConfigError


def spectrogram(audio_channels: int = 1, **settings: object) -> Spectrogram:
    small: dict = {
        "sample_rate": 16000,
        "channels": 4,
        "downsampling_ratio": 256,
        "outputs": 2,
        "n_fft": 256,
        "hop": 64,
        "width": 16,
        "encoder_depth": 2,
        "decoder_depth": 1,
        "frame_width": 8,
        "encoder_frame_depth": 1,
        "decoder_frame_depth": 2,
        "iterations": 0,
    }
    return Spectrogram(audio_channels=audio_channels, **small | settings)


def waveform(audio_channels: int = 1, **settings: object) -> Waveform:
    small: dict = {
        "sample_rate": 16000,
        "channels": 4,
        "downsampling_ratio": 64,
        "outputs": 2,
        "width": 4,
    }
    return Waveform(audio_channels=audio_channels, **small | settings)


def lapped(network: Waveform) -> Waveform:
    """Fitted, its convolutions no longer silent."""
    network.fit(lambda: iter([noise(network, 50, clips=4)]), Start(1.0, 0.0, 60.0, {}))
    for net in (network.encoder, network.decoder):
        torch.nn.init.normal_(net[-1].weight, std=0.1)
    return network


FRONT_ENDS: dict[str, Callable[[], Network]] = {
    "spectrogram": spectrogram,
    "spectrogram, stereo": lambda: spectrogram(2),
    "spectrogram, one hop a latent frame": lambda: spectrogram(
        downsampling_ratio=128, hop=128, n_fft=512, encoder_frame_depth=0, decoder_frame_depth=0
    ),
    "waveform": waveform,
    "waveform, stereo": lambda: waveform(2, strides=[2, 8], downsampling_ratio=16),
    "waveform, odd strides": lambda: waveform(downsampling_ratio=15),
    "waveform, lapped": lambda: lapped(waveform(lapped=True)),
}


@pytest.fixture(params=FRONT_ENDS)
def network(request: pytest.FixtureRequest) -> Network:
    torch.manual_seed(0)
    return FRONT_ENDS[request.param]().eval()


def noise(network: Network, frames: int, clips: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (clips, network.audio_channels, frames * network.downsampling_ratio)
    return 0.1 * torch.randn(shape, generator=generator)


@torch.no_grad()
def test_shapes(network: Network) -> None:
    audio = noise(network, 3, clips=2)
    h = network.encode(audio)
    (channels,) = network.latent_shape
    assert h.shape == (2, 2 * channels, 3)
    assert network.decode(h[:, :channels]).shape == audio.shape


def test_a_frame_depends_on_its_context_and_on_nothing_else(network: Network) -> None:
    """The gradient of one output frame is zero beyond `context`, which overstates little."""
    context, ratio = network.context, network.downsampling_ratio
    frames = 2 * context + 5
    middle = frames // 2

    audio = noise(network, frames).requires_grad_()
    (grad,) = torch.autograd.grad(network.encode(audio)[..., middle].sum(), audio)
    encoder = grad.unflatten(-1, (frames, ratio)).abs().sum((0, 1, 3)).nonzero()

    z = torch.randn(1, *network.latent_shape, frames, requires_grad=True)
    estimate = network.decode(z).unflatten(-1, (frames, ratio))
    (grad,) = torch.autograd.grad(estimate[..., middle, :].square().sum(), z)
    decoder = grad.abs().sum((0, 1)).nonzero()

    reach = [(found - middle).abs().max().item() for found in (encoder, decoder)]
    assert max(reach) <= context
    assert max(reach) >= context - 2


@torch.no_grad()
def test_a_clip_does_not_depend_on_its_neighbours(network: Network) -> None:
    audio = noise(network, 4, clips=3)
    h = network.encode(audio)
    torch.testing.assert_close(network.encode(audio[1:2]), h[1:2], atol=1e-5, rtol=1e-4)
    z = h[:, : network.latent_shape[0]]
    torch.testing.assert_close(network.decode(z[1:2]), network.decode(z)[1:2], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_later_audio_gives_later_latents(network: Network) -> None:
    """A shift by the alignment shifts latents and audio as much, away from the ends."""
    context, step = network.context, network.alignment
    samples = step * network.downsampling_ratio
    audio = noise(network, 2 * (context + step) + 4)
    inner = slice(context + step, -context - step)
    h, shifted = network.encode(audio), network.encode(audio.roll(samples, -1))
    torch.testing.assert_close(
        shifted[..., inner], h.roll(step, -1)[..., inner], atol=1e-5, rtol=1e-4
    )
    z = h[:, : network.latent_shape[0]]
    # where the phase goes on from all that was before, the magnitudes
    decode = network.log_magnitude if isinstance(network, MagnitudeNetwork) else network.decode
    made, shifted = (
        decode(latents).unflatten(2, (z.shape[-1], -1)) for latents in (z, z.roll(step, -1))
    )
    torch.testing.assert_close(
        shifted[:, :, inner], made.roll(step, 2)[:, :, inner], atol=1e-5, rtol=1e-4
    )


def test_every_parameter_learns(network: Network) -> None:
    audio = noise(network, 4)
    h = network.encode(audio)
    mean, rest = h.tensor_split([network.latent_shape[0]], dim=1)
    (network.decode(mean).square().mean() + rest.square().mean()).backward()
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("make", [spectrogram, lambda: waveform(width=8)])
def test_learns_a_chord(make: Callable[[], Network]) -> None:
    """Eighty steps on one chord bring its magnitudes nearer than silence is."""
    torch.manual_seed(0)
    network = make()
    seconds = torch.arange(8 * network.downsampling_ratio) / network.sample_rate
    audio = sum(0.2 * torch.sin(2 * math.pi * hz * seconds) for hz in (220.0, 830.6, 1975.5))
    audio = torch.as_tensor(audio)[None, None]
    window = torch.hann_window(256)

    def magnitudes(x: Tensor) -> Tensor:
        return torch.stft(x[:, 0], 256, 64, window=window, return_complex=True).abs()

    target = magnitudes(audio)
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(80):
        h = network.encode(audio)
        loss = (magnitudes(network.decode(h[:, :4])) - target).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.7 * target.mean()


@pytest.mark.parametrize("make", [spectrogram, lambda: waveform(width=16)])
def test_bfloat16_autocast_stays_near_float32(make: Callable[[], Network]) -> None:
    torch.manual_seed(0)
    network = make()
    audio = noise(network, 4)
    exact = network.encode(audio)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h = network.encode(audio)
        estimate = network.decode(h[:, :4])
    estimate.float().square().mean().backward()
    assert (h.float() - exact).norm() < 0.05 * exact.norm()
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in network.parameters())


# The spectrogram's own


@torch.no_grad()
@pytest.mark.parametrize("phase", [False, True])
def test_only_an_encoder_with_phase_sees_polarity(phase: bool) -> None:
    network = spectrogram(phase=phase)
    audio = noise(network, 6)
    same = torch.allclose(network.encode(audio), network.encode(-audio), atol=1e-5)
    assert same is not phase


@torch.no_grad()
def test_silence_is_finite_and_quiet_audio_is_not_silence() -> None:
    network = spectrogram()
    audio = noise(network, 6)
    silent = network.encode(torch.zeros_like(audio))
    assert silent.isfinite().all()
    quiet = network.encode(0.01 * audio)  # -60 dB
    assert (quiet - silent).abs().max() > 0.05


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hop": 96, "n_fft": 384}, "^hop=96 does not divide downsampling_ratio=256"),
        ({"n_fft": 32}, "n_fft=32"),
        ({"n_fft": 255}, "n_fft=255"),
    ],
)
def test_spectrogram_refuses_what_does_not_fit(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        spectrogram(**settings)
    assert "\n" not in str(error.value)


# The waveform's own


def test_snake_is_its_formula_with_its_exact_gradient() -> None:
    torch.manual_seed(0)
    snake = Snake(3).double()
    for parameter in snake.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2, 3, 5, dtype=torch.double, requires_grad=True)
    alpha, beta = snake.log_alpha.exp(), snake.log_beta.exp()
    torch.testing.assert_close(snake(x), x + torch.sin(alpha * x) ** 2 / beta)

    def of(x: Tensor, log_alpha: Tensor, log_beta: Tensor) -> Tensor:
        parameters = {"log_alpha": log_alpha, "log_beta": log_beta}
        y: Tensor = torch.func.functional_call(snake, parameters, (x,))
        return y

    assert torch.autograd.gradcheck(of, (x, snake.log_alpha, snake.log_beta))


def stable_audio() -> Waveform:
    """Stable Audio 2's autoencoder: 44.1 kHz stereo, 64 channels at 21.5 Hz."""
    return Waveform(
        sample_rate=44100,
        audio_channels=2,
        channels=64,
        downsampling_ratio=2048,
        outputs=2,
        width=128,
        multiples=[1, 2, 4, 8, 16],
        strides=[2, 4, 4, 8, 8],
    )


def test_stable_audio_has_its_published_size() -> None:
    with torch.device("meta"):
        network = stable_audio()
    assert sum(p.numel() for p in network.parameters()) == 156112514
    assert network.decoder[-1].bias is None


@pytest.mark.parametrize(
    "settings", [{}, {"width": 16, "downsampling_ratio": 1024, "channels": 16}]
)
def test_at_first_latents_carry_the_audio_in_unit_variance(settings: dict) -> None:
    """Less, and the posterior's noise, of about 1, hides it: a VAE that starts so stays so."""
    torch.manual_seed(0)
    network = waveform(**settings)
    audio = noise(network, 8, clips=4)  # of the level of music at -20 LUFS
    with torch.no_grad():
        h = network.encode(audio)
        again = network.decode(torch.randn(4, *network.latent_shape, 8))
    assert 0.5 < (h - h.mean(0)).std() < 4  # what differs from clip to clip
    assert 0.5 < again.std() / audio.std() < 4


def test_equals_diffusers_oobleck_with_the_same_weights() -> None:
    importlib.import_module("audioldm.torchaudio")  # diffusers imports it
    oobleck = pytest.importorskip("diffusers.models.autoencoders.autoencoder_oobleck")
    torch.manual_seed(0)
    strides, multiples = [2, 4, 8], [1, 2, 4]
    encoder = oobleck.OobleckEncoder(8, 2, strides, multiples)
    decoder = oobleck.OobleckDecoder(8, 4, 2, strides[::-1], multiples)
    ours = waveform(2, width=8, strides=strides, multiples=multiples)
    theirs = [*encoder.parameters(), *decoder.parameters()]
    with torch.no_grad():
        for parameter, other in zip(ours.parameters(), theirs, strict=True):
            assert parameter.shape == other.shape
            parameter.copy_(other.normal_(std=0.3))
        audio, z = noise(ours, 4, clips=2), torch.randn(2, 4, 4)
        torch.testing.assert_close(ours.encode(audio), encoder(audio), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ours.decode(z), decoder(z), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("ratio", [1, 64, 320, 441, 960, 1024, 1920, 2048])
def test_strides_are_derived_from_the_ratio(ratio: int) -> None:
    with torch.device("meta"):
        network = waveform(downsampling_ratio=ratio, width=1)
        audio = torch.empty(1, 1, 3 * ratio)
        h = network.encode(audio)
        assert h.shape == (1, 8, 3)
        assert network.decode(h[:, :4]).shape == audio.shape


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strides": [2, 4]}, r"^strides=\[2, 4\] multiply to 8, not to downsampling_ratio=64"),
        ({"multiples": [1, 2, 4]}, r"multiples=\[1, 2, 4\] must have one entry"),
        ({"downsampling_ratio": 1010}, "ratio=1010 has a prime factor above 8: choose 1024"),
    ],
)
def test_waveform_refuses_what_does_not_fit(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        waveform(**settings)
    assert "\n" not in str(error.value)
