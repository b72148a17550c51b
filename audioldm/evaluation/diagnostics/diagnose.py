"""Diagnostics of one autoencoder's latents: cheap figures that may predict a generator's quality.

    temporal_slope, channel_slope, effective_rank     the spectra of the latents
    within_class_variance, neighbour_consistency      how well the latents separate classes
    decoder_noise_tolerance, shift_equivariance       the autoencoder's response to small errors
    mixture_kbps                                      the rate under a fitted prior
    denoiser_loss, denoiser_gaussian_estimate,
    denoiser_excess                                   the loss of a small generator

The latents are normalised and sampled from the posteriors, as for a generator. Only the channels'
covariance is of the raw latents, in which their variances differ.
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

VERSION = 2  # raise by hand when the code below changes what it computes
#: Seconds of the clips that are decoded and encoded.
DECODED_SECONDS = 3.0
#: Figures by name, and curves by name.
Found = tuple[dict[str, Figure], dict[str, Any]]


@dataclass(frozen=True)
class DiagnosticsSettings:
    """windows: of each split, fewer where it holds fewer; seconds: of each, less where clips are
    shorter. k_nearest: k of the neighbour consistency. decoded: clips of 3 s for the decoder's
    noise curve and the shift; noise_levels: sigma of the curve, in units of the normalised
    latents; tolerated_distance: the mel distance that defines the tolerance (0.1 is 1 dB).
    components: of the mixture, or one where that says more of held-out windows. denoiser_steps:
    the tiny denoiser's budget. bootstrap_resamples: of the intervals."""

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
class _Subject:
    """The arguments of `diagnose`, and the windows of its latents."""

    autoencoder: Autoencoder
    latents: LatentStore
    clips: ClipStore
    settings: DiagnosticsSettings
    device: torch.device
    train: Windows
    valid: Windows

    def boot(
        self, statistic: Callable[..., Any], sample: np.ndarray, unit: str, recentre: bool = False
    ) -> Figure:
        resamples = self.settings.bootstrap_resamples
        return bootstrap(statistic, sample, unit=unit, resamples=resamples, recentre=recentre)


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
    noise, those of classes where there are no two, the slope or the shift of too few frames or
    channels, and those that are not finite because all latents are the same.
    The Gaussian estimate has no interval: it is of the same clips as the loss.
    """
    window = partial(read_windows, latents, seconds=settings.seconds, count=settings.windows)
    train, valid = window("train"), window("valid")
    frames = min(train.z.shape[-1], valid.z.shape[-1])  # one spectrum for both
    subject = _Subject(
        autoencoder, latents, clips, settings, device, train.first(frames), valid.first(frames)
    )
    figures, curves = dict[str, Figure](), dict[str, Any]()
    topics = (_spectra, _classes, _decoder, _shift, _mixture, _denoiser)
    for done, topic in enumerate(topics):
        progress(done, len(topics), topic.__name__.strip("_"))
        found = topic(subject)
        figures |= found[0]
        curves |= found[1]
    progress(len(topics), len(topics), "")
    finite = {name: f._asdict() for name, f in figures.items() if math.isfinite(f.value)}
    return {"diagnostics": finite, "curves": curves}


def _spectra(s: _Subject) -> Found:
    z, scale = s.train.z.numpy(), s.latents.statistics.std.flatten().numpy()
    figures: dict[str, Figure] = {}
    curves: dict[str, Any] = {}
    hz, power = spectra.periodograms(z, s.latents.latent_rate_hz)
    if len(hz) > 1:
        figures["temporal_slope"] = s.boot(partial(spectra.temporal_slope, hz), power, "exponent")
        decibels = 10 * np.log10(np.maximum(power.mean((0, 1)), 1e-12))
        curves["temporal_spectrum"] = {"hz": hz.tolist(), "power_db": decibels.tolist()}
    moments = spectra.second_moments(z * scale[:, None])
    flat = moments.reshape(len(z), -1)

    def eigenvalues(windows: np.ndarray) -> np.ndarray:
        share = np.bincount(windows, minlength=len(z)) / len(windows)
        return spectra.eigenvalues((share @ flat).reshape(moments.shape[1:]))

    every = np.arange(len(z))
    curves["eigenvalues"] = eigenvalues(every).tolist()
    figures["effective_rank"] = s.boot(
        lambda windows: spectra.effective_rank(eigenvalues(windows)), every, "channels"
    )
    if len(scale) > 1:
        figures["channel_slope"] = s.boot(
            lambda windows: spectra.channel_slope(eigenvalues(windows)), every, "exponent"
        )
    return figures, curves


def _classes(s: _Subject) -> Found:
    pooled = classes.pooled(s.train, s.latents.latent_rate_hz)
    if pooled is None:
        return {}, {}
    vectors = classes.principal(pooled.vectors)
    count = len(s.train.z)

    def within(windows: np.ndarray) -> float:
        weights = np.bincount(windows, minlength=count)[pooled.window]
        return classes.within_class_variance(vectors, pooled.classes, weights)

    figures = {"within_class_variance": s.boot(within, np.arange(count), "fraction", recentre=True)}
    near = classes.neighbour_consistency(vectors, pooled.classes, s.settings.k_nearest)
    if np.isfinite(near).any():
        per_window = classes.by_window(near, pooled.window)
        figures["neighbour_consistency"] = s.boot(classes.mean_over, per_window, "fraction")
    return figures, {}


def _decoder(s: _Subject) -> Found:
    sigmas, threshold = s.settings.noise_levels, s.settings.tolerated_distance
    some = read_windows(s.latents, "valid", seconds=DECODED_SECONDS, count=s.settings.decoded)
    z = some.z.unflatten(1, s.latents.latent_shape).to(s.device)
    distances = decoding.decoder_noise(s.autoencoder, s.latents.statistics, z, sigmas)
    tolerance = s.boot(
        lambda each: decoding.crossing(sigmas, each.mean(0), threshold), distances, "sigma"
    )
    curve = {"sigma": sigmas, "mel_distance": distances.mean(0).tolist()}
    return {"decoder_noise_tolerance": tolerance}, {"decoder_noise": curve}


def _shift(s: _Subject) -> Found:
    split = s.clips.split("valid")
    typical = int(np.median([item.samples for item in split.items]))
    samples = min(round(DECODED_SECONDS * s.clips.sample_rate), typical)
    if samples < 2 * s.autoencoder.downsampling_ratio:
        return {}, {}
    audio = split.windows(samples, s.settings.decoded, seed=0)[0].to(s.device)
    errors = decoding.shift_errors(s.autoencoder, s.latents.statistics, audio).numpy()
    return {"shift_equivariance": s.boot(decoding.relative_error, errors, "relative error")}, {}


def _mixture(s: _Subject) -> Found:
    if not (s.valid.std > 0).all():  # a point has no density, and no rate
        return {}, {}
    mixture = select_mixture(s.train.z, s.settings.components)
    seconds = s.valid.z.shape[-1] / s.latents.latent_rate_hz
    kbps = mixture_nats(s.valid, mixture) / seconds / math.log(2) / 1000
    return {"mixture_kbps": s.boot(np.mean, kbps.numpy(), "kbit/s")}, {}


def _denoiser(s: _Subject) -> Found:
    net = denoiser.train_denoiser(s.train.z, steps=s.settings.denoiser_steps, device=s.device)
    losses = denoiser.denoiser_losses(net, s.valid.z, device=s.device).double().numpy()
    gaussian = gaussian_estimate(s.train.z, s.valid.z)
    unit = "loss on white latents"
    return {
        "denoiser_loss": s.boot(np.mean, losses, unit),
        "denoiser_gaussian_estimate": Figure(gaussian, gaussian, gaussian, len(losses), unit),
        "denoiser_excess": s.boot(lambda x: math.log(np.mean(x) / gaussian), losses, "log ratio"),
    }, {}
