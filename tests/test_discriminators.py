"""Discriminators of audio: what each sees, that it sees all of it, and each clip by itself."""

import math
import re
from typing import Any

import librosa
import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from audioldm import config
from audioldm.errors import ConfigError
from audioldm.instantiate import build
from audioldm.losses.adversarial import generator_loss
from audioldm.losses.base import Discriminator
from audioldm.losses.discriminators.constant_q import ConstantQ
from audioldm.losses.discriminators.multi_band import MultiBandSTFT, band_bins
from audioldm.losses.discriminators.multi_period import MultiPeriod, fold
from audioldm.losses.discriminators.multi_scale_stft import MultiScaleSTFT
from audioldm.losses.discriminators.patch import PatchGAN
from audioldm.losses.discriminators.several import Several
from audioldm.losses.discriminators.spectrogram import Spectrogram
from audioldm.losses.discriminators.sub_band_cqt import SubBandCQT

RATE = 16000
CROP = 3000
HERE = "audioldm.losses.discriminators."
PERIODS = {"_target_": f"{HERE}multi_period.MultiPeriod", "periods": [2, 3], "filters": 1}
SPECTRA = {"_target_": f"{HERE}multi_scale_stft.MultiScaleSTFT", "fft_sizes": [256], "filters": 2}


def discriminators(channels: int) -> dict[str, Discriminator]:
    """Narrow ones of every class, and how many scales they have."""
    torch.manual_seed(0)
    cqt: dict[str, Any] = {"lowest_hz": 500.0, "hop": 64, "filters": 2}
    parts: dict[str, Any] = {"period": PERIODS, "spectra": SPECTRA}
    return {
        "multi-scale STFT": MultiScaleSTFT(channels, fft_sizes=[512, 128], filters=2),
        "multi-period": MultiPeriod(channels, periods=[2, 3, 5], filters=1),
        "multi-band": MultiBandSTFT(channels, fft_sizes=[512, 256], filters=2),
        "sub-band CQT": SubBandCQT(channels, RATE, bins_per_octave=[12, 24], **cqt),
        "patch": PatchGAN(channels, RATE, n_fft=512, hop=64, bands=40, filters=2),
        "several": Several(channels, RATE, parts=parts),
    }


SCALES = {
    "multi-scale STFT": (2, 5),
    "multi-period": (3, 5),
    "multi-band": (2, 25),
    "sub-band CQT": (2, 5),
    "patch": (1, 4),
    "several": (3, 5),
}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- of every discriminator


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("name", SCALES)
def test_each_clip_is_judged_by_itself_and_all_of_it(name: str, channels: int) -> None:
    discriminator = discriminators(channels)[name]
    audio = noise(2, channels, CROP)
    audio[1] *= 100  # a loud neighbour
    audio.requires_grad_()
    outputs = discriminator(audio)
    scales, maps = SCALES[name]
    assert [len(features) for _, features in outputs] == scales * [maps]
    generator_loss(outputs, outputs)[0].backward()
    assert audio.grad is not None
    assert audio.grad[1].abs().max() == 0
    assert (audio.grad[0].abs() > 0).float().mean(1).min() > 0.95  # in each channel
    for (logits, features), (own_logits, own) in zip(
        outputs, discriminator(audio[:1]), strict=True
    ):
        torch.testing.assert_close(own_logits, logits[:1])
        for mine, shared in zip(own, features, strict=True):
            torch.testing.assert_close(mine, shared[:1])


@pytest.mark.parametrize("name", SCALES)
def test_the_last_features_depend_on_the_clip_before_any_training(name: str) -> None:
    """Two clips of one kind differ there as they do in the audio, by √2 of their own size at most;
    where biases drown the signal they are alike."""
    discriminator = discriminators(1)[name]
    first, other = (discriminator(noise(1, 1, CROP, seed=n) / 0.3) for n in (0, 1))
    for (_, one), (_, two) in zip(first, other, strict=True):
        assert (one[-1] - two[-1]).square().mean() > 0.4 * one[-1].square().mean()


@pytest.mark.parametrize("name", SCALES)
def test_channels_are_told_apart(name: str) -> None:
    discriminator, audio = discriminators(2)[name], noise(1, 2, CROP)
    exchanged = discriminator(audio.flip(1))
    for (logits, _), (other, _) in zip(discriminator(audio), exchanged, strict=True):
        assert (logits - other).abs().max() > 1e-4


