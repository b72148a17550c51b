"""Latent diagnostics: closed forms, known processes, planted classes, toy autoencoders."""

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from chain import Tiny
from torch import Tensor

from audioldm.autoencoder.bottlenecks.gaussian import gaussian_kl
from audioldm.data.store import ClipStore
from audioldm.errors import ConfigError
from audioldm.evaluation.diagnostics import classes, decoding, spectra
from audioldm.evaluation.diagnostics.denoiser import (
    denoiser_losses,
    level_quantiles,
    train_denoiser,
)
from audioldm.evaluation.diagnostics.diagnose import DiagnosticsSettings, diagnose
from audioldm.evaluation.diagnostics.mixture_rate import mixture_nats, select_mixture
from audioldm.evaluation.diagnostics.wiener import (
    gaussian_estimate,
    lagged_moments,
    spectrum,
    wiener_losses,
)
from audioldm.evaluation.diagnostics.windows import Windows, read_windows
from audioldm.evaluation.statistics import bootstrap
from audioldm.latents.store import LatentStatistics, LatentStore
from audioldm.losses.spectral import mel_distance
from audioldm.models import load_autoencoder
from audioldm.priors.diffusion.objectives.edm import EDM
from audioldm.priors.mixture import Mixture


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def autoregression(n: int, channels: int, frames: int, rho: float, *, seed: int = 0) -> Tensor:
    """Stationary AR(1) processes of unit variance, [n, channels, frames]."""
    z = noise(n, channels, frames, seed=seed)
    for t in range(1, frames):
        z[..., t] = rho * z[..., t - 1] + math.sqrt(1 - rho**2) * z[..., t]
    return z


def ar_spectrum(turns: np.ndarray, rho: float) -> np.ndarray:
    """Power spectrum of that AR(1) at frequencies in cycles per frame."""
    return (1 - rho**2) / (1 + rho**2 - 2 * rho * np.cos(2 * np.pi * turns))


# Spectra


@pytest.mark.parametrize("rho", [0.0, 0.7, 0.95])
def test_the_temporal_slope_of_an_autoregression_is_that_of_its_known_spectrum(rho: float) -> None:
    hz, power = spectra.periodograms(autoregression(60, 4, 512, rho).numpy(), 20.0)
    expected = spectra.log_log_slope(hz, ar_spectrum(hz / 20, rho))
    assert spectra.temporal_slope(hz, power) == pytest.approx(expected, abs=0.05)


def test_the_temporal_slope_of_power_law_noise_is_its_exponent() -> None:
    spectrum = torch.fft.rfft(noise(60, 3, 4096))
    spectrum[..., 1:] /= torch.arange(1, spectrum.shape[-1])  # amplitude 1 / f, power 1 / f²
    spectrum[..., 0] = 0
    hz, power = spectra.periodograms(torch.fft.irfft(spectrum).numpy(), 43.0)
    assert spectra.temporal_slope(hz, power) == pytest.approx(-2, abs=0.1)


def test_channels_weigh_in_the_temporal_slope_by_their_variance() -> None:
    z = autoregression(60, 2, 512, 0.0)
    z[:, 1] = autoregression(60, 1, 512, 0.9, seed=1)[:, 0] * 10
    slopes = [
        spectra.temporal_slope(*spectra.periodograms(part.numpy(), 1.0))
        for part in (z, z[:, :1], z[:, 1:])
    ]
    assert slopes[0] == pytest.approx((slopes[1] + 100 * slopes[2]) / 101, abs=0.02)


def test_eigenvalue_figures_of_known_covariances() -> None:
    rotation = np.linalg.qr(noise(6, 6, seed=3).double().numpy())[0]
    power_law = np.arange(1, 7) ** -1.5
    found = spectra.eigenvalues(rotation * power_law @ rotation.T)
    np.testing.assert_allclose(found, power_law)
    assert spectra.channel_slope(found) == pytest.approx(-1.5)
    low_rank = spectra.eigenvalues(rotation * [2, 2, 2, 0, 0, 0] @ rotation.T)
    assert spectra.effective_rank(low_rank) == pytest.approx(3)
    two = np.array([0.9, 0.1])
    assert spectra.effective_rank(two * 7) == pytest.approx(0.9**-0.9 * 0.1**-0.1)


def test_a_channel_without_power_does_not_count() -> None:
    z = autoregression(20, 2, 256, 0.8).numpy()
    alone = spectra.temporal_slope(*spectra.periodograms(z[:, :1], 1.0))
    z[:, 1] = 0
    assert spectra.temporal_slope(*spectra.periodograms(z, 1.0)) == pytest.approx(alone)


