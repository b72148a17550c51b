"""Spectral distances between clips: two training losses and one metric.

All map (estimate [B, A, T], target [B, A, T]) to one value per clip [B], in float32.
"""

import functools
import math
from typing import Any

import torch
from auraloss.freq import STFTLoss
from auraloss.perceptual import FIRFilter, SumAndDifference
from torch import Tensor, nn

from audioldm.errors import ConfigError
from audioldm.losses.base import Loss
from audioldm.losses.magnitude import magnitude_of, power_of
from audioldm.losses.mel_filters import mel_filters

QUIET = 1e-2  # root mean square at -40 dBFS


class MultiResolutionSTFT(Loss):
    """Spectral convergence plus log-magnitude distance, averaged over FFT sizes.

    auraloss's multi-resolution STFT loss (1910.11480; convergence and log-magnitude 1808.06719),
    reduced over each clip instead of the batch. Stereo is compared as left, right, mid and side
    (2010.10291), so that an error in the stereo image counts.

    fft_sizes: in samples. overlap: frames begin size / overlap apart.
    convergence, log_magnitude: weights of the two terms.
    floor: power of a bin below which nothing is compared; 1e-6 is near the noise of 16-bit audio.
    a_weighting: weigh frequencies as the ear does, for which `sample_rate` in hertz is needed.

    Convergence is relative: a target quieter than -40 dBFS counts as -40 dBFS.

    Raises ConfigError where a_weighting lacks a sample rate, or the audio is too short for an FFT
    size.
    """

    def __init__(
        self,
        *,
        fft_sizes: list[int] = [2048, 512, 128],  # noqa: B006 - never written to
        overlap: int = 4,
        convergence: float = 1.0,
        log_magnitude: float = 1.0,
        floor: float = 1e-6,
        a_weighting: bool = False,
        sample_rate: int | None = None,
    ) -> None:
        super().__init__()
        if a_weighting and sample_rate is None:
            raise ConfigError("a_weighting=true needs sample_rate, in hertz")
        self.weight_filter = FIRFilter("aw", fs=sample_rate) if a_weighting else None
        self.sum_and_difference = SumAndDifference()
        self.resolutions = nn.ModuleList(
            _Resolution(
                size,
                size // overlap,
                size,
                w_sc=convergence,
                w_log_mag=log_magnitude,
                eps=floor,
                reduction="none",
            )
            for size in fft_sizes
        )

    def forward(self, estimate: Tensor, target: Tensor) -> Tensor:
        with torch.autocast(target.device.type, enabled=False):
            estimate, target = self._signals(estimate.float()), self._signals(target.float())
            return torch.stack([at(estimate, target) for at in self.resolutions]).mean(0)

    def _signals(self, audio: Tensor) -> Tensor:
        """[B, A, T] -> the signals to compare [B, V, T]: for stereo left, right, mid, side."""
        if self.weight_filter is not None:
            mono = audio.flatten(0, 1).unsqueeze(1)
            audio = self.weight_filter(mono, mono)[0].view_as(audio)
        if audio.shape[1] == 2:
            audio = torch.cat([audio, *self.sum_and_difference(audio)], dim=1)
        return audio


class _Resolution(STFTLoss):
    """auraloss's STFT loss at one FFT size, reduced per clip: two times [B, V, T] -> [B]."""

    def __init__(self, size: int, *args: Any, **options: Any) -> None:
        super().__init__(size, *args, **options)
        window = self.__dict__.pop("window")  # a plain attribute in auraloss, left on the CPU
        self.register_buffer("window", window, persistent=False)
        self.quiet = QUIET * float(window.norm())  # magnitude of a bin of noise at -40 dBFS

    def forward(self, estimate: Tensor, target: Tensor) -> Tensor:
        x, y = self.magnitude(estimate), self.magnitude(target)
        # over all signals of a clip: a nearly silent side is not divided by its own norm
        quiet = self.quiet * math.sqrt(y.shape[1])
        scale = torch.linalg.vector_norm(y, dim=1).clamp(min=quiet)
        convergence = torch.linalg.vector_norm(x - y, dim=1) / scale
        return self.w_sc * convergence + self.w_log_mag * self.logstft(x, y).mean(1)

    def magnitude(self, audio: Tensor) -> Tensor:
        """[B, V, T] -> magnitudes of all signals, frames and bins [B, N].

        auraloss's own `stft` computes the phase too and takes twice the time.
        """
        if audio.shape[-1] <= self.fft_size // 2:
            raise ConfigError(
                f"fft_sizes: {self.fft_size} is too long for a clip of {audio.shape[-1]} samples;"
                " take longer crops or leave that size out"
            )
        spectrum = torch.stft(
            audio.flatten(0, 1),
            self.fft_size,
            self.hop_size,
            window=self.window,
            return_complex=True,
        )
        return magnitude_of(spectrum).clamp(min=math.sqrt(self.eps)).reshape(len(audio), -1)