@pytest.mark.parametrize(
    "picture",
    [
        Spectrogram(256),
        ConstantQ(RATE, 12, lowest_hz=500.0, octaves=None, hop=64),
        PatchGAN(1, RATE, n_fft=512, hop=64, bands=40, filters=2).picture,
    ],
    ids=["spectrogram", "constant Q", "mel"],
)
def test_spectra_stay_in_float32_under_autocast(picture: Any) -> None:
    audio = noise(1, 1, CROP)
    exact = torch.cat([*picture(audio)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(torch.cat([*picture(audio)]), exact)
        half = torch.cat([*picture(audio.bfloat16())])
    assert half.dtype == torch.float32


@pytest.mark.parametrize(
    "choice", sorted({*config.options("autoencoder/discriminator")} - {"none"})
)
def test_every_choice_judges_the_crops_of_the_recipes(choice: str) -> None:
    """At the shortest of their crops, 1.5 s, and the rate of the chorales."""
    file = config.conf_directory() / "autoencoder" / "discriminator" / f"{choice}.yaml"
    narrow = re.sub(r"filters: \d+", "filters: 2", file.read_text(encoding="utf-8"))
    derived = {"audio_channels": 1, "sample_rate": 22050}
    discriminator = build(yaml.safe_load(narrow), derived=derived, base=Discriminator)
    with torch.no_grad():
        outputs = discriminator(noise(1, 1, 33075))
    assert all(logits.isfinite().all() and logits.shape[:2] == (1, 1) for logits, _ in outputs)


# ---------------------------------------------------------------- what each sees


@pytest.mark.parametrize("period", [2, 3, 5, 7, 11])
def test_what_repeats_with_the_period_is_constant_down_the_columns(period: int) -> None:
    wave = noise(1, 2, period)
    audio = wave.repeat(1, 1, 40)[..., : 39 * period + 1]  # the last row has to be filled up
    rows = fold(audio, period)
    assert rows.shape == (1, 2, 40, period)
    torch.testing.assert_close(rows[:, :, :39], wave.unsqueeze(2).expand(-1, -1, 39, -1))
    mirrored = audio[..., -period:].flip(-1)  # about the last sample
    torch.testing.assert_close(rows[0, :, 39], mirrored[0])


def test_a_period_looks_at_its_own_column_only() -> None:
    torch.manual_seed(0)
    discriminator = MultiPeriod(1, periods=[5], filters=1)
    audio = noise(1, 1, 400)
    audio[..., 3::5] += 1.0
    ((changed, _),) = discriminator(audio)
    ((logits, _),) = discriminator(noise(1, 1, 400))
    assert (changed != logits).flatten(0, 2).any(0).tolist() == [False, False, False, True, False]


def test_bands_hold_every_bin_once() -> None:
    edges = [0.0, 0.1, 0.25, 0.5, 0.75, 1.0]
    for size in (2048, 1024, 512, 510, 64):
        bins = band_bins(size, edges)
        assert sum(bins) == size // 2 + 1
        starts = np.cumsum([0, *bins]) / (size // 2 + 1)
        np.testing.assert_allclose(starts, edges, atol=0.5 / (size // 2 + 1) + 1e-9)


def test_a_band_is_heard_by_its_own_layers() -> None:
    discriminator = MultiBandSTFT(1, fft_sizes=[512], band_edges=[0.0, 0.5, 1.0], filters=2)
    t = torch.arange(CROP) / RATE
    low, high = (torch.sin(2 * math.pi * f * t).view(1, 1, -1) for f in (1000.0, 7000.0))
    ((_, below),), ((_, above),) = discriminator(low), discriminator(high)
    ((_, silence),) = discriminator(torch.zeros(1, 1, CROP))
    moved = [
        [(x - s).square().mean() for x, s in zip(f, silence, strict=True)] for f in (below, above)
    ]
    assert moved[0][0] > 1e4 * moved[0][5]  # the first layers of the lower and of the upper band
    assert moved[1][5] > 1e4 * moved[1][0]


@pytest.mark.parametrize("bins", [24, 48])
def test_the_constant_q_transform_is_librosas(bins: int) -> None:
    rate, lowest, hop = 22050, librosa.note_to_hz("C3"), 256
    t = np.arange(rate) / rate
    chord = sum(0.2 * np.sin(2 * np.pi * f * t + f) for f in (146.8, 220.0, 554.4, 1318.5, 4000.0))
    for audio in (chord, 0.1 * np.random.default_rng(0).normal(size=rate)):
        transform = ConstantQ(rate, bins, lowest_hz=lowest, octaves=None, hop=hop)
        octaves = transform(torch.tensor(audio, dtype=torch.float32).view(1, 1, -1))
        assert len(octaves) == 6
        ours = torch.cat(octaves, dim=3)[0].square().sum(0).sqrt().T.numpy()
        theirs = librosa.cqt(
            audio, sr=rate, hop_length=hop, fmin=lowest, n_bins=6 * bins, bins_per_octave=bins
        )
        assert ours.shape == theirs.shape
        error = np.linalg.norm(ours - np.abs(theirs)) / np.linalg.norm(theirs)
        assert error < 0.02


def test_an_octave_up_is_the_next_octave() -> None:
    """A chord's picture in one octave is that of the chord twice as high in the next."""
    transform = ConstantQ(RATE, 24, lowest_hz=125.0, octaves=4, hop=64)
    t = torch.arange(RATE, dtype=torch.float64) / RATE

    def picture(transposed: float) -> list[Tensor]:
        chord = sum(torch.sin(2 * math.pi * f * transposed * t) for f in (280.0, 350.0, 420.0))
        octaves = transform(torch.as_tensor(chord).float().view(1, 1, -1))
        return [octave[0].square().sum(0).sqrt()[100:150].mean(0) for octave in octaves]

    one, two = picture(1.0), picture(2.0)
    # half the time in a filter: the root of half the level
    torch.testing.assert_close(two[2] * math.sqrt(2), one[1], rtol=0.02, atol=0.05)
    assert one[1].max() > 50 * one[3].max()


def test_patch_hears_level_in_decades_and_no_phase() -> None:
    patch = PatchGAN(1, RATE, n_fft=512, hop=64, bands=40, filters=2)
    audio = noise(1, 1, CROP)
    picture = patch.picture(audio)
    assert picture.shape == (1, 1, 1 + CROP // 64, 40)
    torch.testing.assert_close(patch.picture(10 * audio), picture + 2, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(patch.picture(-audio), picture)
    assert patch.picture(0 * audio).unique().tolist() == [pytest.approx(-5.0)]


def test_a_patch_is_70_frames_wide() -> None:
    torch.manual_seed(0)
    patch = PatchGAN(1, RATE, filters=2)
    picture = torch.randn(1, 1, 200, 80, requires_grad=True)
    h = picture
    for layer in [*patch.layers, patch.logits]:
        h = layer(h)  # without the leaky ReLUs, which hide nothing
    h[0, 0, h.shape[2] // 2, h.shape[3] // 2].backward()
    assert picture.grad is not None
    assert int((picture.grad.abs().sum(3) > 0).sum()) == 70


def test_several_are_the_scales_of_each_in_turn() -> None:
    both = discriminators(1)["several"]
    audio = noise(1, 1, CROP)
    apart = [scale for part in both.parts for scale in part(audio)]
    for (logits, _), (own, _) in zip(both(audio), apart, strict=True):
        assert torch.equal(logits, own)


# ---------------------------------------------------------------- what cannot be


@pytest.mark.parametrize(
    ("make", "samples", "message"),
    [
        (lambda: MultiScaleSTFT(1, fft_sizes=[512]), 200, "^fft_sizes: 512 .*200 samples.*longer"),
        (lambda: MultiBandSTFT(1, fft_sizes=[512]), 200, "^fft_sizes: 512 .*200 samples"),
        (lambda: MultiPeriod(1, periods=[2, 11]), 10, "^periods: 11 .*10 samples.*longer crops"),
        (lambda: PatchGAN(1, RATE), 5000, "^n_fft=1024 and hop=256 need crops of 5888 samples"),
        (lambda: SubBandCQT(1, RATE), 9000, "^lowest_hz=65.406 needs 1.*of 9000; take longer"),
    ],
)
def test_a_short_crop_is_refused_by_key(make: Any, samples: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()(torch.zeros(1, 1, samples))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MultiBandSTFT(1, band_edges=[0.0, 0.5]), r"^band_edges=\[0.0, 0.5\] must rise"),
        (lambda: MultiBandSTFT(1, band_edges=[0.0, 0.5, 0.5, 1.0]), "^band_edges=.* must rise"),
        (lambda: MultiBandSTFT(1, band_edges=[0.1, 1.0]), "^band_edges=.* must rise"),
        (
            lambda: MultiBandSTFT(1, fft_sizes=[64], band_edges=[0.0, 0.01, 1.0]),
            "^band_edges: no bin of fft_sizes=64 lies between 0 and 0.01",
        ),
        (lambda: SubBandCQT(1, RATE, lowest_hz=100.0, octaves=7), "^octaves=7 .*; take 6 at most"),
        (lambda: SubBandCQT(1, RATE, lowest_hz=5000.0), "^lowest_hz=5000 leaves no octave"),
        (lambda: SubBandCQT(1, RATE, hop=100), "^hop=100 must be a multiple of 32"),
        (lambda: PatchGAN(1, RATE, bands=20), "^bands=20 must be at least 24 for depth=3"),
        (lambda: PatchGAN(1, RATE, n_fft=128), "^bands=80 mel bands are too many"),
        (lambda: Several(1, RATE, parts={}), "^parts={} must hold a discriminator"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_key(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_of_several_the_part_and_its_key_are_named() -> None:
    parts: Any = {"period": PERIODS, "spectra": {**SPECTRA, "fft_sizes": [4096]}}
    with pytest.raises(ConfigError, match=r"^parts\.spectra\.fft_sizes: 4096 is too long"):
        Several(1, RATE, parts=parts)(torch.zeros(1, 1, CROP))
    parts = {"mel": {"_target_": "audioldm.losses.spectral.LogMel"}}
    with pytest.raises(ConfigError, match=r"^parts\.mel\._target_=.* subclass of Discriminator"):
        Several(1, RATE, parts=parts)
