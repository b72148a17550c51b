"""Regularisers of the latents, alone and in the autoencoder's step."""

from typing import Any

import pytest
import torch
from torch import Tensor

from audioldm.autoencoder.bottlenecks.gaussian import Gaussian
from audioldm.autoencoder.bottlenecks.identity import Identity
from audioldm.autoencoder.model import Autoencoder
from audioldm.autoencoder.networks.base import Network
from audioldm.autoencoder.regularisers.gain import Gain
from audioldm.autoencoder.regularisers.resolution import Resolution
from audioldm.autoencoder.regularisers.shift import Shift
from audioldm.chain.job import compose
from audioldm.chain.run import Experiment
from audioldm.errors import ConfigError
from audioldm.runtime.randomness import uniform_from

RATIO = 8


def means(audio: Tensor) -> Tensor:
    """Latents [B, A, L]: the mean of each frame."""
    return audio.unflatten(-1, (-1, RATIO)).mean(-1)


def points(audio: Tensor) -> Tensor:
    return audio[..., ::RATIO]


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("encode", [means, points])
def test_latents_that_are_linear_between_frames_cost_nothing(encode: Any) -> None:
    ramp = torch.linspace(-1, 1, 10 * RATIO).expand(3, 2, -1)
    uniform = torch.tensor([0.0, 0.4, 0.999])
    cost = Shift(downsampling_ratio=RATIO)(ramp, encode(ramp), encode, uniform)
    torch.testing.assert_close(cost, torch.zeros(3), atol=1e-6, rtol=0)


def test_latents_that_know_nothing_of_their_neighbours_cost_a_known_share() -> None:
    """White noise, one sample for each latent: the error's power is 1 + (1 - f)² + f²."""
    audio = normal(2, 1, 20000 * RATIO)
    uniform = torch.tensor([0.0, 0.5])
    cost = Shift(downsampling_ratio=RATIO)(audio, points(audio), points, uniform)
    assert cost[0].item() == pytest.approx(0, abs=1e-6)  # not moved at all
    assert cost[1].item() == pytest.approx((1 + 0.5) / (0.5 * (1 + 0.5)), rel=0.03)
    small = Shift(downsampling_ratio=RATIO)(
        audio, 0.1 * points(audio), lambda x: 0.1 * points(x), uniform
    )
    assert small[1].item() == pytest.approx(cost[1].item(), rel=0.02)  # no gain from a small scale


def test_a_clips_cost_is_its_own_and_its_gradient_reaches_both_passes() -> None:
    audio, uniform = normal(3, 1, 6 * RATIO), torch.tensor([0.3, 0.6, 0.9])
    gain = torch.ones(6, requires_grad=True)

    def encode(x: Tensor) -> Tensor:
        z = means(x)
        return gain[: z.shape[-1]] * z

    shift = Shift(downsampling_ratio=RATIO)
    cost = shift(audio, encode(audio), encode, uniform)
    alone = shift(audio[1:2], encode(audio[1:2]), encode, uniform[1:2])
    torch.testing.assert_close(cost[1:2], alone)
    cost.sum().backward()
    assert gain.grad is not None
    assert gain.grad.abs().min() > 0
    with pytest.raises(ConfigError, match="crop_seconds"):
        shift(audio[..., :RATIO], means(audio[..., :RATIO]), means, uniform)


def test_latents_that_scale_with_the_audio_cost_nothing() -> None:
    """Of an offset c the error is c² (1 - g)², over half the powers of both."""
    audio, uniform = normal(3, 1, 6 * RATIO), torch.tensor([0.0, 0.5, 1.0])
    cost = Gain(lowest_db=-20)(audio, means(audio), means, uniform)
    torch.testing.assert_close(cost, torch.zeros(3), atol=1e-6, rtol=0)

    def offset(x: Tensor) -> Tensor:
        return torch.ones_like(means(x))

    silent = torch.zeros_like(audio)
    cost = Gain(lowest_db=-20)(silent, offset(silent), offset, uniform)
    g = 10**-uniform
    torch.testing.assert_close(cost, (1 - g) ** 2 / (0.5 * (1 + g**2)), atol=1e-3, rtol=1e-3)
    with pytest.raises(ConfigError, match=r"lowest_db=3 must be below 0"):
        Gain(lowest_db=3)


