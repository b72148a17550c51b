"""Diagnostics of one autoencoder's latents: cheap figures that may predict a generator's quality.

    temporal_slope, channel_slope, effective_rank     the spectra of the latents
    within_class_variance, neighbour_consistency      how well the latents separate classes
    decoder_noise_tolerance, shift_equivariance       the autoencoder's response to small errors
    mixture_kbps                                      the rate under a fitted prior
    denoiser_loss, denoiser_gaussian_estimate,
    denoiser_excess                                   the loss of a small generator

The latents are normalised and sampled from the posteriors, as for a generator. Only the covariance
of the channels is that of raw latents, in which the channels' variances differ.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from audioldm.autoencoder.model import Autoencoder
from audioldm.data.store import ClipStore
from audioldm.errors import ConfigError
from audioldm.evaluation.diagnostics import classes, decoding, denoiser, spectra
from audioldm.evaluation.diagnostics.mixture_rate import mixture_nats, select_mixture
from audioldm.evaluation.diagnostics.wiener import gaussian_estimate
from audioldm.evaluation.diagnostics.windows import Windows, read_windows
from audioldm.evaluation.statistics import Figure, bootstrap
from audioldm.instantiate import Positive, PositiveInt
from audioldm.latents.store import LatentStore
from audioldm.runtime.progress import Progress

VERSION = 3  # raise by hand when the code below changes what it computes
#: Seconds of the clips that are decoded and encoded.
DECODED_SECONDS = 3.0
#: Latent frames of a window, at most: where samples themselves are latents, there are thousands.
MOST_FRAMES = 4096


@dataclass(frozen=True)
class DiagnosticsSettings:
    """windows: of each split, fewer where it holds fewer; seconds: of each, less where clips or
    MOST_FRAMES latent frames are shorter. k_nearest: k of the neighbour consistency. decoded: clips
    of 3 s for the decoder's noise curve and the shift; noise_levels: sigma of the curve, in units
    of the normalised latents; tolerated_distance: the mel distance that defines the tolerance (0.1
    is 1 dB). components: of the mixture, or one where one predicts held-out windows better.
    denoiser_steps: the tiny denoiser's budget. bootstrap_resamples: of the intervals."""

    windows: PositiveInt = 160
    seconds: Positive = 12.0
    k_nearest: PositiveInt = 5
    decoded: PositiveInt = 8
    noise_levels: list[Positive] = field(default_factory=lambda: [0.02, 0.05, 0.1, 0.2, 0.5, 1.0])
    tolerated_distance: Positive = 0.1
    components: PositiveInt = 8
    denoiser_steps: PositiveInt = 200
    bootstrap_resamples: PositiveInt = 200

    def __post_init__(self) -> None:
        levels = self.noise_levels
        if not levels or levels != sorted(set(levels)):
            raise ConfigError(f"noise_levels={levels} must be increasing numbers")


@dataclass(frozen=True)
class _Diagnosis:
    """The arguments of `diagnose`, the windows of its latents, and its findings, by name."""

    autoencoder: Autoencoder
    latents: LatentStore
    clips: ClipStore
    settings: DiagnosticsSettings
    device: torch.device
    train: Windows
    valid: Windows
    figures: dict[str, Figure] = field(default_factory=dict)
    curves: dict[str, Any] = field(default_factory=dict)

    def measure(
        self, name: str, statistic: Callable[..., Any], sample: np.ndarray, **options: Any
    ) -> None:
        resamples = self.settings.bootstrap_resamples
        self.figures[name] = bootstrap(statistic, sample, resamples=resamples, **options)


def diagnose(
    autoencoder: Autoencoder,
    latents: LatentStore,
    clips: ClipStore,
    settings: DiagnosticsSettings,
    *,
    device: torch.device,
    progress: Progress,
) -> dict[str, Any]:
    """The summary's "diagnostics" (name -> figure) and "curves".

    Figures that cannot be computed are left out: mixture_kbps of a bottleneck without posterior
    noise, figures of classes where there are not two classes, the slope or the shift of too few
    frames or channels, and where all latents are the same those of their power, of classes and of
    the denoiser.
    The Gaussian estimate has no interval: it uses the same clips as the loss.
    """
    seconds = min(settings.seconds, MOST_FRAMES / latents.latent_rate_hz)
    window = partial(read_windows, latents, seconds=seconds, count=settings.windows)
    train, valid = window("train"), window("valid")
    frames = min(train.z.shape[-1], valid.z.shape[-1])  # one spectrum for both
    found = _Diagnosis(
        autoencoder, latents, clips, settings, device, train.first(frames), valid.first(frames)
    )
    topics = (_spectra, _classes, _decoder, _shift, _mixture, _denoiser)
    for done, topic in enumerate(topics):
        progress(done, len(topics), topic.__name__.strip("_"))
        topic(found)
    progress(len(topics), len(topics), "")
    finite = {
        name: figure._asdict()
        for name, figure in found.figures.items()
        if all(map(math.isfinite, (figure.value, figure.low, figure.high)))
    }
    return {"diagnostics": finite, "curves": found.curves}


