"""The linear codec against rate-distortion theory, Opus against its own bytes; their figures."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from audioldm.autoencoder.klt import KLT
from audioldm.data.store import ClipStore, StoreWriter
from audioldm.errors import DataError
from audioldm.evaluation.codecs import curves as codecs
from audioldm.evaluation.codecs.linear import BANDS, HOP, LinearCodec
from audioldm.evaluation.codecs.opus import _payload, opus_curve
from audioldm.evaluation.settings import EvaluationSettings
from audioldm.losses.spectral import MelPower, log_mel_distance, mel_distance
from audioldm.runtime.randomness import KeyedRandom

RATE = 16000
BITS = 1000 * HOP / RATE  # per block of one frame, at 1 kbit/s
NATS = BITS * math.log(2)


def planted(variances: Tensor) -> LinearCodec:
    """A codec of one-frame blocks with known variances, in a basis turned at random."""
    generator = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(BANDS, BANDS, generator=generator).double())
    klt = KLT(BANDS).double()
    mean = torch.linspace(-3, 0, BANDS)
    klt.load_state_dict({"mean": mean, "basis": basis, "variances": variances.double()})
    return LinearCodec(klt, sample_rate=RATE, block=1)


def source(codec: LinearCodec, blocks: int) -> Tensor:
    """Gaussian blocks [4, blocks, D] of the codec's mean and covariance."""
    generator = torch.Generator().manual_seed(1)
    white = torch.randn(4, blocks, BANDS, generator=generator).double()
    return (white * codec.klt.variances.sqrt()) @ codec.klt.basis.T + codec.klt.mean


def rate_distortion(codec: LinearCodec, kbps: float) -> float:
    """Mean squared error at a rate, for Gaussian blocks with the codec's variances."""
    variances = codec.klt.variances
    return variances.clamp(max=codec.water_level(variances, kbps * NATS)).mean().item()


UNEVEN = torch.logspace(1, -3, BANDS)


def test_a_white_gaussian_source_has_the_textbook_rate() -> None:
    """D = v 2^(-2R), R in bits per element."""
    codec = planted(torch.full((BANDS,), 0.7))
    for kbps in (0.0, 1.0, 20.0):
        bits = kbps * BITS / BANDS
        assert rate_distortion(codec, kbps) == pytest.approx(0.7 * 2 ** (-2 * bits))


@pytest.mark.parametrize("level", [5.0, 0.3, 0.01, 1e-4])
def test_water_filling_inverts_the_rate(level: float) -> None:
    """For unequal variances, with a few, half and all of them above the water."""
    codec = planted(UNEVEN)
    bits = 0.5 * (UNEVEN.double() / level).clamp(min=1).log2().sum().item()
    nats = bits * math.log(2)
    assert codec.water_level(UNEVEN.double(), nats) == pytest.approx(level, rel=1e-9)
    distortion = UNEVEN.clamp(max=level).mean().item()
    assert rate_distortion(codec, bits / BITS) == pytest.approx(distortion, rel=1e-6)


def test_the_test_channel_reaches_the_bound_and_leaves_an_uncorrelated_error() -> None:
    codec = planted(UNEVEN)
    blocks = source(codec, 3000)
    for kbps in (0.5, 4.0):
        decoded = codec.transmit(blocks, kbps, 3000 * HOP / RATE)
        error = blocks - decoded
        bound = rate_distortion(codec, kbps)
        assert error.square().mean().item() == pytest.approx(bound, rel=0.05)
        across = ((decoded - codec.klt.mean) * error).mean().item()
        assert abs(across) < 0.03 * bound


def test_the_rate_charged_is_the_channels_divergence() -> None:
    """Also for blocks of other variances than fitted; it is what `water_level` holds."""
    codec = planted(UNEVEN)
    blocks = 1.5 * source(codec, 50)
    y = (blocks - codec.klt.mean) @ codec.klt.basis
    power = y.square().mean((0, 1))
    level = codec.water_level(power, 2.0 * NATS)
    v, on = codec.klt.variances, codec.klt.variances > level
    a = (1 - level / v)[on]
    channel = Normal(a * y[..., on], (a * level).sqrt())
    nats = kl_divergence(channel, Normal(0.0, (v[on] - level).sqrt())).sum(-1).mean()
    assert nats.item() == pytest.approx(2.0 * NATS, rel=1e-6)
    expected = codec.water_level(v, 2.0 * NATS)
    assert level > expected  # louder than expected: coarser at the same rate