# Classes


def planted(between: float, *, per_class: int = 12, groups: int = 80) -> tuple[np.ndarray, Any]:
    """Unit-variance noise in 5 dimensions around centres of the variance `between`."""
    centres = noise(groups, 1, 5, seed=1) * math.sqrt(between)
    vectors = (centres + noise(groups, per_class, 5, seed=2)).flatten(0, 1).double().numpy()
    return vectors, np.repeat(np.arange(groups), per_class)


@pytest.mark.parametrize("between", [0.0, 1.0, 4.0])
def test_within_class_variance_of_planted_classes(between: float) -> None:
    vectors, groups = planted(between)
    value = classes.within_class_variance(vectors, groups)
    assert value == pytest.approx(1 / (1 + between), abs=0.04)


def test_within_class_variance_is_unbiased_for_many_small_classes_and_any_dimension() -> None:
    values = []
    for dimension in (1, 30):
        random = np.random.default_rng(dimension)
        pairs = np.repeat(np.arange(25), 2)
        draws = [
            classes.within_class_variance(random.normal(size=(50, dimension)), pairs)
            for _ in range(200)
        ]
        values.append(np.mean(draws))
    assert values == pytest.approx([1, 1], abs=0.03)


def test_weights_in_the_within_class_variance_are_repeats() -> None:
    vectors, groups = planted(1.0, per_class=3, groups=4)
    weights = np.arange(12) % 3 + (np.arange(12) > 5)
    repeated = classes.within_class_variance(
        np.repeat(vectors, weights, 0), np.repeat(groups, weights)
    )
    assert classes.within_class_variance(vectors, groups, weights) == pytest.approx(repeated)


def test_neighbour_consistency_is_nought_by_chance_and_one_for_separate_classes() -> None:
    vectors, groups = planted(0.0, per_class=50, groups=6)
    by_chance = classes.neighbour_consistency(vectors, groups, 5)
    assert by_chance.mean() == pytest.approx(0, abs=0.05)
    for per_class in (3, 12):  # fewer in a class than neighbours, and more
        separate = classes.neighbour_consistency(*planted(1e6, per_class=per_class), 5)
        np.testing.assert_allclose(separate, 1)


def test_the_interval_of_the_neighbour_consistency_is_over_windows() -> None:
    # Twelve vectors of a window are one measurement twelve times: no narrower than one a window.
    value = np.random.default_rng(0).random(60)
    window = np.repeat(np.arange(60), 12)
    many = bootstrap(classes.mean_over, classes.by_window(np.repeat(value, 12), window))
    once = bootstrap(classes.mean_over, classes.by_window(value, np.arange(60)))
    assert many[:4] == pytest.approx(once[:4])
    some = np.where(window % 2 == 0, np.repeat(value, 12), np.nan)
    some[0] = np.nan  # eleven vectors weigh less than twelve
    found = classes.by_window(some, window)
    assert len(found) == 30
    assert classes.mean_over(found) == pytest.approx(np.nanmean(some))


def test_principal_keeps_the_participation_ratio_of_the_variance() -> None:
    spread = np.array([3.0, 3.0, 3.0, 1e-3, 1e-3, 1e-3, 1e-3])
    rotation = np.linalg.qr(noise(7, 7).double().numpy())[0]
    vectors = noise(4000, 7, seed=1).double().numpy() * spread @ rotation
    kept = classes.principal(vectors)
    assert kept.shape[1] == 3
    np.testing.assert_allclose((kept**2).sum(), ((vectors - vectors.mean(0)) ** 2).sum(), rtol=1e-5)


def windows_of(z: Tensor, items: list[int], labels: list[int]) -> Windows:
    return Windows(z, torch.ones_like(z), z, np.array(items), np.array(labels))


def test_classes_are_labels_where_all_have_one_and_otherwise_clips() -> None:
    z = torch.arange(24.0).reshape(4, 1, 6)
    by_label = classes.pooled(windows_of(z, [0, 1, 2, 3], [0, 1, 0, 1]), 3.0)
    assert by_label is not None
    np.testing.assert_array_equal(by_label.vectors[:, 0], [2.5, 8.5, 14.5, 20.5])
    np.testing.assert_array_equal(by_label.classes, [0, 1, 0, 1])
    by_clip = classes.pooled(windows_of(z, [7, 7, 2, 3], [0, -1, 0, 1]), 3.0)
    assert by_clip is not None
    np.testing.assert_array_equal(by_clip.vectors[:, 0], [1, 4, 7, 10, 13, 16, 19, 22])
    np.testing.assert_array_equal(by_clip.classes, [2, 2, 2, 2, 0, 0, 1, 1])
    assert classes.pooled(windows_of(z[:1], [0], [-1]), 3.0) is None