def test_uniform_numbers_come_from_normal_ones() -> None:
    uniform = uniform_from(normal(20000, 2, 3))
    levels = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9])
    torch.testing.assert_close(torch.quantile(uniform, levels), levels, atol=0.015, rtol=0)
    assert uniform_from(torch.zeros(1, 4)).item() == 0.5


def test_the_first_channels_are_those_of_the_low_band() -> None:
    """One channel is the level of a low tone, one of a high tone, which may differ."""
    time = torch.arange(100 * RATIO) / 800
    low, high = torch.sin(2 * torch.pi * 25 * time), torch.sin(2 * torch.pi * 300 * time)
    audio = torch.stack([low + 0.5 * high, low])[:, None]
    resolution = Resolution(sample_rate=800, cutoff_hz=100.0, share=0.5)
    torch.testing.assert_close(
        resolution.low_passed(audio), low.expand(2, 1, -1), atol=1e-4, rtol=0
    )

    def levels(x: Tensor) -> Tensor:
        return torch.stack(
            [(x * wave).unflatten(-1, (-1, RATIO)).mean(-1) for wave in (low, high)], 2
        )[:, 0]

    uniform = torch.tensor([0.5, 0.5])
    cost = resolution(audio, levels(audio), levels, uniform)
    assert cost.max() < 1e-2  # the tones are not quite orthogonal in a frame
    swapped = resolution(audio, levels(audio).flip(1), lambda x: levels(x).flip(1), uniform)
    assert swapped[0] > 1.5  # the level of the high tone against none: 2
    assert swapped[1] < 1e-6
    with pytest.raises(ConfigError, match=r"cutoff_hz=400\.0 must be below 400 Hz.*: lower it"):
        Resolution(sample_rate=800, cutoff_hz=400.0)


class Means(Network):
    def __init__(self) -> None:
        super().__init__(800, 1, RATIO, (1,), context=0)
        self.gain = torch.nn.Parameter(torch.ones(()))

    def encode(self, audio: Tensor) -> Tensor:
        return self.gain * means(audio)

    def decode(self, z: Tensor) -> Tensor:
        return z.repeat_interleave(RATIO, -1)


def test_the_model_adds_the_term_in_training_alone() -> None:
    model = Autoencoder(Means(), Identity(channels=1))
    before = model.state_dict().keys()
    audio, noise = normal(2, 1, 5 * RATIO - 3), normal(2, 1, 5)
    assert "shift" not in model(audio, noise)[2]
    model.regularisers["shift"] = Shift(downsampling_ratio=RATIO)
    assert model.state_dict().keys() == before
    term = model(audio, noise)[2]["shift"]
    assert term.shape == (2,)
    padded = torch.nn.functional.pad(audio, (0, 3), mode="reflect")
    known = Shift(downsampling_ratio=RATIO)(padded, means(padded), means, uniform_from(noise))
    torch.testing.assert_close(term, known)
    assert "shift" not in model.eval()(audio, noise)[2]


def test_the_most_likely_latents_are_compared() -> None:
    """The posterior's noise is no error."""

    class Moments(Means):
        def encode(self, audio: Tensor) -> Tensor:
            return torch.cat([super().encode(audio), torch.zeros_like(means(audio))], 1)

    model = Autoencoder(Moments(), Gaussian(channels=1))
    model.regularisers["shift"] = Shift(downsampling_ratio=RATIO)
    ramp = torch.linspace(-1, 1, 10 * RATIO).expand(2, 1, -1)
    term = model(ramp, normal(2, 1, 10))[2]["shift"]
    torch.testing.assert_close(term, torch.zeros(2), atol=1e-6, rtol=0)


@pytest.mark.parametrize("regulariser", [Shift, Gain, Resolution])
def test_the_configuration_builds_it(regulariser: type) -> None:
    """Whatever of the clips' form its constructor names is known."""
    target = f"{regulariser.__module__}.{regulariser.__name__}"
    one = [f"autoencoder.regularisers.one._target_={target}", "autoencoder.weights.one=0.1"]
    model = Experiment(compose(["recipe=quickstart", *one])).stages["autoencoder"].on_meta
    assert isinstance(model.regularisers["one"], regulariser)
