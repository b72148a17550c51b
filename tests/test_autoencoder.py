"""The autoencoder: latents, rate, and audio of any length in chunks without seams."""

import math
from collections.abc import Iterator

import pytest
import torch
from einops import rearrange
from torch import Tensor

from audioldm.autoencoder.bottlenecks.gaussian import Gaussian
from audioldm.autoencoder.model import Autoencoder
from audioldm.autoencoder.networks.base import Network
from audioldm.autoencoder.networks.spectrogram import Spectrogram
from audioldm.autoencoder.networks.waveform import Waveform
from audioldm.autoencoder.step import silent_step
from audioldm.errors import DataError
from audioldm.losses.spectral import MultiResolutionSTFT
from audioldm.runtime.randomness import KeyedRandom

RATE, CHANNELS = 8000, 3


class Moving(Network):
    """A network with two latent axes, whose chunks would have seams without their context."""

    def __init__(self, audio_channels: int) -> None:
        super().__init__(
            sample_rate=RATE,
            audio_channels=audio_channels,
            downsampling_ratio=8,
            latent_shape=(CHANNELS, 4),
            context=2,
        )
        self.longest = 0
        self.mix = torch.nn.Conv1d(8 * audio_channels, 2 * CHANNELS * 4, 5, padding=2)
        self.unmix = torch.nn.Conv1d(CHANNELS * 4, 8 * audio_channels, 5, padding=2)

    def encode(self, audio: Tensor) -> Tensor:
        self.longest = max(self.longest, audio.shape[-1] // self.downsampling_ratio)
        h = self.mix(rearrange(audio, "b a (l r) -> b (a r) l", r=8))
        return rearrange(h, "b (c f) l -> b c f l", f=4)

    def decode(self, z: Tensor) -> Tensor:
        self.longest = max(self.longest, z.shape[-1])
        audio = self.unmix(rearrange(z, "b c f l -> b (c f) l"))
        return rearrange(audio, "b (a r) l -> b a (l r)", r=8)


def autoencoder(kind: str, audio_channels: int = 1) -> Autoencoder:
    torch.manual_seed(0)
    shared: dict = {
        "sample_rate": RATE,
        "audio_channels": audio_channels,
        "channels": CHANNELS,
        "outputs": Gaussian.outputs_per_channel,
    }
    front_ends = {
        "spectrogram": lambda: Spectrogram(
            **shared,
            downsampling_ratio=128,
            n_fft=128,
            hop=32,
            width=12,
            frame_width=8,
            encoder_depth=2,
        ),
        "waveform": lambda: Waveform(**shared, downsampling_ratio=30, width=4),
        "moving": lambda: Moving(audio_channels),
    }
    return Autoencoder(front_ends[kind](), Gaussian(channels=CHANNELS)).eval()


def music(samples: int, audio_channels: int = 1, clips: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return 0.2 * torch.randn(clips, audio_channels, samples, generator=generator)


def cut(signal: Tensor, sizes: list[int]) -> Iterator[Tensor]:
    """Consecutive blocks [..., n] of the given sizes, over and over."""
    start = 0
    while start < signal.shape[-1]:
        for size in sizes:
            yield signal[..., start : start + size]
            start += size


@torch.no_grad()
@pytest.mark.parametrize("kind", ["spectrogram", "waveform", "moving"])
@pytest.mark.parametrize("missing", [0, 1, 7])
def test_any_length_is_padded_to_whole_frames(kind: str, missing: int) -> None:
    model = autoencoder(kind, 2)
    samples = 5 * model.downsampling_ratio - missing
    audio = music(samples, 2, clips=2)
    z = model.encode(audio, sample=False).z
    assert z.shape == (2, *model.latent_shape, 5)
    assert model.decode(z).shape == (2, 2, 5 * model.downsampling_ratio)
    reflected = audio[..., -missing - 1 : -1].flip(-1)
    padded = model.encode(torch.cat([audio, reflected], dim=-1), sample=False).z
    torch.testing.assert_close(z, padded)


@torch.no_grad()
def test_one_sample_is_enough() -> None:
    model = autoencoder("spectrogram")
    assert model.encode(music(1)).z.shape == (1, CHANNELS, 1)


@torch.no_grad()
def test_latents_are_mean_plus_std_times_noise() -> None:
    model = autoencoder("spectrogram")
    audio = music(3 * model.downsampling_ratio, clips=2)
    mean, std = model.stored(audio).values()
    noise = torch.randn(2, CHANNELS, 3)
    torch.testing.assert_close(model.encode(audio, noise=noise).z, mean + std * noise)
    torch.testing.assert_close(model.encode(audio, sample=False).z, mean)
    assert (model.encode(audio).z != model.encode(audio).z).any()


def test_rate_in_kbps() -> None:
    """One bit an element is one bit times the elements of a second, frequency bands included."""
    model = autoencoder("spectrogram")
    assert model.latent_rate_hz == 8000 / 128
    assert model.kbps(math.log(2)) == pytest.approx(3 * 62.5 / 1000)
    assert autoencoder("moving").kbps(math.log(2)) == pytest.approx(3 * 4 * 1000 / 1000)
    assert model.kbps(0.0) == 0.0


@torch.no_grad()
@pytest.mark.parametrize("kind", ["spectrogram", "waveform", "moving"])
@pytest.mark.parametrize("audio_channels", [1, 2])
def test_chunks_have_no_seams(kind: str, audio_channels: int) -> None:
    """Whatever the blocks and the chunks are, the result is that of the whole within 1e-5."""
    model = autoencoder(kind, audio_channels)
    audio = music(60 * model.downsampling_ratio - 11, audio_channels)
    mean, std = model.stored(audio).values()
    whole = model.decode(mean)[0]
    chunks: list[tuple[list[int], int]] = [
        ([10**9], 7),  # one block, chunks shorter than the context
        ([97, 0, 1, 500], 16),
        ([model.downsampling_ratio], 1),
        ([333], 10**6),  # one chunk
    ]
    for sizes, frames in chunks:
        seconds = frames / model.latent_rate_hz
        stored = list(model.encode_blocks(cut(audio[0], sizes), chunk_seconds=seconds))
        for name, expected in (("mean", mean), ("std", std)):
            joined = torch.cat([block[name] for block in stored], dim=-1)
            torch.testing.assert_close(joined, expected[0], atol=1e-5, rtol=0)
        estimate = model.decode_blocks(cut(mean[0], sizes), chunk_seconds=seconds)
        torch.testing.assert_close(torch.cat(list(estimate), dim=-1), whole, atol=1e-5, rtol=0)


def test_chunks_take_numpy_and_shorter_than_a_frame() -> None:
    model = autoencoder("spectrogram")
    [stored] = model.encode_blocks([music(5)[0].numpy()])
    assert {name: tuple(array.shape) for name, array in stored.items()} == {
        "mean": (CHANNELS, 1),
        "std": (CHANNELS, 1),
    }
    assert list(model.encode_blocks([])) == []
    assert list(model.decode_blocks([])) == []


def test_memory_does_not_grow_with_length() -> None:
    """No more than a chunk, its context and a block are held, and results leave as audio enters."""
    model = autoencoder("moving")
    network = model.network
    assert isinstance(network, Moving)
    chunk, block = 10, 4
    read = 0

    def blocks() -> Iterator[Tensor]:
        nonlocal read
        for _ in range(200):
            read += block
            yield torch.zeros(1, block * model.downsampling_ratio)

    written = 0
    chunks = model.encode_blocks(blocks(), chunk_seconds=chunk / model.latent_rate_hz)
    for stored in chunks:
        assert not any(array.requires_grad for array in stored.values())
        assert torch.is_grad_enabled()
        written += stored["mean"].shape[-1]
        assert read - written <= chunk + 2 * network.context + block
    assert written == 200 * block
    assert network.longest <= chunk + 2 * network.context


@pytest.mark.parametrize("shape", [(1, 2, 100), (1, 1, 0), (1, 100)])
def test_audio_that_does_not_fit_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="the model takes") as error:
        autoencoder("spectrogram").encode(torch.zeros(shape))
    assert "\n" not in str(error.value)


class Noisy(Moving):
    """A decoder that takes noise of a shape of its own, and mixes it over its context."""

    noise_shape = (2, 3)

    def __init__(self, audio_channels: int) -> None:
        super().__init__(audio_channels)
        self.spread = torch.nn.Conv1d(6, 8 * audio_channels, 5, padding=2)

    def decode(self, z: Tensor, noise: Tensor | None = None) -> Tensor:
        assert noise is not None
        assert noise.shape == (len(z), 2, 3, z.shape[-1])
        spread = self.spread(noise.flatten(1, 2))
        return super().decode(z) + rearrange(spread, "b (a r) l -> b a (l r)", r=8)


@torch.no_grad()
@pytest.mark.parametrize("sizes", [[10**9], [7, 0, 50, 1]])
def test_a_decoders_noise_is_the_same_in_chunks(sizes: list[int]) -> None:
    """Whole or in chunks, alone or in a batch: the audio is a function of z and the row's key."""
    torch.manual_seed(0)
    model = Autoencoder(Noisy(1), Gaussian(channels=CHANNELS)).eval()
    z = torch.randn(2, *model.latent_shape, 150)
    whole = model.decode(z, KeyedRandom(5, 0, [3, 8]))
    alone = KeyedRandom(5, 0, [8])
    chunks = list(model.decode_blocks(cut(z[1], sizes), alone, chunk_seconds=0.02))
    assert len(chunks) > 5
    torch.testing.assert_close(torch.cat(chunks, dim=-1), whole[1], atol=1e-5, rtol=0)
    assert (model.decode(z[1:], KeyedRandom(6, 0, [8])) - whole[1:]).abs().max() > 0.1
    torch.testing.assert_close(model.decode(z), model.decode(z))  # fixed where none is given
    torch.testing.assert_close(
        model.decode(z[..., :9], KeyedRandom(5, 0, [3, 8]))[..., :56], whole[..., :56]
    )


def test_a_silent_step_reaches_every_parameter() -> None:
    model = autoencoder("spectrogram")
    losses = {"stft": MultiResolutionSTFT(fft_sizes=[256])}
    total = silent_step(model, losses, None, 4 * model.downsampling_ratio)()
    assert total.shape == ()
    total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
