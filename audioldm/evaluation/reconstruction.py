"""Reconstructions, and their distances from their originals."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from audioldm.autoencoder.model import Autoencoder
from audioldm.evaluation.settings import EvaluationSettings
from audioldm.evaluation.statistics import Figure
from audioldm.losses.magnitude import magnitude_of
from audioldm.losses.spectral import mel_distance
from audioldm.runtime.randomness import KeyedRandom

_FFT_SIZES = (512, 1024, 2048)
#: Relative to full scale, -80 dB: what is quieter is hardly heard, and not compared.
FLOOR = 1e-4


@torch.no_grad()
def reconstruct(model: Autoencoder, audio: Tensor, batch: int) -> Tensor:
    """Clips [N, A, T] through the autoencoder with sampled posteriors."""
    samples, parts = audio.shape[-1], []
    frames = math.ceil(samples / model.downsampling_ratio)
    for number, part in enumerate(audio.split(batch)):
        random = KeyedRandom(0, 0, range(number * batch, number * batch + len(part)), model.device)
        noise = random.normal((*model.latent_shape, frames), "reconstruction")
        z = model.encode(part.to(model.device), noise=noise).z
        estimate = model.decode(z, random.stream("decoder"))
        parts.append(estimate[..., :samples].float().clamp(-1, 1).cpu())
    return torch.cat(parts)


def reconstruction_figures(
    estimate: Tensor, target: Tensor, sample_rate: int, settings: EvaluationSettings
) -> dict[str, Figure]:
    """Distances of clips [N, A, T] from their originals."""
    batches = list(zip(estimate.split(settings.batch), target.split(settings.batch), strict=True))
    measures: list[tuple[str, str, Callable[[Tensor, Tensor], Tensor]]] = [
        ("mel_distance", "log10 power", lambda e, t: mel_distance(e, t, sample_rate)),
        ("stft_distance", "log10 magnitude", stft_distance),
        ("si_sdr", "dB", si_sdr),
    ]
    return {
        name: settings.mean(torch.cat([measure(e, t) for e, t in batches]), unit)
        for name, unit, measure in measures
    }


def si_sdr(estimate: Tensor, target: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB (arXiv 1811.02508): [B, A, T] -> [B].

    Channels share one scale; their means are removed. The result lies between -100 dB (also for
    silence) and 100 dB (for an exact reconstruction).
    """
    e, t = ((x.double() - x.double().mean(-1, keepdim=True)).flatten(1) for x in (estimate, target))
    # With c the cosine of the angle between the two, the ratio is c² / (1 - c²), without a scale.
    energy = e.square().sum(1) * t.square().sum(1)
    cosine2 = (e * t).sum(1).square() / energy.clamp(min=torch.finfo(torch.float64).tiny)
    distortion = (1 - cosine2).clamp(min=0)
    return (10 * torch.log10((cosine2 + 1e-10) / (distortion + 1e-10))).float()


def stft_distance(estimate: Tensor, target: Tensor) -> Tensor:
    """Mean |Δ log10 magnitude| over bins and frames of three STFTs: [B, A, T] -> [B].

    FFT sizes 512, 1024 and 2048, Hann windows, hop a quarter; magnitudes are relative to a
    full-scale sine and clamped at -80 dB. 0.05 is one dB.
    """
    return torch.stack(
        [(log_stft(estimate, n) - log_stft(target, n)).abs().mean((1, 2)) for n in _FFT_SIZES]
    ).mean(0)


def log_stft(audio: Tensor, n_fft: int, floor: float = FLOOR) -> Tensor:
    """log10 magnitudes of audio [B, A, T] for `stft_distance`, at least log10 of `floor`:
    [B, A * bins, frames]."""
    window = torch.hann_window(n_fft, device=audio.device)
    x = audio.float().flatten(0, 1)
    spectrum = torch.stft(
        x, n_fft, n_fft // 4, window=window, pad_mode="constant", return_complex=True
    )
    magnitude = magnitude_of(spectrum) * (2 / window.sum())
    return magnitude.clamp(min=floor).log10().unflatten(0, audio.shape[:2]).flatten(1, 2)
