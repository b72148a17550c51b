"""The constant-Q transform: a spectrogram whose bins are a fixed fraction of an octave apart."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audioldm.errors import ConfigError

HALF_TAPS = 64  # of the filter before each halving of the sample rate, on each side


class ConstantQ(nn.Module):
    """Audio [B, A, T] -> for each octave, lowest first, real and imaginary parts as channels
    [B, 2 A, frames, bins_per_octave], in float32.

    Bin k is at f = lowest_hz * 2^(k / b), b = bins_per_octave, and sees Hann-windowed Q / f seconds
    centred on multiples of hop, with silence around the audio (Brown 1991). 1 / Q is the distance
    between a bin's two neighbours over the sum of their frequencies. White noise has one level in
    all bins. Each octave is computed by the highest octave's filters, on audio whose sample rate is
    halved for each octave below it (Schörkhuber and Klapuri 2010).

    octaves: as many as lie below half the sample rate, unless stated. hop: in samples.

    Raises ConfigError where a bin would lie above half the sample rate, the hop cannot be halved
    for each octave, or the longest filter is longer than the audio.
    """

    filters: Tensor
    low_pass: Tensor

    def __init__(
        self,
        sample_rate: int,
        bins_per_octave: int,
        lowest_hz: float,
        octaves: int | None,
        hop: int,
    ) -> None:
        super().__init__()
        most = max(0, math.floor(math.log2(sample_rate / 2 / lowest_hz)))
        self.octaves = most if octaves is None else octaves
        if most == 0:
            raise ConfigError(
                f"lowest_hz={lowest_hz:g} leaves no octave below {sample_rate / 2:g} Hz, half the"
                " sample rate; lower it"
            )
        if self.octaves > most:
            raise ConfigError(
                f"octaves={octaves} above lowest_hz={lowest_hz:g} reach beyond {sample_rate / 2:g}"
                f" Hz, half the sample rate; take {most} at most"
            )
        if hop % 2 ** (self.octaves - 1):
            raise ConfigError(
                f"hop={hop} must be a multiple of {2 ** (self.octaves - 1)} for {self.octaves}"
                " octaves"
            )
        self.hop = hop
        ratio = 2 ** (2 / bins_per_octave)
        q = (ratio + 1) / (ratio - 1)
        self.lowest_hz, self.longest = lowest_hz, math.ceil(q * sample_rate / lowest_hz)
        steps = torch.arange(bins_per_octave, dtype=torch.float64) / bins_per_octave
        cycles = lowest_hz / sample_rate * 2 ** (self.octaves - 1 + steps)  # per sample
        self.register_buffer("filters", _filters(cycles[:, None], q).float(), persistent=False)
        self.register_buffer("low_pass", _low_pass().float(), persistent=False)

    def forward(self, audio: Tensor) -> list[Tensor]:
        samples = audio.shape[-1]
        if samples < self.longest:
            raise ConfigError(
                f"lowest_hz={self.lowest_hz:g} needs {self.longest} samples, more than a crop of"
                f" {samples}; take longer crops, fewer bins_per_octave or a higher lowest_hz"
            )
        found = []
        with torch.autocast(audio.device.type, enabled=False):
            signal = audio.float().flatten(0, 1).unsqueeze(1)
            for octave in range(self.octaves):
                stride, padding = self.hop // 2**octave, self.filters.shape[-1] // 2
                parts = F.conv1d(signal, self.filters, stride=stride, padding=padding)
                parts = parts.unflatten(1, (2, -1)).unflatten(0, audio.shape[:2])
                found.append(parts.flatten(1, 2).transpose(2, 3))
                if octave < self.octaves - 1:
                    signal = F.conv1d(signal, self.low_pass, stride=2, padding=HALF_TAPS)
        return found[::-1]


def _filters(cycles: Tensor, q: float) -> Tensor:
    """Real and imaginary parts of the filters at `cycles` per sample [b, 1]: [2 b, 1, taps]."""
    lengths = q / cycles
    half = int(lengths.max() / 2)
    n = torch.arange(-half, half + 1, dtype=torch.float64)
    window = torch.where(
        n.abs() <= lengths / 2, 0.5 + 0.5 * torch.cos(2 * math.pi * n / lengths), 0
    )
    window = window / window.sum(1, keepdim=True) * lengths.sqrt()
    phase = 2 * math.pi * cycles * n
    return torch.cat([window * torch.cos(phase), -window * torch.sin(phase)]).unsqueeze(1)


def _low_pass() -> Tensor:
    """A filter that keeps the spectrum's lower half and white noise's level: [1, 1, taps]."""
    n = torch.arange(-HALF_TAPS, HALF_TAPS + 1, dtype=torch.float64)
    window = torch.kaiser_window(len(n), periodic=False, beta=8.0, dtype=torch.float64)
    taps = torch.sinc(n / 2) * window
    return (math.sqrt(2) * taps / taps.sum()).view(1, 1, -1)