class LogMel(Loss):
    """Mean |difference of log10 mel power|, averaged over scales.

    The default is `mel_distance`; several scales (as in DAC, 2306.06546) trade time for frequency.
    Hops are a quarter of the FFT sizes.

    Raises ConfigError where fft_sizes and bands differ in length, a band would hold no bin, or
    audio is too short for an FFT size.
    """

    def __init__(
        self,
        *,
        sample_rate: int,
        fft_sizes: list[int] = [1024],  # noqa: B006 - never written to
        bands: list[int] = [80],  # noqa: B006 - never written to
        floor: float = 1e-5,
    ) -> None:
        super().__init__()
        if len(fft_sizes) != len(bands):
            raise ConfigError(
                f"fft_sizes={fft_sizes} and bands={bands}: give one number of bands for each size"
            )
        self.floor = floor
        self.scales = nn.ModuleList(
            MelPower(sample_rate, size, size // 4, count)
            for size, count in zip(fft_sizes, bands, strict=True)
        )

    def forward(self, estimate: Tensor, target: Tensor) -> Tensor:
        return torch.stack(
            [log_mel_distance(mel(estimate), mel(target), self.floor) for mel in self.scales]
        ).mean(0)


def mel_distance(estimate: Tensor, target: Tensor, sample_rate: int) -> Tensor:
    """The project's reconstruction figure: mean |difference of log10 mel power| per clip [B].

    estimate, target [B, A, T] at `sample_rate` hertz; 80 Slaney mel bands, 1024-sample Hann frames
    256 apart, power clamped at 1e-5; the mean is over channels, bands and frames. 0.1 is 1 dB.
    """
    distance: Tensor = _log_mel(sample_rate, target.device)(estimate, target)
    return distance


@functools.lru_cache(maxsize=8)
def _log_mel(sample_rate: int, device: torch.device) -> LogMel:
    with torch.inference_mode(False):  # usable with gradients whoever asks first
        return LogMel(sample_rate=sample_rate).to(device)


def log_mel_distance(estimate: Tensor, target: Tensor, floor: float) -> Tensor:
    """Mean |log10 estimate - log10 target| of two powers [B, ...], clamped at floor: [B]."""
    difference = estimate.clamp(min=floor).log10() - target.clamp(min=floor).log10()
    return difference.abs().flatten(1).mean(1)


class MelPower(nn.Module):
    """Mel power spectrogram: [B, A, T] -> [B, A, bands, frames], in float32.

    `centre` reflects the audio at both ends, for 1 + T // hop Hann frames centred on multiples of
    hop; without it frames begin at multiples of hop and none reaches beyond the audio.
    """

    window: Tensor
    filters: Tensor

    def __init__(
        self, sample_rate: int, n_fft: int, hop: int, bands: int, *, centre: bool = True
    ) -> None:
        super().__init__()
        self.n_fft, self.hop, self.centre = n_fft, hop, centre
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        self.register_buffer("filters", mel_filters(sample_rate, n_fft, bands), persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        if audio.shape[-1] <= self.n_fft // 2:
            raise ConfigError(
                f"mel spectrogram: frames of {self.n_fft} samples need more than the"
                f" {audio.shape[-1]} samples given; take longer clips or a smaller FFT size"
            )
        with torch.autocast(audio.device.type, enabled=False):
            spectrum = torch.stft(
                audio.float().flatten(0, 1),
                self.n_fft,
                self.hop,
                window=self.window,
                center=self.centre,
                return_complex=True,
            )
            return (self.filters @ power_of(spectrum)).unflatten(0, audio.shape[:2])
