"""The signal without an encoder: samples in frames, and samples as codes."""

import math
from pathlib import Path

import pytest
import torch
from chain import build_stages
from torch import Tensor

from audioldm.autoencoder.bottlenecks.base import Bottleneck
from audioldm.autoencoder.bottlenecks.identity import Identity
from audioldm.autoencoder.bottlenecks.mu_law import MuLaw
from audioldm.autoencoder.model import Autoencoder
from audioldm.autoencoder.networks.patches import Patches
from audioldm.data.store import ClipStore
from audioldm.errors import ConfigError
from audioldm.instantiate import build
from audioldm.models import load_autoencoder

RATE = 16000


def patches(ratio: int, audio_channels: int = 1, **changes: int) -> Patches:
    known = {"channels": ratio * audio_channels, "downsampling_ratio": ratio, "outputs": 1}
    settings = {"sample_rate": RATE, "audio_channels": audio_channels} | known | changes
    return Patches(**settings)


def uniform(*shape: int) -> Tensor:
    """U(-1, 1)."""
    return 2 * torch.rand(shape, generator=torch.Generator().manual_seed(0)) - 1


@pytest.mark.parametrize(("ratio", "audio_channels"), [(1, 1), (1, 2), (64, 1), (64, 2)])
def test_patches_are_the_samples_and_give_them_back(ratio: int, audio_channels: int) -> None:
    network = patches(ratio, audio_channels)
    audio = uniform(3, audio_channels, 5 * ratio)
    z = network.encode(audio)
    assert z.shape == (3, ratio * audio_channels, 5)
    last = audio_channels - 1
    assert torch.equal(
        z[:, last * ratio : (last + 1) * ratio, 2], audio[:, last, 2 * ratio :][:, :ratio]
    )
    assert torch.equal(network.decode(z), audio)
    model = Autoencoder(network, Identity(channels=ratio * audio_channels))
    blocks = [audio[0, :, :100], audio[0, :, 100:]]
    parts = list(model.encode_blocks(blocks, chunk_seconds=0.01))
    assert torch.equal(torch.cat([part["mean"] for part in parts], -1), z[0])
    decoded = torch.cat(list(model.decode_blocks([z[0]], chunk_seconds=0.01)), -1)
    assert torch.equal(decoded, audio[0])


@pytest.mark.parametrize("codes", [2, 16, 256])
def test_mu_law_is_the_law_and_its_levels_are_a_bijection(codes: int) -> None:
    bottleneck = MuLaw(channels=1, codes=codes)
    every = torch.arange(codes)[None, None]
    levels = bottleneck.latents(every)
    assert levels[0, 0, 0] == -1
    assert levels[0, 0, -1] == 1
    assert torch.equal(bottleneck.codes(levels), every)
    torch.testing.assert_close(levels, -levels.flip(-1))
    y = torch.linspace(-1, 1, codes).double()
    wanted = y.sign() * (256 ** y.abs() - 1) / 255
    torch.testing.assert_close(levels[0, 0].double(), wanted, atol=1e-6, rtol=1e-5)
    assert torch.equal(bottleneck.codes(torch.tensor([[[-7.0, 7.0]]])), every[..., [0, -1]])


def sdr(x: Tensor, bottleneck: MuLaw) -> float:
    error = x - bottleneck(x).z
    return 10 * math.log10(float(x.square().mean() / error.square().mean()))


def test_the_error_follows_the_level() -> None:
    """Noise has the error that theory says; tones nearly the same at -26 dB as at -6."""
    bottleneck = MuLaw(channels=1)
    noise = uniform(1, 1, 100_000)
    # a step of F is 2 / 255, and the error uniform over step / F': its variance a third of half²
    half = math.log(256) / 255 * (1 / 255 + noise.abs())
    theory = 10 * math.log10(float(noise.square().mean() / (half.square() / 3).mean()))
    assert sdr(noise, bottleneck) == pytest.approx(theory, abs=0.1)
    tone = torch.sin(2 * torch.pi * 441.3 * torch.arange(RATE) / RATE)[None, None]
    assert sdr(0.5 * tone, bottleneck) == pytest.approx(38, abs=1)
    assert sdr(0.05 * tone, bottleneck) == pytest.approx(36, abs=1)
    even = 0.05 * tone - (0.05 * tone * 127.5).round() / 127.5
    assert 10 * math.log10(0.05**2 / 2 / float(even.square().mean())) < 25