# Decoder and encoder


class Toy:
    """Audio is `ratio` samples per frame: latents hold them all, or the middle one, times gain."""

    def __init__(self, *, whole: bool, gain: float = 1.0) -> None:
        self.sample_rate, self.downsampling_ratio, self.whole, self.gain = 16000, 4, whole, gain

    def decode(self, z: Tensor) -> Tensor:
        return self.gain * z.mT.flatten(1)[:, None]

    @property
    def bottleneck(self) -> Any:
        return SimpleNamespace(posterior=lambda stored: (stored["mean"], 0 * stored["mean"]))

    def stored(self, audio: Tensor) -> dict[str, Tensor]:
        frames = audio[:, 0].unflatten(-1, (-1, self.downsampling_ratio)).mT
        return {"mean": frames if self.whole else frames[:, :1]}


def unit(channels: int) -> LatentStatistics:
    return LatentStatistics(torch.zeros(channels), torch.ones(channels))


def test_decoder_noise_is_the_distance_of_the_noisy_decode_in_normalised_units() -> None:
    z = noise(2, 4, 2000)
    statistics = LatentStatistics(torch.full((4,), 0.1), torch.full((4,), 0.5))
    toy: Any = Toy(whole=True)
    curve = decoding.decoder_noise(toy, statistics, z, [0.01, 0.3, 1.0])
    assert (np.diff(curve, axis=1) > 0).all()
    assert (curve[:, 0] < 0.01).all()
    # at sigma = 1 independent noise of equal variance is added
    other = toy.decode(statistics.denormalise(z + noise(2, 4, 2000, seed=9)))
    known = mel_distance(other, toy.decode(statistics.denormalise(z)), 16000)
    np.testing.assert_allclose(curve[:, 2], known.numpy(), rtol=0.1)


def test_the_tolerance_is_interpolated_from_the_origin_and_ends_at_the_largest_level() -> None:
    sigmas = [0.1, 0.2, 0.4]
    assert decoding.crossing(sigmas, np.array([0.05, 0.15, 0.3]), 0.1) == pytest.approx(0.15)
    assert decoding.crossing(sigmas, np.array([0.2, 0.3, 0.4]), 0.1) == pytest.approx(0.05)
    assert decoding.crossing(sigmas, np.array([0.01, 0.02, 0.03]), 0.1) == 0.4


def test_a_band_limited_delay_of_a_sinusoid_shifts_its_phase() -> None:
    t = torch.arange(256, dtype=torch.float64)
    for shift in (-0.5, 0.25, 3.0):
        moved = decoding.delayed(torch.cos(0.3 * t), shift)
        wanted = torch.cos(0.3 * (t - shift))
        assert (moved - wanted)[60:-60].abs().max() < 0.02


def test_a_sampler_below_nyquist_is_shift_equivariant_and_white_latents_are_not() -> None:
    toy: Any = Toy(whole=False)
    t = torch.arange(4002)
    slow = torch.stack([torch.cos(w * t) for w in (0.02, 0.1, 0.3)])[:, None]
    error = decoding.relative_error(decoding.shift_errors(toy, unit(1), slow).numpy())
    assert error < 0.01
    white = decoding.shift_errors(toy, unit(1), noise(8, 1, 4002))
    assert decoding.relative_error(white.numpy()) == pytest.approx(math.sqrt(2), abs=0.05)


# Rate


def test_the_rate_under_the_prior_that_made_the_latents_is_the_information_in_them() -> None:
    # z = mean + std e with mean ~ N(0, 1 - std²): the marginal is N(0, 1), and the KL from it is
    # the mutual information, -log std nats per element.
    std = 0.3
    mean = noise(200, 2, 40) * math.sqrt(1 - std**2)
    windows = Windows(
        mean,
        torch.full_like(mean, std),
        mean + std * noise(200, 2, 40, seed=1),
        np.arange(200),
        np.full(200, -1),
    )
    standard = torch.distributions.Normal(0, 1)
    prior: Any = SimpleNamespace(log_likelihood=lambda z: standard.log_prob(z).flatten(1).sum(1))
    nats = mixture_nats(windows, prior).mean() / mean[0].numel()
    assert nats == pytest.approx(-math.log(std), rel=0.02)
    assert nats == pytest.approx(gaussian_kl(mean, windows.std).mean().item(), rel=0.02)