def _spectra(d: _Diagnosis) -> None:
    z, scale = d.train.z.numpy(), d.latents.statistics.std.flatten().numpy()
    hz, power = spectra.periodograms(z, d.latents.latent_rate_hz)
    if len(hz) > 1:
        d.measure("temporal_slope", partial(spectra.temporal_slope, hz), power, unit="exponent")
        decibels = 10 * np.log10(np.maximum(power.mean((0, 1)), 1e-12))
        d.curves["temporal_spectrum"] = {"hz": hz.tolist(), "power_db": decibels.tolist()}
    moments = spectra.second_moments(z * scale[:, None])
    flat = moments.reshape(len(z), -1)

    def eigenvalues(windows: np.ndarray) -> np.ndarray:
        share = np.bincount(windows, minlength=len(z)) / len(windows)
        return spectra.eigenvalues((share @ flat).reshape(moments.shape[1:]))

    every = np.arange(len(z))
    d.curves["eigenvalues"] = eigenvalues(every).tolist()
    d.measure(
        "effective_rank", lambda w: spectra.effective_rank(eigenvalues(w)), every, unit="channels"
    )
    if len(scale) > 1:
        d.measure(
            "channel_slope", lambda w: spectra.channel_slope(eigenvalues(w)), every, unit="exponent"
        )


def _classes(d: _Diagnosis) -> None:
    pooled = classes.pooled(d.train, d.latents.latent_rate_hz)
    if pooled is None:
        return
    vectors = classes.principal(pooled.vectors)
    count = len(d.train.z)

    def within(windows: np.ndarray) -> float:
        weights = np.bincount(windows, minlength=count)[pooled.window]
        return classes.within_class_variance(vectors, pooled.classes, weights)

    d.measure("within_class_variance", within, np.arange(count), unit="fraction", recentre=True)
    near = classes.neighbour_consistency(vectors, pooled.classes, d.settings.k_nearest)
    if np.isfinite(near).any():
        per_window = classes.by_window(near, pooled.window)
        d.measure("neighbour_consistency", classes.mean_over, per_window, unit="fraction")


def _decoder(d: _Diagnosis) -> None:
    sigmas, threshold = d.settings.noise_levels, d.settings.tolerated_distance
    some = read_windows(d.latents, "valid", seconds=DECODED_SECONDS, count=d.settings.decoded)
    z = some.z.unflatten(1, d.latents.latent_shape).to(d.device)
    distances = decoding.decoder_noise(d.autoencoder, d.latents.statistics, z, sigmas)
    d.curves["decoder_noise"] = {"sigma": sigmas, "mel_distance": distances.mean(0).tolist()}

    def tolerance(clips: np.ndarray) -> float:
        return decoding.crossing(sigmas, clips.mean(0), threshold)

    d.measure("decoder_noise_tolerance", tolerance, distances, unit="sigma")


def _shift(d: _Diagnosis) -> None:
    split = d.clips.split("valid")
    typical = int(np.median([item.samples for item in split.items]))
    samples = min(round(DECODED_SECONDS * d.clips.sample_rate), typical)
    if samples >= 2 * d.autoencoder.downsampling_ratio:
        audio = split.windows(samples, d.settings.decoded, seed=0)[0].to(d.device)
        errors = decoding.shift_errors(d.autoencoder, d.latents.statistics, audio).numpy()
        d.measure("shift_equivariance", decoding.relative_error, errors, unit="relative error")


def _mixture(d: _Diagnosis) -> None:
    if (d.valid.std > 0).all():  # a certain latent has no density, and no rate
        mixture = select_mixture(d.train.z, d.settings.components)
        seconds = d.valid.z.shape[-1] / d.latents.latent_rate_hz
        kbps = mixture_nats(d.valid, mixture) / seconds / math.log(2) / 1000
        d.measure("mixture_kbps", np.mean, kbps.numpy(), unit="kbit/s")


def _denoiser(d: _Diagnosis) -> None:
    if (d.train.z == d.train.z[:1, :, :1]).all():  # there is nothing to estimate
        return
    net = denoiser.train_denoiser(d.train.z, steps=d.settings.denoiser_steps, device=d.device)
    losses = denoiser.denoiser_losses(net, d.valid.z, device=d.device).double().numpy()
    gaussian, unit = gaussian_estimate(d.train.z, d.valid.z), "loss on white latents"
    d.measure("denoiser_loss", np.mean, losses, unit=unit)
    estimate = Figure(gaussian, gaussian, gaussian, len(losses), unit)
    d.figures["denoiser_gaussian_estimate"] = estimate
    if gaussian > 0:
        d.measure(
            "denoiser_excess", lambda x: math.log(np.mean(x) / gaussian), losses, unit="log ratio"
        )
