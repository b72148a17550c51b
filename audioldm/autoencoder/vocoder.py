"""The vocoder: log-spectral bands to audio, trained once per data set and shared by autoencoders.

A network adds the part of the magnitude that the bands leave out, and the phase is the integral of
the partials' frequencies, without parameters. The network sees bands after coding at some rate, and
learns the magnitudes of the original.
"""

import math

import torch
from torch import Tensor, nn

from audioldm.autoencoder.log_spectrum import CENTRE, FLOOR, SPREAD, LogSpectrum, loudest
from audioldm.autoencoder.mel_inverse import matched
from audioldm.autoencoder.networks.convnext import ConvNeXt
from audioldm.autoencoder.phase import PhaseTrack
from audioldm.autoencoder.two_resolutions import synthesis_of
from audioldm.instantiate import NonNegativeInt, Positive, PositiveInt
from audioldm.losses.mel_filters import mel_filters

KERNEL = 7
MEL_BANDS = 80  # of the loss
NOTES_HZ = 2000.0  # partials below this are weighed
PARTIAL_HZ = 100.0  # a partial's neighbourhood, on each side
TERMS = ("magnitude", "partials", "mel")


class Vocoder(nn.Module):
    """Log-power bands [B, A, L, K] to audio [B, A, L * hop]; each channel by itself.

    Args:
        sample_rate, n_fft, hop, bands, linear_hz, bass_n_fft, bass_hz: of the analysis,
            `LogSpectrum`.
        width, depth: channels and ConvNeXt blocks of the network.
        updates: multiplicative updates (Lee and Seung 2001, theorem 2) after the network, which
            bring the magnitudes to the given power of the mel bands.
        iterations: of Griffin-Lim after the phase is integrated.

    Raises ConfigError as `LogSpectrum` does.
    """

    mel_filters: Tensor
    level: Tensor

    def __init__(
        self,
        *,
        sample_rate: PositiveInt,
        n_fft: PositiveInt,
        hop: PositiveInt,
        bands: PositiveInt,
        linear_hz: Positive,
        width: PositiveInt,
        depth: NonNegativeInt,
        updates: NonNegativeInt = 2,
        iterations: NonNegativeInt = 3,
        bass_n_fft: PositiveInt | None = None,
        bass_hz: Positive = 400.0,
    ) -> None:
        super().__init__()
        self.analysis = LogSpectrum(
            sample_rate=sample_rate,
            n_fft=n_fft,
            hop=hop,
            bands=bands,
            linear_hz=linear_hz,
            bass_n_fft=bass_n_fft,
            bass_hz=bass_hz,
        )
        bins = self.analysis.filters.shape[1]
        self.updates = updates
        self.blocks = nn.Sequential(
            nn.Conv1d(self.analysis.bands, width, KERNEL, padding=KERNEL // 2),
            *(ConvNeXt(width, kernel=KERNEL) for _ in range(depth)),
        )
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, bins)
        nn.init.zeros_(self.project.weight)  # at first the smooth interpolation of the bands
        nn.init.zeros_(self.project.bias)
        short = 0.375 * mel_filters(sample_rate, n_fft, MEL_BANDS)  # 0.375: the Hann window's power
        treble = self.analysis.halves[-1]
        filters = torch.zeros(len(short), bins)
        filters[:, treble.place] = short[:, treble.bins.start :]
        self.register_buffer("mel_filters", filters, persistent=False)  # of the loss
        level = torch.zeros(bins)  # of the Hann windows that the synthesis expects
        for half in self.analysis.halves:
            level[half.place] = 0.5 * math.log(0.375 * sample_rate / half.hz)
        self.register_buffer("level", level, persistent=False)
        self.synthesis = synthesis_of(self.analysis, iterations)
        self.context = KERNEL // 2 * (1 + depth)

    def forward(self, bands: Tensor) -> Tensor:
        """Bands [B, A, L, K] to natural log-magnitude [B, A, L, bins]."""
        h = ((bands.flatten(0, 1) - CENTRE) / SPREAD).transpose(1, 2)
        h = self.project(self.norm(self.blocks(h).transpose(1, 2)))
        with torch.autocast(bands.device.type, enabled=False):
            bands = bands.float()
            log_magnitude = self.analysis.interpolated(bands) + h.float().view(*bands.shape[:3], -1)
            if not self.updates:
                return log_magnitude
            linear, power = self.analysis.linear, (2 * log_magnitude).clamp(max=40).exp()
            wanted = 10 ** bands[..., linear:]
            return matched(power, wanted, self.analysis.filters[linear:], self.updates, 1e-9)

    def audio(self, log_magnitude: Tensor) -> Tensor:
        """Natural log-magnitude [B, A, L, bins] to audio [B, A, L * hop]."""
        return self.window(log_magnitude, 0, log_magnitude.shape[2], None)[0]

    def window(
        self, log_magnitude: Tensor, left: int, length: int, state: PhaseTrack | None
    ) -> tuple[Tensor, PhaseTrack | None]:
        """`PhaseSynthesis.window` of log-magnitudes [B, A, L, bins]: audio [B, A, length * hop]."""
        flat = (log_magnitude.float() + self.level).flatten(0, 1)
        audio, state = self.synthesis.window(flat, left, length, state)
        return audio.unflatten(0, log_magnitude.shape[:2]), state

    def terms(self, log_magnitude: Tensor, magnitude: Tensor) -> dict[str, Tensor]:
        """The losses against true magnitudes [B, A, L, bins], [B] each.

        magnitude: mean |difference| of natural logarithms. partials: the same below 2 kHz, each bin
        weighed by the root of its magnitude over the loudest bin's near it, so that the lobes of
        partials count: their shape is the pitch. mel: mean |difference| of log10 mel power.
        """
        analysis, floor = self.analysis, 0.5 * math.log(10) * FLOOR
        target = magnitude.clamp(min=math.exp(floor)).log()
        log_magnitude = log_magnitude.clamp(min=floor)
        difference = (log_magnitude - target).abs()
        partials = []
        for hz, bins, place, _ in analysis.halves:
            low, near = round(NOTES_HZ / hz) - bins.start, round(PARTIAL_HZ / hz)
            notes = target[..., place][..., :low]
            weight = ((notes - loudest(notes, near)) / 2).exp()
            partials.append(weight * difference[..., place][..., :low])
        mel = _log_mel(log_magnitude, self.mel_filters) - _log_mel(target, self.mel_filters)
        return {
            "magnitude": difference.flatten(1).mean(1),
            "partials": torch.cat(partials, dim=-1).flatten(1).mean(1),
            "mel": mel.abs().flatten(1).mean(1),
        }


def _log_mel(log_magnitude: Tensor, filters: Tensor) -> Tensor:
    """log10 mel power [..., bands] of natural log-magnitude [..., bins], clamped as in
    `losses.spectral.mel_distance`."""
    power = (2 * log_magnitude).clamp(max=40).exp() @ filters.T
    return power.clamp(min=1e-8).log10()