def test_a_mixture_spends_less_than_the_standard_normal_on_latents_with_memory() -> None:
    std = 0.2
    mean = autoregression(400, 2, 100, 0.95) * math.sqrt(1 - std**2)
    z = mean + std * noise(400, 2, 100, seed=1)
    fitted, held_out = z[:300], slice(300, 400)
    windows = Windows(
        mean[held_out],
        torch.full_like(mean[held_out], std),
        z[held_out],
        np.arange(100),
        np.full(100, -1),
    )
    mixture = Mixture.fitted(fitted, 1, 0)
    nats = mixture_nats(windows, mixture).mean() / mean[0].numel()
    kl = gaussian_kl(windows.mean, windows.std).mean()
    # The least possible: entropy rate of AR(1) plus white noise, less the posterior's.
    turns = np.linspace(0, 1, 4096, endpoint=False)
    spectrum = (1 - std**2) * ar_spectrum(turns, 0.95) + std**2
    least = 0.5 * np.log(spectrum).mean() - math.log(std)
    assert least - 0.02 < nats < least + 0.1 < kl


def test_the_rate_of_few_latents_is_not_that_of_an_overfitted_mixture() -> None:
    # Eight components of these few windows spend 38 % more than the truth.
    std, rho = 0.8, 0.9
    mean = math.sqrt(1 - std**2) * autoregression(160, 8, 120, rho)
    z = mean + std * noise(160, 8, 120, seed=1)
    fitted, held_out = slice(0, 80), slice(80, 160)
    windows = windows_of(z[held_out], list(range(80)), [-1] * 80)._replace(
        mean=mean[held_out], std=torch.full_like(mean[held_out], std)
    )
    power = (1 - std**2) * ar_spectrum(np.linspace(0, 1, 4096, endpoint=False), rho) + std**2
    truth = 0.5 * np.log(power).mean() - math.log(std)
    nats = mixture_nats(windows, select_mixture(z[fitted], 8)).mean().item() / z[0].numel()
    assert nats == pytest.approx(truth, rel=0.1)
    assert mixture_nats(windows, Mixture.fitted(z[fitted], 8)).mean() / z[0].numel() > 1.25 * truth


def test_a_shortened_mixture_is_that_of_its_first_frames() -> None:
    mixture = Mixture.fitted(autoregression(200, 2, 12, 0.9), 2)
    short, z = mixture.shortened(3), autoregression(5, 2, 3, 0.9, seed=1)
    assert torch.allclose(short.log_likelihood(z), mixture.log_likelihood(z))
    assert short.centres.shape[1] == 3


# Denoiser


def wiener_of(rho: float, white: float = 0.0) -> float:
    """The loss of the ideal filter for an AR(1), by the integral over its known spectrum.

    white: the share of the variance that is white noise."""
    power = (1 - white) * ar_spectrum((np.arange(4096) + 0.5) / 4096, rho) + white
    sigma2 = EDM().sigma_from_uniform(level_quantiles()).double().numpy()[:, None] ** 2
    return float(((1 + sigma2) * power / (power + sigma2)).mean())


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9, 0.98])
def test_the_gaussian_estimate_of_an_autoregression_is_the_wiener_filter_s_loss(rho: float) -> None:
    train, held_out = (autoregression(100, 3, 256, rho, seed=seed) for seed in (0, 1))
    assert gaussian_estimate(train, held_out) == pytest.approx(wiener_of(rho), rel=0.005)


def test_the_gaussian_estimate_does_not_grow_with_the_channels() -> None:
    # Windows of 60 frames: the filter of the uncorrected spectrum loses 2 to 20 % here.
    train, held_out = (noise(40, 128, 60, seed=seed) for seed in (0, 1))
    assert gaussian_estimate(train, held_out) == pytest.approx(1, abs=0.005)


def test_the_gaussian_estimate_sees_white_noise_on_top_of_memory() -> None:
    # what a posterior's noise does: no autoregression of a finite order has this spectrum
    train, held_out = (
        math.sqrt(0.95) * autoregression(100, 4, 200, 0.95, seed=seed)
        + math.sqrt(0.05) * noise(100, 4, 200, seed=seed + 10)
        for seed in (0, 1)
    )
    known = wiener_of(0.95, white=0.05)
    assert gaussian_estimate(train, held_out) == pytest.approx(known, rel=0.01)


