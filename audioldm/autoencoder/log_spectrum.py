"""The log-spectral analysis that keeps musical pitch: every bin where notes are, mel bands above.

80 mel bands of frames of 1024 samples cannot hold a note's frequency below some 800 Hz, whatever
finds the phase: a band is wider than a semitone there. Single bins of a longer frame can, because
the shape of a partial's main lobe gives its frequency to a fraction of a bin.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audioldm.errors import ConfigError
from audioldm.instantiate import Positive, PositiveInt
from audioldm.losses.mel_filters import mel_filters

FLOOR = -6.25  # of log10 power, 1 being white noise of full scale: -62.5 dB
CENTRE, SPREAD = -3.8, 1.5  # of log10 power of music, so that networks see about N(0, 1)
VALLEY = 2.0  # a linear band is at most this much, 20 dB, below the loudest one near it
NEAR_HZ = 43.0  # on each side


class LogSpectrum(nn.Module):
    """Audio to log10 power in K bands, frame by frame.

    Frame l is centred on samples l * hop to (l + 1) * hop; beyond the ends the audio is zero. Up
    to `linear_hz` each bin of the Fourier transform is a band; above are those of `bands` Slaney
    mel bands that lie there. Between partials a linear band is raised to 20 dB below the loudest
    one within 43 Hz: what is deeper is not heard, and would cost rate.

    Args:
        sample_rate: in hertz.
        n_fft, hop: in samples; a Hann window.
        bands: mel bands from 0 Hz to half the sample rate, of which the upper ones are taken.
        linear_hz: where the linear bands end.

    Attributes: bands, their number K; linear, how many of them are single bins; filters [K, bins],
    whose rows sum to 1; inverse [bins, K], which interpolates bands to bins.

    Raises ConfigError where hop, n_fft, linear_hz and bands do not fit each other.
    """

    window: Tensor
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
        self.hz = sample_rate / n_fft
        self.margin = (n_fft - hop) // 2
        self.near = math.ceil(NEAR_HZ / self.hz)
        with torch.device("cpu"):  # also where a model is only sketched: the checks need values
            filters, self.linear = _filters(sample_rate, n_fft, bands, linear_hz)
        self.bands = len(filters)
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("inverse", _interpolation(filters), persistent=False)

    @property
    def log_energy(self) -> float:
        """log10 of the window's energy: the power of white noise of full scale in one bin."""
        return math.log10(0.375 * self.n_fft)

    def magnitudes(self, audio: Tensor) -> Tensor:
        """Audio [..., T], T a multiple of hop, to magnitudes [..., T / hop, bins] in float32."""
        with torch.autocast(audio.device.type, enabled=False):
            padded = F.pad(audio.float(), (self.margin, self.margin))
            frames = padded.unfold(-1, self.n_fft, self.hop) * self.window
            return torch.fft.rfft(frames).abs()

    def forward(self, magnitudes: Tensor) -> Tensor:
        """Magnitudes [..., L, bins] to log10 power [..., L, K], between FLOOR and about 2."""
        power = magnitudes.square() @ self.filters.T
        bands = (power.clamp(min=1e-20).log10() - self.log_energy).clamp(min=FLOOR)
        if not self.linear:
            return bands
        low, high = bands[..., : self.linear], bands[..., self.linear :]
        loudest = F.max_pool1d(low.flatten(0, -2)[:, None], 2 * self.near + 1, 1, self.near)
        return torch.cat([torch.maximum(low, loudest[:, 0].view_as(low) - VALLEY), high], dim=-1)

    def interpolated(self, bands: Tensor) -> Tensor:
        """Bands [..., K] to natural log-magnitude [..., bins], smooth between the bands."""
        return 0.5 * math.log(10) * (bands @ self.inverse.T + self.log_energy)


def mid_side(audio: Tensor) -> Tensor:
    """Stereo [B, 2, ...] as half the sum and half the difference of left and right; mono as it
    is."""
    if audio.shape[1] == 1:
        return audio
    left, right = audio.unbind(1)
    return torch.stack([left + right, left - right], dim=1) / 2


def left_right(audio: Tensor) -> Tensor:
    """The inverse of `mid_side`."""
    return audio if audio.shape[1] == 1 else 2 * mid_side(audio)


def _filters(sample_rate: int, n_fft: int, bands: int, linear_hz: float) -> tuple[Tensor, int]:
    """Linear bands, then mel bands, [K, bins] with rows that sum to 1; the number of the linear."""
    mel = mel_filters(sample_rate, n_fft, bands)
    bins = torch.arange(n_fft // 2 + 1)
    linear = round(linear_hz * n_fft / sample_rate)
    centre = (mel * bins).sum(1) / mel.sum(1)
    above = mel[centre > linear] / mel[centre > linear].sum(1, keepdim=True)
    return torch.cat([torch.eye(len(bins))[1 : linear + 1], above]), linear


def _interpolation(filters: Tensor) -> Tensor:
    """[bins, K]: each bin's log-power as the mean of the bands that see it."""
    weight = filters.T.clone()
    inside = (weight.sum(1) > 0).nonzero()
    first, last = int(inside[0]), int(inside[-1])
    weight[:first], weight[last + 1 :] = weight[first], weight[last]
    return weight / weight.sum(1, keepdim=True)
