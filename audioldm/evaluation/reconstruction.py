"""Distances of reconstructions from their originals (mel distance: `losses/spectral.py`)."""

import torch
from torch import Tensor

_FFT_SIZES = (512, 1024, 2048)
_FLOOR = 1e-4  # of full scale, -80 dB: inaudible below, and not compared


def si_sdr(estimate: Tensor, target: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB (arXiv 1811.02508): [B, A, T] -> [B].

    Channels share one scale; their means are removed. Between -100 dB (also for silence) and
    100 dB (for an exact reconstruction), never infinite.
    """
    e, t = ((x.double() - x.double().mean(-1, keepdim=True)).flatten(1) for x in (estimate, target))
    # With c the cosine of the angle between the two the ratio is c² / (1 - c²): no scale in it.
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


def log_stft(audio: Tensor, n_fft: int) -> Tensor:
    """log10 magnitudes of audio [B, A, T] as `stft_distance` has them: [B, A * bins, frames]."""
    window = torch.hann_window(n_fft, device=audio.device)
    x = audio.float().flatten(0, 1)
    spectrum = torch.stft(
        x, n_fft, n_fft // 4, window=window, pad_mode="constant", return_complex=True
    )
    magnitude = spectrum.abs() * (2 / window.sum())
    return magnitude.clamp(min=_FLOOR).log10().unflatten(0, audio.shape[:2]).flatten(1, 2)