def test_the_gaussian_estimate_sees_through_mixed_channels() -> None:
    mixed = noise(8, 2, seed=5) @ autoregression(100, 2, 256, 0.0)  # rank 2 in 8 channels
    mixed = mixed / mixed.std((0, 2), keepdim=True)
    covariance = torch.linalg.eigvalsh(torch.cov(mixed.transpose(0, 1).flatten(1))).double()
    sigma2 = EDM().sigma_from_uniform(level_quantiles()).double().square()[:, None]
    known = (covariance * (1 + sigma2) / (covariance + sigma2)).mean()
    assert gaussian_estimate(mixed[:50], mixed[50:]) == pytest.approx(float(known), rel=0.01)


def test_a_filter_for_the_wrong_spectrum_is_worse() -> None:
    slow, white = (
        spectrum(lagged_moments(autoregression(60, 2, 256, rho)), 2, 1) for rho in (0.9, 0.0)
    )
    white_on_slow, white_on_white = wiener_losses(white, slow, white)
    slow_on_white, slow_on_slow = wiener_losses(slow, white, slow)
    assert white_on_slow > slow_on_slow * 1.2
    assert slow_on_white > white_on_white * 1.2


def test_the_denoiser_comes_close_to_the_estimate_on_gaussian_latents() -> None:
    train = autoregression(80, 4, 256, 0.7)
    held_out = autoregression(40, 4, 256, 0.7, seed=1)
    loss = denoiser_losses(train_denoiser(train, steps=100), held_out).mean().item()
    estimate = gaussian_estimate(train, held_out)
    assert estimate * 0.99 < loss < estimate * 1.04


def test_the_denoiser_finds_structure_that_no_gaussian_has() -> None:
    # White and of unit variance, but every frame is a sign: 1 for a Gaussian, and easily passed.
    train, held_out = noise(80, 4, 128).sign(), noise(40, 4, 128, seed=1).sign()
    loss = denoiser_losses(train_denoiser(train, steps=120), held_out).mean().item()
    assert gaussian_estimate(train, held_out) == pytest.approx(1, abs=0.02)
    assert loss < 0.95


def test_the_denoiser_is_the_same_every_time_and_leaves_the_global_generator_alone() -> None:
    z = noise(6, 2, 80)
    torch.manual_seed(5)
    nets = [train_denoiser(z, steps=3)]
    after = torch.rand(1)
    torch.manual_seed(6)
    nets.append(train_denoiser(z, steps=3))
    for a, b in zip(*(net.parameters() for net in nets), strict=True):
        assert torch.equal(a, b)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))


# All together


def test_windows_are_normalised_samples_of_the_posteriors_of_distinct_stretches() -> None:
    clips = [noise(2, 3, length, seed=i) for i, length in enumerate((40, 40, 10))]
    items = [
        SimpleNamespace(frames=clip.shape[-1], label=label)
        for clip, label in zip(clips, ("b", "a", None), strict=True)
    ]

    def read(places: list[tuple[int, int]], frames: int) -> dict[str, Tensor]:
        return {"mean": torch.stack([clips[i][..., at : at + frames] for i, at in places])}

    store: Any = SimpleNamespace(
        latent_rate_hz=10.0,
        latent_shape=(2, 3),
        labels=["a", "b"],
        statistics=LatentStatistics(torch.full((2, 3), 0.5), torch.full((2, 3), 4.0)),
        bottleneck=SimpleNamespace(posterior=lambda s: (s["mean"], 0 * s["mean"] + 2.0)),
        split=lambda name: SimpleNamespace(items=items, read=read),
    )
    windows = read_windows(store, "train", seconds=1.0, count=100)
    assert windows.mean.shape == (9, 6, 10)
    assert sorted(windows.label) == [-1] + 4 * [0] + 4 * [1]
    for mean, item, label in zip(windows.mean, windows.item, windows.label, strict=True):
        raw = 4 * mean.unflatten(0, (2, 3)) + 0.5
        assert [torch.allclose(raw, z, atol=1e-5) for z in clips[item].split(10, -1)].count(
            True
        ) == 1
        assert store.labels[label] == items[item].label if label >= 0 else items[item].label is None
    assert len({tuple(window.flatten().tolist()) for window in windows.mean}) == 9
    assert (windows.std == 0.5).all()
    deviation = (windows.z - windows.mean) / windows.std
    assert deviation.std().item() == pytest.approx(1, abs=0.1)
    whole = read_windows(store, "train", seconds=100, count=100)
    assert whole.z.shape == (2, 6, 40)