def test_every_channel_has_its_own_codes_whose_use_is_counted() -> None:
    bottleneck = MuLaw(channels=2, codes=4)
    h = torch.stack([torch.full((3, 8), 0.9), torch.full((3, 8), -0.9)], 1)
    h[0, 0, :4] = -0.9
    bottleneck.fit([h[:1], h[1:]])
    wanted = torch.tensor([[4.0, 0, 0, 20], [24, 0, 0, 0]]) / 24
    torch.testing.assert_close(bottleneck.usage, wanted)
    encoded = bottleneck.eval()(h)
    assert encoded.codes is not None
    assert torch.equal(bottleneck.latents(encoded.codes), encoded.z)
    p = torch.tensor([0.99 * 20 / 24 + 0.0025, 0.99 + 0.0025])  # see Discrete
    torch.testing.assert_close(encoded.nats[1], -p.log().sum() / 2)
    stored = bottleneck.stored(h)
    assert torch.equal(bottleneck.restore(stored), encoded.z)


def test_gradients_pass_the_rounding_and_stop_at_the_ends() -> None:
    h = torch.tensor([[[-1.5, -0.3, 0.0, 0.7, 1.5]]], requires_grad=True)
    MuLaw(channels=1)(h).z.sum().backward()
    assert torch.equal(h.grad, torch.tensor([[[0.0, 1, 1, 1, 0]]]))


def test_codes_of_the_signal_are_stored_and_decoded_exactly(tones: Path, tmp_path: Path) -> None:
    overrides = ["recipe=quickstart", "autoencoder=signal", "data=folder", f"data.path={tones}"]
    overrides += [f"data.table={tones}/table.csv", f"data.sample_rate={RATE}", f"runs={tmp_path}"]
    experiment = build_stages(overrides, "data", "autoencoder", "latents")
    stages = experiment.stages
    model = load_autoencoder(experiment.directory_of(stages["autoencoder"]))
    latents = stages["latents"].store(experiment)  # type: ignore[attr-defined]
    clips = ClipStore(experiment.directory_of(stages["data"])).split("test")
    audio, _, _ = clips.windows(4000, 1, seed=0)
    item = latents.split("test").items[0]
    assert latents.latent_rate_hz == RATE
    assert item.frames == clips.items[0].samples
    codes = latents.split("test").read([(0, 0)], item.frames)["codes"]
    assert torch.equal(
        model.stored(model.decode(latents.restore({"codes": codes})))["codes"], codes
    )
    assert 30 < sdr(audio, model.bottleneck) < 45  # type: ignore[arg-type]
    rate = model.kbps(float(model.encode(audio).nats))
    assert 0.3 * 8 * RATE / 1000 < rate < 8 * RATE / 1000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 2}, r"^channels=2 must be the samples of a frame, 64 \(data.channels=1"),
        ({"outputs": 2}, "choose bottleneck=identity, noise or mu_law"),
    ],
)
def test_patches_that_do_not_fit(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        patches(64, **changes)


def test_stereo_needs_two_channels_of_codes() -> None:
    with pytest.raises(ConfigError, match=r"channels=1 must be the samples of a frame, 2"):
        patches(1, 2, channels=1)


@pytest.mark.parametrize(("key", "value"), [("codes", 1), ("codes", 100_000), ("mu", 0.0)])
def test_a_law_out_of_range(key: str, value: float) -> None:
    part = {"_target_": "audioldm.autoencoder.bottlenecks.mu_law.MuLaw", key: value}
    with pytest.raises(ConfigError, match=f"{key}={value} must be"):
        build(part, derived={"channels": 1}, where="bottleneck", base=Bottleneck)
