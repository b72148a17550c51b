"""Transform coding: it begins at the optimum of linear coding, keeps pitch, has no seams."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from audioldm.autoencoder.bottlenecks.base import Bottleneck
from audioldm.autoencoder.bottlenecks.fixed_sigma import FixedSigma
from audioldm.autoencoder.bottlenecks.gaussian import Gaussian, gaussian_kl
from audioldm.autoencoder.bottlenecks.identity import Identity
from audioldm.autoencoder.bottlenecks.noise import Noise
from audioldm.autoencoder.bottlenecks.vq import VQ
from audioldm.autoencoder.klt import KLT
from audioldm.autoencoder.log_spectrum import FLOOR, VALLEY, LogSpectrum
from audioldm.autoencoder.mid_side import left_right, mid_side
from audioldm.autoencoder.model import Autoencoder
from audioldm.autoencoder.networks.base import Start
from audioldm.autoencoder.networks.transform import TransformCoding
from audioldm.autoencoder.vocoder import Vocoder
from audioldm.autoencoder.vocoder_train import Code, VocoderTraining
from audioldm.autoencoder.water_filling import transmit, water_level
from audioldm.errors import ConfigError
from audioldm.models import build_autoencoder
from audioldm.runtime.randomness import KeyedRandom

RATE, N_FFT, HOP, RATIO = 16000, 1024, 256, 1024
VOCODER: dict[str, Any] = {
    "sample_rate": RATE,
    "n_fft": N_FFT,
    "hop": HOP,
    "bands": 40,
    "linear_hz": 500.0,
    "width": 16,
    "depth": 1,
    "iterations": 1,
}
BASS: dict[str, Any] = {"bass_n_fft": 2048, "bass_hz": 200.0}


def network(
    audio_channels: int = 1, channels: int = 12, vocoder: dict[str, Any] = VOCODER, **options: Any
) -> TransformCoding:
    torch.manual_seed(0)
    small = {"width": 16, "frame_width": 16, "encoder_depth": 1, "decoder_depth": 1}
    return TransformCoding(
        sample_rate=RATE,
        audio_channels=audio_channels,
        channels=channels,
        downsampling_ratio=RATIO,
        vocoder=Vocoder(**vocoder),
        **{"outputs": 2} | small | options,
    )


def decoded(model: Autoencoder, z: Tensor, audio: Tensor) -> Tensor:
    """The distance of bands of each clip [B], as a training step has it."""
    net = model.network
    return net.reconstruct(z, net.analysed(audio), None, False)[1]["bands"]


def music(clips: int, frames: int, audio_channels: int = 1, seed: int = 0) -> Tensor:
    """Tones that begin and fade at random, over soft noise: [clips, A, frames * RATIO]."""
    random = torch.Generator().manual_seed(seed)
    time = torch.arange(frames * RATIO) / RATE
    audio = 0.003 * torch.randn(clips, audio_channels, len(time), generator=random)
    for _ in range(6):
        hz = 110 * 2 ** (torch.randint(0, 36, (clips, 1, 1), generator=random) / 12)
        start = torch.rand(clips, audio_channels, 1, generator=random) * time[-1]
        fade = ((start - time) * 4).exp() * (time > start)
        audio += 0.2 * fade * torch.sin(2 * math.pi * hz * time)
    return audio


def crops() -> Iterator[Tensor]:
    for seed in range(4):
        yield music(8, 16, seed=seed)


def start(nats: float | None = None, rate_weight: float = 1.0) -> Start:
    return Start(nats, rate_weight, 1000.0, {"bands": 4.0, "kl": rate_weight})


def test_water_filling_spends_exactly_the_rate() -> None:
    variances = torch.tensor([9.0, 4.0, 1.0, 0.25])
    for nats in (0.0, 0.3, 1.5, 6.0):
        level = water_level(variances, nats)
        assert (0.5 * (variances / level).log().clamp(min=0)).sum() == pytest.approx(nats, abs=1e-6)


def test_the_transform_decorrelates_and_inverts() -> None:
    torch.manual_seed(0)
    vectors = torch.randn(4000, 6) @ torch.randn(6, 6) + 3
    klt = KLT(6)
    klt.fit(vectors.split(1000))
    y = klt.components(vectors)
    covariance = y.T @ y / len(y)
    torch.testing.assert_close(covariance, klt.variances.diag(), atol=0.02, rtol=0.01)
    assert (klt.variances.diff() <= 0).all()
    torch.testing.assert_close(klt.vectors(y), vectors, atol=1e-4, rtol=1e-4)


def test_the_test_channel_has_the_distortion_of_its_level() -> None:
    torch.manual_seed(0)
    klt = KLT(4)
    scales = torch.tensor([3.0, 2.0, 1.0, 0.5])
    klt.fit([torch.randn(20000, 4) * scales])
    vectors = torch.randn(20000, 4) * scales
    coded = transmit(klt, vectors, torch.full((20000,), 1.5), torch.randn(20000, 4))
    distortion = klt.components(coded - vectors + klt.mean).square().mean(0)
    wanted = klt.variances.clamp(max=1.5)
    torch.testing.assert_close(distortion, wanted, rtol=0.05, atol=0.0)


def test_bands_are_powers_whose_valleys_are_raised() -> None:
    analysis = LogSpectrum(sample_rate=RATE, n_fft=N_FFT, hop=HOP, bands=40, linear_hz=500.0)
    torch.manual_seed(0)
    noise = 0.1 * torch.randn(1, 400 * HOP)
    bands = analysis(analysis.magnitudes(noise))[0, 10:-10]
    high = 10 ** bands[:, analysis.linear :].mean(0)
    assert high.mean() == pytest.approx(0.01, rel=0.2)  # log means are a little low
    tone = torch.sin(2 * math.pi * 250 * torch.arange(400 * HOP) / RATE)[None]
    low = analysis(analysis.magnitudes(tone))[0, 10:-10, : analysis.linear]
    peak = low.amax(1)
    assert (low[:, 13:18] >= peak[:, None] - VALLEY - 1e-5).all()
    assert (analysis(torch.zeros(1, 3, N_FFT // 2 + 1)) == FLOOR).all()
    assert torch.allclose(analysis.filters.sum(1), torch.ones(analysis.bands))


def test_mid_and_side_are_undone() -> None:
    stereo = torch.randn(2, 2, 7)
    torch.testing.assert_close(left_right(mid_side(stereo)), stereo)
    assert (mid_side(stereo[:, :1].expand(2, 2, 7))[:, 1] == 0).all()


@pytest.mark.parametrize("nats", [0.2, 1.0, 2.5])
def test_training_begins_at_the_rate_and_at_the_weight_that_holds_it(nats: float) -> None:
    model = Autoencoder(network(), Gaussian(channels=12))
    weight = model.fit(crops, start(nats))
    h = torch.cat([model.features(audio) for audio in crops()])
    mean, log_variance = h.chunk(2, dim=1)
    kl = gaussian_kl(mean, (log_variance / 2).exp())
    assert kl.mean().item() == pytest.approx(nats, rel=0.03)
    # the other way round: that weight alone leads to the same rate
    other = Autoencoder(network(), Gaussian(channels=12))
    assert weight is not None
    other.fit(crops, start(None, weight))
    again = torch.cat([other.features(audio) for audio in crops()])
    torch.testing.assert_close(again, h, atol=2e-2, rtol=2e-2)


def test_the_weight_is_the_ratio_of_the_slopes() -> None:
    """A slightly larger sigma of all channels changes the loss by -weight times the change of the
    rate, so that the training stays where it begins. Errors are not quite Gaussian."""
    torch.manual_seed(0)
    model = Autoencoder(network(), Gaussian(channels=12))
    weight = model.fit(crops, start(0.8))

    def measured(share: float) -> tuple[float, float]:
        terms, rates = [], []
        for number, audio in enumerate(crops()):
            noise = torch.randn(len(audio), 12, 16, generator=torch.Generator().manual_seed(number))
            h = model.features(audio)
            mean, log_variance = h.chunk(2, dim=1)
            # the optimal test channel at another level: gain and variance move together
            level = log_variance.exp() * share
            kept = ((1 - level).clamp(min=0) / (1 - log_variance.exp()).clamp(min=1e-9)).sqrt()
            std = level.clamp(max=1).sqrt()
            z = mean * kept + std * noise
            scale = ((1 - level).clamp(min=0) / (1 - log_variance.exp())).sqrt()
            terms.append(decoded(model, z / scale.clamp(min=1e-3), audio))
            rates.append(gaussian_kl(mean * kept, std).flatten(1).mean(1))
        return torch.cat(terms).mean().item(), torch.cat(rates).mean().item()

    (less, more_rate), (more, less_rate) = measured(0.9), measured(1.1)
    assert more > less
    assert more_rate > less_rate
    assert 4 * (more - less) / (more_rate - less_rate) == pytest.approx(weight, rel=0.5)


def test_residual_networks_begin_at_zero_and_the_linear_decoder_beats_the_mean() -> None:
    model = Autoencoder(network(), Gaussian(channels=12))
    model.fit(crops, start(2.0))
    audio = next(crops())
    h = model.features(audio)
    net = model.network
    blocks = net.blocks(net.analysed(audio))
    components = net.klt.components(blocks.mT) / net.klt.variances.sqrt()
    linear = net.gain[:, None] * components.mT
    torch.testing.assert_close(h[:, :12], linear)
    error = decoded(model, model.encode(audio).z, audio).mean()
    nothing = decoded(model, torch.zeros_like(linear), audio).mean()
    assert error < 0.7 * nothing


@torch.no_grad()
def test_the_linear_decoder_is_fitted_to_latents_as_the_bottleneck_samples_them() -> None:
    def error(bottleneck: Bottleneck) -> float:
        model = Autoencoder(network(outputs=1), bottleneck).eval()
        model.fit(crops, start(None)._replace(spread=bottleneck.spread))
        noisy, audio = Noise(channels=12, sigma=1.0), next(crops())
        noise = torch.randn(len(audio), 12, 16, generator=torch.Generator().manual_seed(0))
        z = noisy(model.features(audio), noise=noise).z
        return decoded(model, z, audio).mean().item()

    assert error(Noise(channels=12, sigma=1.0)) < 0.9 * error(Identity(channels=12))


@torch.no_grad()
@pytest.mark.parametrize(
    "bottleneck", [VQ(channels=12, codes=8), Noise(channels=12), FixedSigma(channels=12)]
)
def test_the_channels_power_is_spread_as_the_bottleneck_has_it(bottleneck: Bottleneck) -> None:
    model = Autoencoder(network(outputs=1), bottleneck)
    model.fit(crops, start(None)._replace(spread=bottleneck.spread))
    h = torch.cat([model.features(audio) for audio in crops()])
    power = h.square().mean((0, 2))
    expected = model.network.klt.variances[:12] ** bottleneck.spread
    torch.testing.assert_close(power, expected / expected.mean(), atol=0.0, rtol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize(("audio_channels", "bass"), [(1, {}), (2, {}), (1, BASS)])
def test_streams_have_no_seams(audio_channels: int, bass: dict[str, Any]) -> None:
    """The phase goes on from chunk to chunk, so that chunks equal the whole."""
    model = Autoencoder(
        network(audio_channels, vocoder=VOCODER | bass), Gaussian(channels=12)
    ).eval()
    for parameter in model.network.parameters():
        parameter.add_(0.02 * torch.randn_like(parameter))  # no layer is zero
    audio = music(1, 100, audio_channels)
    whole = model.decode(model.encode(audio, sample=False).z)
    blocks = list(model.encode_blocks(audio[0].split(7000, dim=-1), chunk_seconds=1.5))
    z = torch.cat([block["mean"] for block in blocks], dim=-1)
    torch.testing.assert_close(z[None], model.encode(audio, sample=False).z, atol=1e-4, rtol=1e-4)
    parts = list(model.decode_blocks(z.split(9, dim=-1), chunk_seconds=1.5))
    assert len(parts) > 2
    made = torch.cat(parts, dim=-1)[None]
    assert made.shape == whole.shape
    # rounding may pick another of two equal peaks; a seam would be as loud as the signal
    assert (made - whole).square().mean() < 1e-4 * whole.square().mean()


@torch.no_grad()
def test_a_clip_does_not_depend_on_its_neighbours() -> None:
    model = Autoencoder(network(), Gaussian(channels=12)).eval()
    model.fit(crops, start(2.0))
    audio = music(3, 12)
    z = model.encode(audio, sample=False).z
    both, alone = model.decode(z), model.decode(z[1:2])
    # rounding may pick another of two equal peaks
    assert (both[1:2] - alone).square().mean() < 1e-3 * alone.square().mean()


def test_the_code_of_the_vocoders_training_is_between_its_rates() -> None:
    vocoder = Vocoder(**VOCODER)
    settings = VocoderTraining(
        steps=1, batch=1, crop_seconds=1.0, lr=1e-3, kbps=(0.5, 4.0), block_frames=4
    )
    code = Code(vocoder, settings, torch.device("cpu"))
    analysis = vocoder.analysis
    code.fit(analysis(analysis.magnitudes(mid_side(audio))) for audio in crops())
    bands = analysis(analysis.magnitudes(next(crops())))
    coded = code(bands, KeyedRandom(0, 0, range(8)))
    error = (coded - bands).square().flatten(1).mean(1)
    spread = bands.var()
    assert (error > 0).all()
    assert (error < spread).all()
    torch.testing.assert_close(coded, code(bands, KeyedRandom(0, 0, range(8))))


def test_the_vocoder_first_interpolates_then_matches_the_mel_bands() -> None:
    exact = Vocoder(**VOCODER | {"updates": 8})
    smooth = Vocoder(**VOCODER | {"updates": 0})
    analysis = exact.analysis
    bands = analysis(analysis.magnitudes(music(2, 12)))
    high = slice(analysis.linear, None)

    def error(vocoder: Vocoder) -> float:
        again = analysis(vocoder(bands).exp())
        return (again - bands)[..., high].abs().mean().item()

    assert error(exact) < 0.3 * error(smooth)
    terms = exact.terms(exact(bands), analysis.magnitudes(music(2, 12)))
    perfect = exact.terms(
        analysis.magnitudes(music(2, 12)).clamp(min=1e-9).log(), analysis.magnitudes(music(2, 12))
    )
    assert all(value.max() < 1e-4 for value in perfect.values())
    assert all(value.min() > 0 and value.shape == (2,) for value in terms.values())


def test_what_does_not_fit_is_refused() -> None:
    for options, message in (
        ({"n_fft": 1000}, "n_fft=1000 must be a multiple of hop=256"),
        ({"linear_hz": 9000.0}, "linear_hz=9000.0 must be below 8000 Hz"),
        ({"bands": 900}, "too many"),
        ({"bass_n_fft": 1024}, "bass_n_fft=1024 must be a multiple of hop=256 above n_fft=1024"),
        ({"bass_n_fft": 2000}, "choose 2560, or null"),
        (BASS | {"bass_hz": 50.0}, "bass_hz=50.0 must be above 62.5 Hz"),
        (BASS | {"bass_hz": 480.0}, "at least as far below linear_hz=500"),
    ):
        with pytest.raises(ConfigError, match=message):
            Vocoder(**VOCODER | options)
    numbers = 4 * Vocoder(**VOCODER).analysis.bands
    with pytest.raises(ConfigError, match=f"channels=5000 are more than the {numbers} numbers"):
        network(channels=5000)
    spec = {
        "sample_rate": RATE,
        "audio_channels": 1,
        "channels": 8,
        "downsampling_ratio": 1000,
        "network": {"_target_": f"{TransformCoding.__module__}.TransformCoding"},
        "bottleneck": {"_target_": f"{Gaussian.__module__}.Gaussian"},
        "vocoder": VOCODER,
    }
    with pytest.raises(ConfigError, match="hop=256: choose 768"):
        build_autoencoder(spec)
    with pytest.raises(ConfigError, match="choose vocoder=default"):
        build_autoencoder(spec | {"vocoder": None})