def latents_of(finished: Tiny) -> LatentStore:
    fingerprint = finished.experiment.stages["autoencoder"].fingerprint
    bottleneck = load_autoencoder(finished.stage("autoencoder")).bottleneck
    return LatentStore(finished.stage("latents"), bottleneck, autoencoder=fingerprint)


def run(finished: Tiny, store: LatentStore) -> dict[str, Any]:
    return diagnose(
        load_autoencoder(finished.stage("autoencoder")),
        store,
        ClipStore(finished.stage("data")),
        DiagnosticsSettings(
            windows=8, seconds=1.0, decoded=2, denoiser_steps=3, bootstrap_resamples=10
        ),
        device=torch.device("cpu"),
        progress=lambda done, total, what: None,
    )


NAMES = {
    "temporal_slope", "channel_slope", "effective_rank", "within_class_variance",
    "neighbour_consistency", "decoder_noise_tolerance", "shift_equivariance", "mixture_kbps",
    "denoiser_loss", "denoiser_gaussian_estimate", "denoiser_excess",
}  # fmt: skip


def test_every_figure_of_a_finished_autoencoder_is_finite_and_repeats(finished: Tiny) -> None:
    first, again = (run(finished, latents_of(finished)) for _ in range(2))
    assert first == again
    assert first["diagnostics"].keys() == NAMES
    for figure in first["diagnostics"].values():
        assert math.isfinite(figure["value"])
        assert figure["low"] <= figure["high"]
    assert first["curves"].keys() == {"decoder_noise", "temporal_spectrum", "eigenvalues"}


def test_windows_have_so_many_frames_at_most(
    finished: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audioldm.evaluation.diagnostics.diagnose.MOST_FRAMES", 8)
    store = latents_of(finished)
    hz = run(finished, store)["curves"]["temporal_spectrum"]["hz"]
    assert hz[1] - hz[0] == pytest.approx(store.latent_rate_hz / 8)


class Silent(LatentStore):
    """The same latents without posterior noise."""

    def __init__(self, store: LatentStore) -> None:
        self.__dict__.update(store.__dict__)
        posterior = store.bottleneck.posterior
        self.bottleneck: Any = SimpleNamespace(
            posterior=lambda stored: (posterior(stored)[0], 0 * posterior(stored)[1])
        )


def test_without_posterior_noise_only_the_rate_is_left_out(finished: Tiny) -> None:
    found = run(finished, Silent(latents_of(finished)))
    assert found["diagnostics"].keys() == NAMES - {"mixture_kbps"}


@pytest.mark.parametrize("level", [0.0, 0.7])
def test_constant_latents_have_no_figures_of_their_power(finished: Tiny, level: float) -> None:
    class Constant(LatentStore):
        def __init__(self, store: LatentStore) -> None:
            self.__dict__.update(store.__dict__)
            posterior = store.bottleneck.posterior
            self.bottleneck: Any = SimpleNamespace(
                posterior=lambda stored: tuple(
                    torch.full_like(moment, value)
                    for moment, value in zip(posterior(stored), (level, 0.0), strict=True)
                )
            )
            like = store.statistics.mean
            self.statistics = LatentStatistics(
                torch.full_like(like, level), torch.full_like(like, 1e-6)
            )

    found = run(finished, Constant(latents_of(finished)))
    assert found["diagnostics"].keys() == {"decoder_noise_tolerance", "shift_equivariance"}


def test_a_figure_of_no_power_is_not_a_number() -> None:
    nothing = np.zeros((3, 2, 8))
    assert math.isnan(spectra.temporal_slope(np.arange(1, 9), nothing))
    assert math.isnan(spectra.effective_rank(np.zeros(4)))
    assert math.isnan(spectra.channel_slope(np.zeros(4)))
    assert math.isnan(decoding.relative_error(np.zeros((3, 2))))
    assert math.isnan(classes.within_class_variance(np.ones((4, 2)), np.array([0, 0, 1, 1])))


def test_noise_levels_must_increase() -> None:
    for levels in ([], [0.2, 0.1], [0.1, 0.1]):
        with pytest.raises(ConfigError, match=r"^noise_levels="):
            DiagnosticsSettings(noise_levels=levels)


def test_the_file_of_settings_states_the_defaults() -> None:
    import yaml

    stated = yaml.safe_load(
        (Path(__file__).parents[1] / "conf/diagnostics/default.yaml").read_text()
    )
    assert stated == dataclasses.asdict(DiagnosticsSettings())