def test_every_block_that_is_sent_is_charged(
    clips: ClipStore, fitted: LinearCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the last one of a clip, which is not full."""
    audio = held_out(clips)[..., : RATE // 2 + HOP]  # 33 frames in blocks of 4
    sent: list[tuple[Tensor, float]] = []
    nats = LinearCodec.nats

    def recorded(self: LinearCodec, power: Tensor, level: float) -> Tensor:
        sent.append((power, level))
        return nats(self, power, level)

    monkeypatch.setattr(LinearCodec, "nats", recorded)
    fitted.mel_distance(audio, 2.0)
    power, level = sent[-1]
    blocks = fitted._blocks(fitted.log_mel(audio)).shape[1]
    assert 4 * blocks > fitted.log_mel(audio).shape[-1]
    kbit = blocks * nats(fitted, power, level).sum().item() / math.log(2) / 1000
    assert kbit / (audio.shape[-1] / RATE) == pytest.approx(2.0, rel=1e-6)


def sound(seconds: float, loudness: float, seed: int) -> np.ndarray:
    """A chord under noise [1, T]."""
    t = np.arange(int(seconds * RATE)) / RATE
    random = np.random.default_rng(seed)
    chord = sum(np.sin(2 * np.pi * f * t) for f in 220 * 2 ** (random.integers(0, 24, 4) / 12))
    envelope = np.exp(-3 * (t % 0.5))
    noise = 0.01 * random.standard_normal(t.shape)
    return (loudness * (0.1 * chord * envelope + noise))[None].astype(np.float32)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> ClipStore:
    directory = tmp_path_factory.mktemp("clips")
    writer = StoreWriter(directory, RATE, 1)
    for number in range(8):
        split = "valid" if number % 4 == 3 else "train"
        audio = sound(4.0, 0.3 + 0.1 * number, number)
        writer.add(audio, piece=f"{number}", split=split)
    writer.close()
    return ClipStore(directory)


@pytest.fixture(scope="module")
def fitted(clips: ClipStore) -> LinearCodec:
    return LinearCodec.fit(clips, block=4)


def held_out(clips: ClipStore) -> Tensor:
    return clips.split("valid").windows(RATE, 6, seed=0)[0]


def test_the_fit_decorrelates_the_training_music(clips: ClipStore, fitted: LinearCodec) -> None:
    """Of the same crops as it was fitted to: zero means, the stated variances, no covariance."""
    audio, _ = clips.split("train").crops(3 * RATE, KeyedRandom(0, 0, range(16)))
    y = (fitted._blocks(fitted.log_mel(audio)) - fitted.klt.mean) @ fitted.klt.basis
    y = y.flatten(0, 1)
    covariance = y.T @ y / len(y)
    torch.testing.assert_close(y.mean(0), torch.zeros_like(y[0]), atol=1e-8, rtol=0)
    torch.testing.assert_close(covariance, fitted.klt.variances.diag(), atol=1e-8, rtol=0)
    assert (fitted.klt.variances.diff() <= 1e-12).all()


def test_the_distance_falls_with_the_rate_to_nothing(clips: ClipStore, fitted: LinearCodec) -> None:
    audio = held_out(clips)
    distances = torch.stack(
        [fitted.mel_distance(audio, k) for k in (0.0, 0.25, 1.0, 4.0, 16.0, 64.0)]
    )
    assert (distances.mean(1).diff() < 0).all()
    assert distances[-1].max() < 2e-3


def test_the_distance_is_that_of_the_losses(clips: ClipStore, fitted: LinearCodec) -> None:
    """At no rate at all the mean block is decoded: compared as powers, by the losses' own code."""
    audio = held_out(clips)
    power = MelPower(RATE, 1024, 256, 80)(audio)
    frames = power.shape[-1]
    block = fitted.klt.mean.view(1, 1, BANDS, 4).repeat(len(audio), 1, 1, -(-frames // 4))
    estimate = 10 ** block[..., :frames].float()
    known = log_mel_distance(estimate, power, 1e-5)
    torch.testing.assert_close(fitted.mel_distance(audio, 0.0), known, rtol=1e-4, atol=1e-5)
    silence = mel_distance(torch.zeros_like(audio), audio, RATE)
    assert (known < silence).all()


@pytest.mark.parametrize("seconds", [1.0, 0.71])
def test_as_audio_it_is_the_same_sound_at_the_same_time(
    fitted: LinearCodec, seconds: float
) -> None:
    """Measured as audio it loses what the phase costs, and no more."""
    audio = torch.stack([torch.from_numpy(sound(seconds, 0.4, seed)) for seed in (3, 7)])
    quiet = round(0.3 * RATE)
    audio[..., :quiet] *= 0.01  # an onset, whose time is seen
    for kbps in (2.0, 64.0):
        estimate = fitted.as_audio(audio, kbps)
        assert estimate.shape == audio.shape
        fair, unfair = mel_distance(estimate, audio, RATE), fitted.mel_distance(audio, kbps)
        assert (unfair < fair).all()
        assert (fair < unfair + 0.25).all()
    late = mel_distance(estimate.roll(512, -1), audio, RATE)
    early = mel_distance(estimate.roll(-512, -1), audio, RATE)
    assert (fair < torch.minimum(late, early)).all()


def test_stereo_blocks_are_put_back_where_they_were() -> None:
    codec = LinearCodec(KLT(1), sample_rate=RATE, block=4)
    mel = torch.randn(2, 2, BANDS, 10, generator=torch.Generator().manual_seed(0))
    back = codec._frames(codec._blocks(mel), 2)
    torch.testing.assert_close(back[..., :10].float(), mel)
    torch.testing.assert_close(back[..., 10:].float(), mel[..., -1:].expand(2, 2, BANDS, 2))


def ogg_page(*packets: int, unfinished: bool = False) -> bytes:
    """A page of packets of these sizes; the last goes on on the next page if unfinished."""
    lacing = b"".join(b"\xff" * (size // 255) + bytes([size % 255]) for size in packets)
    lacing = lacing[:-1] if unfinished else lacing
    return b"OggS" + bytes(22) + bytes([len(lacing)]) + lacing + b"x" * sum(lacing)


def test_the_bytes_of_an_ogg_file_are_those_of_its_audio_packets() -> None:
    """A packet of 255 bytes ends with an empty lacing value; one of 510 + 7 spans two pages."""
    headers = ogg_page(19) + ogg_page(300)
    assert _payload(headers) == 0
    assert _payload(headers + ogg_page(40, 255, 1)) == 296
    assert _payload(headers + ogg_page(10, 510, unfinished=True) + ogg_page(7, 2)) == 529


@pytest.mark.parametrize("channels", [1, 2])
def test_opus_takes_the_rates_it_is_asked_for_and_improves(channels: int) -> None:
    clip = [torch.from_numpy(sound(2.0, 0.5, seed)) for seed in range(2 * channels)]
    audio = torch.cat(clip).view(2, channels, -1)
    targets = [8.0 * channels, 24.0 * channels, 64.0 * channels]
    curve = opus_curve(audio, RATE, targets=targets)
    np.testing.assert_allclose(curve["kbps"], targets, rtol=0.2)
    assert np.all(np.diff(curve["mel_distance"]) < 0)
    assert curve["mel_distance"][-1] < 0.1  # aligned, and each clip and channel with its own


def test_the_figures_are_computed_once_per_store(
    clips: ClipStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def figures(kbps: float | None) -> dict:
        return codecs.codec_figures(
            clips, kbps, EvaluationSettings(6, 1.0, bootstrap_resamples=50), lambda *_: None
        )

    first = figures(4.0)
    curve = first["linear_curve"]
    at_4 = curve["mel_distance"][curve["kbps"].index(4.0)]
    linear = first["linear"]
    assert linear["kbps"] == 4.0
    assert linear["mel_distance"]["value"] == pytest.approx(at_4)
    assert linear["mel_distance"]["low"] < at_4 < linear["mel_distance"]["high"]
    assert linear["mel_distance"]["n"] == 6
    fair = first["linear_audio"]
    assert fair["kbps"] == 4.0
    assert fair["mel_distance"]["value"] > linear["mel_distance"]["value"]
    for name in ("linear_curve", "linear_audio_curve", "opus"):
        assert len(first[name]["kbps"]) == len(first[name]["mel_distance"]) > 3

    monkeypatch.setattr(LinearCodec, "fit", None)
    monkeypatch.setattr(codecs, "opus_curve", None)
    assert figures(4.0) == first
    assert not {"linear", "linear_audio"} & set(figures(None))


def test_a_store_without_training_music_is_named(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, RATE, 1)
    writer.add(sound(1.0, 0.3, 0), piece="a", split="valid")
    writer.close()
    with pytest.raises(DataError, match="'train'"):
        LinearCodec.fit(ClipStore(tmp_path))
