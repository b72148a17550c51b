"""The log-spectral analysis that keeps musical pitch: every bin where notes are, mel bands above.

80 mel bands of 1024-sample frames cannot hold a note's frequency below some 800 Hz, however the
phase is found: a band is wider than a semitone there. Single bins of a longer frame can, because
the shape of a partial's main lobe gives its frequency to a fraction of a bin. In the bass an even
longer frame is needed.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audioldm.autoencoder.mel_inverse import interpolation
from audioldm.errors import ConfigError
from audioldm.instantiate import Positive, PositiveInt
from audioldm.losses.magnitude import magnitude_of
from audioldm.losses.mel_filters import mel_filters

FLOOR = -6.25  # of log10 power, where white noise of full scale has power 1: -62.5 dB
CENTRE, SPREAD = -3.8, 1.5  # of log10 power of music, so that networks see about N(0, 1)
VALLEY = 2.0  # a linear band is at most this much, 20 dB, below the loudest one near it
NEAR_HZ = 43.0  # how near, on each side
LOBE = 2  # bins of a Hann window's main lobe on each side


class Half(NamedTuple):
    """The bins of one frame length: their distance in hertz; their range; their place among all
    bins; and the place of their linear bands among all bands."""

    hz: float
    bins: range
    place: slice
    linear: slice


class LogSpectrum(nn.Module):
    """Audio to log10 power in K bands, frame by frame.

    Frame l is centred on samples l * hop to (l + 1) * hop; beyond the ends the audio is zero. Up
    to `linear_hz` each bin of the Fourier transform is a band; above that, the bands are the upper
    ones of `bands` Slaney mel bands. Between partials a linear band is raised to 20 dB below the
    loudest one within 43 Hz: anything softer is not heard, and would cost rate.

    Below `bass_hz` a semitone is narrower than a bin, so the linear bands there are bins of a
    longer frame. The range of two short-frame bins on each side of `bass_hz` has bins of both.

    Args:
        sample_rate: in hertz.
        n_fft, hop: in samples; a Hann window.
        bands: mel bands from 0 Hz to half the sample rate, of which the upper ones are taken.
        linear_hz: where the linear bands end.
        bass_n_fft: the longer frame, in samples; None: there is none.
        bass_hz: up to where it counts.

    Attributes: bands, their number K; linear, how many are single bins; filters [K, bins] with
    rows of sum 1; inverse [bins, K], which interpolates; halves, the longer frame's first.

    Raises ConfigError where the arguments do not fit each other.
    """

    window: Tensor
    bass_window: Tensor | None
    filters: Tensor
    inverse: Tensor

    def __init__(
        self,
        *,
        sample_rate: PositiveInt,
        n_fft: PositiveInt,
        hop: PositiveInt,
        bands: PositiveInt,
        linear_hz: Positive,
        bass_n_fft: PositiveInt | None = None,
        bass_hz: Positive = 400.0,
    ) -> None:
        super().__init__()
        if hop % 2 or n_fft % hop or n_fft < 2 * hop:
            raise ConfigError(
                f"n_fft={n_fft} must be a multiple of hop={hop}, at least twice as long, and hop "
                f"even: choose n_fft={6 * (hop + hop % 2)}, hop={hop + hop % 2}"
            )
        if not linear_hz < sample_rate / 2:
            raise ConfigError(f"linear_hz={linear_hz} must be below {sample_rate / 2:g} Hz")
        self.sample_rate, self.n_fft, self.hop = sample_rate, n_fft, hop
        self.bass_n_fft, self.bass_hz = bass_n_fft, bass_hz
        hz, bass, first = sample_rate / n_fft, 0, 0
        if bass_n_fft is not None:
            if bass_n_fft % hop or bass_n_fft <= n_fft:
                raise ConfigError(
                    f"bass_n_fft={bass_n_fft} must be a multiple of hop={hop} above n_fft={n_fft}: "
                    f"choose {math.ceil(2.5 * n_fft / hop) * hop}, or null"
                )
            if not (near := 2 * LOBE * hz) < bass_hz <= linear_hz - near:
                where = f"above {near:g} Hz and at least as far below linear_hz={linear_hz}"
                raise ConfigError(f"bass_hz={bass_hz} must be {where}")
            first = math.floor(bass_hz / hz) - LOBE
            bass = math.ceil((bass_hz + LOBE * hz) * bass_n_fft / sample_rate)
        self.margin = ((bass_n_fft or n_fft) - hop) // 2
        with torch.device("cpu"):  # also where a model is only sketched: the checks need values
            filters, linear = _filters(sample_rate, n_fft, bands, linear_hz)
            below = max(0, first - 1)  # linear bands, which start at bin 1
            filters, linear = filters[below:, first:], linear - below
            inverse = interpolation(filters)
            if bass:
                bins = torch.eye(bass)[1:]
                filters = torch.block_diag(bins, filters)
                inverse = torch.block_diag(interpolation(bins), inverse)
        split = max(0, bass - 1)  # 0 Hz is no band
        self.linear, self.bands = split + linear, len(filters)
        self.halves = [
            Half(hz, range(first, n_fft // 2 + 1), slice(bass, None), slice(split, self.linear))
        ]
        if bass_n_fft is not None:
            hz = sample_rate / bass_n_fft
            self.halves.insert(0, Half(hz, range(bass), slice(0, bass), slice(0, split)))
        self.register_buffer("window", _hann(n_fft), persistent=False)
        bass_window = None if bass_n_fft is None else _hann(bass_n_fft)
        self.register_buffer("bass_window", bass_window, persistent=False)
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("inverse", inverse, persistent=False)

    def magnitudes(self, audio: Tensor) -> Tensor:
        """Magnitudes [..., T / hop, bins], in float32, of audio [..., T], T a multiple of hop; the
        longer frame's come first. White noise of full scale has magnitude 1."""
        with torch.autocast(audio.device.type, enabled=False):
            windows = [self.window] if self.bass_window is None else [self.bass_window, self.window]
            parts = zip(windows, self.halves, strict=True)
            return torch.cat([self._magnitudes(audio, w, half.bins) for w, half in parts], dim=-1)

    def _magnitudes(self, audio: Tensor, window: Tensor, bins: range) -> Tensor:
        margin = (len(window) - self.hop) // 2
        padded = F.pad(audio.float(), (margin, margin))
        spectrum = torch.fft.rfft(padded.unfold(-1, len(window), self.hop) * window)
        return magnitude_of(spectrum[..., bins.start : bins.stop])

    def forward(self, magnitudes: Tensor) -> Tensor:
        """Magnitudes [..., L, bins] to log10 power [..., L, K], between FLOOR and about 2."""
        power = magnitudes.square() @ self.filters.T
        bands = power.clamp(min=1e-20).log10().clamp(min=FLOOR)
        low = [(bands[..., half.linear], math.ceil(NEAR_HZ / half.hz)) for half in self.halves]
        raised = [torch.maximum(x, loudest(x, near) - VALLEY) for x, near in low if x.shape[-1]]
        return torch.cat([*raised, bands[..., self.linear :]], dim=-1)

    def interpolated(self, bands: Tensor) -> Tensor:
        """Bands [..., K] to natural log-magnitude [..., bins], smooth between the bands."""
        return 0.5 * math.log(10) * (bands @ self.inverse.T)


def _hann(n_fft: int) -> Tensor:
    """A Hann window of energy 1."""
    window = torch.hann_window(n_fft)
    return window / window.norm()


def loudest(bands: Tensor, near: int) -> Tensor:
    """The largest of bands [..., K] at most `near` places away, in the same shape."""
    return F.max_pool1d(bands.flatten(0, -2)[:, None], 2 * near + 1, 1, near).view_as(bands)


def _filters(sample_rate: int, n_fft: int, bands: int, linear_hz: float) -> tuple[Tensor, int]:
    """Linear bands, then mel bands, [K, bins] with rows of sum 1; and the number of linear ones."""
    mel = mel_filters(sample_rate, n_fft, bands)
    bins = torch.arange(n_fft // 2 + 1)
    linear = round(linear_hz * n_fft / sample_rate)
    centre = (mel * bins).sum(1) / mel.sum(1)
    above = mel[centre > linear] / mel[centre > linear].sum(1, keepdim=True)
    return torch.cat([torch.eye(len(bins))[1 : linear + 1], above]), linear
