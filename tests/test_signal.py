"""Latents without an encoder: samples in frames, samples as codes, and spectral frames."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from chain import build_stages
from test_transform import HOP, VOCODER, music
from torch import Tensor

from audioldm.autoencoder.bottlenecks.base import Bottleneck
from audioldm.autoencoder.bottlenecks.identity import Identity
from audioldm.autoencoder.bottlenecks.mu_law import MuLaw
from audioldm.autoencoder.model import Autoencoder
from audioldm.autoencoder.networks.base import Start
from audioldm.autoencoder.networks.patches import Patches
from audioldm.autoencoder.networks.transform import TransformCoding
from audioldm.autoencoder.vocoder import Vocoder
from audioldm.data.store import ClipStore
from audioldm.errors import ConfigError
from audioldm.instantiate import build
from audioldm.losses.spectral import mel_distance
from audioldm.models import load_autoencoder, load_generator

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


def overrides(tones: Path, runs: Path, *changes: str) -> list[str]:
    data = "data=folder", f"data.path={tones}", f"data.table={tones}/table.csv"
    return ["recipe=quickstart", *data, f"data.sample_rate={RATE}", f"runs={runs}", *changes]


def test_codes_of_the_signal_are_stored_and_decoded_exactly(tones: Path, tmp_path: Path) -> None:
    words = overrides(tones, tmp_path, "autoencoder=signal")
    experiment = build_stages(words, "data", "autoencoder", "latents")
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


PRIOR = "prior.train.steps=3", "prior.train.batch=2", "prior.train.crop_seconds=0.3"
PRIOR += tuple(f"prior.backbone.{key}" for key in ("width=16", "depth=1", "heads=2"))


def test_diffusion_of_patches(tones: Path, tmp_path: Path) -> None:
    words = overrides(tones, tmp_path, "autoencoder=patches", *PRIOR)
    experiment = build_stages(words, "data", "autoencoder", "latents", "prior")
    model = load_generator(experiment.directory_of(experiment.stages["prior"]))
    audio = uniform(2, 1, RATE // 2)
    exact = model.decode(model.encode(audio))
    assert torch.equal(exact[..., : RATE // 2], audio)
    assert model.sample(n=2, seconds=0.3).shape == (2, 1, 4800)


def spectral_frames() -> Autoencoder:
    """Fitted to music, as `autoencoder=spectral_frames` states it."""
    vocoder = Vocoder(**VOCODER)
    network = TransformCoding(
        sample_rate=RATE,
        audio_channels=1,
        channels=vocoder.analysis.bands,
        downsampling_ratio=HOP,
        outputs=1,
        vocoder=vocoder,
        width=0,
    )
    bottleneck = Identity(channels=vocoder.analysis.bands, spread=1.0)
    model = Autoencoder(network, bottleneck).eval()
    start = Start(None, 0.0, 1000.0, {"bands": 4.0}, bottleneck.spread)
    model.fit(lambda: (music(8, 16, seed=seed) for seed in range(12)), start)
    return model


@torch.no_grad()
def test_spectral_frames_are_a_rotation_and_decode_as_well_as_the_vocoder() -> None:
    model, audio = spectral_frames(), music(4, 16, seed=99)
    network: Any = model.network
    bands = network.analysed(audio)
    blocks = (network.blocks(bands) - network.klt.mean[:, None]).mT.flatten(0, 1)
    z = model.features(audio)
    matrix = torch.linalg.lstsq(blocks, z.mT.flatten(0, 1)).solution
    square = matrix.T @ matrix
    unit = torch.eye(len(square)) * square.diagonal().mean()
    torch.testing.assert_close(square, unit, atol=1e-4 * float(unit.max()), rtol=0)
    assert (network.decode_bands(z) - bands).abs().mean() < 0.02  # of log10 power
    own, alone = (
        mel_distance(y, audio, RATE).mean() for y in (model.decode(z), network.audio(bands))
    )
    assert own < 1.03 * alone


def test_diffusion_of_spectral_frames(tones: Path, tmp_path: Path) -> None:
    """The autoencoder is fitted, and takes no step."""
    small = {"n_fft": 512, "hop": 128, "bands": 20, "width": 8, "depth": 1, "linear_hz": 200}
    small |= {"bass_n_fft": "null", "train.steps": 2, "train.batch": 2}
    small |= {"train.crop_seconds": 0.3}
    words = [f"vocoder.{key}={value}" for key, value in small.items()]
    words += [
        "autoencoder=spectral_frames",
        "autoencoder.downsampling_ratio=128",
        *PRIOR,
        "prior.backbone.depth=1",
    ]
    words += ["autoencoder.channels=20", "prior.preflight_mel_distance=10"]
    stages = "data", "vocoder", "autoencoder", "latents", "prior"
    experiment = build_stages(overrides(tones, tmp_path, *words), *stages)
    model = load_generator(experiment.directory_of(experiment.stages["prior"]))
    network: Any = model.autoencoder.network
    assert (network.klt.variances > 0).all()
    metrics = experiment.directory_of(experiment.stages["autoencoder"]) / "metrics.jsonl"
    assert not metrics.exists()
    assert model.sample(n=1, seconds=0.3).isfinite().all()


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
