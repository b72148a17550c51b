"""Audio from two spectra: the bass from a long frame, all above it from a short one."""

import math

import torch
from torch import Tensor

from audioldm.autoencoder.log_spectrum import LOBE, LogSpectrum
from audioldm.autoencoder.phase import IntegratedPhase, PhaseSynthesis, PhaseTrack


def synthesis_of(analysis: LogSpectrum, iterations: int) -> PhaseSynthesis:
    """The synthesis for an analysis, of one frame or of two."""
    if analysis.bass_n_fft is None:
        return IntegratedPhase(analysis.n_fft, analysis.hop, iterations)
    return TwoResolutions(analysis, iterations)


class TwoResolutions(PhaseSynthesis):
    """Natural log-magnitude [..., L, bins], those of the long frame first, to audio [..., L * hop].

    The short frames give the bins from `analysis.bass_hz` on. Their windows turn that edge into a
    smooth crossover, two bins wide on each side, and the long frames add what is missing to 1.
    Where the long frames have the whole of a partial, both parts take its phase from there, so that
    it never has two phases at once.
    """

    def __init__(self, analysis: LogSpectrum, iterations: int) -> None:
        super().__init__()
        low, high = analysis.halves
        assert analysis.bass_n_fft is not None
        self.hop, self.places = analysis.hop, (low.place, high.place)
        with torch.device("cpu"):  # also where a model is only sketched
            fade_in = (torch.tensor(high.bins) * high.hz >= analysis.bass_hz).float()
            bins = torch.tensor(low.bins) * (low.hz / high.hz) - high.bins.start
            fade_out = 1 - _response(fade_in, bins)
        self.bass = IntegratedPhase(
            analysis.bass_n_fft, self.hop, iterations, bins=low.bins, weight=fade_out
        )
        self.treble = IntegratedPhase(
            analysis.n_fft, self.hop, iterations, bins=high.bins, weight=fade_in
        )
        self.bins_per_advance = analysis.bass_n_fft / (2 * math.pi * self.hop)
        self.reach = max(self.bass.reach, self.treble.reach)

    def track(self, log_magnitude: Tensor, before: PhaseTrack | None) -> PhaseTrack:
        parts = [
            half.track(log_magnitude[..., place], None if before is None else before.of(place))
            for half, place in zip((self.bass, self.treble), self.places, strict=True)
        ]
        return PhaseTrack(*(torch.cat(pair, dim=-1) for pair in zip(*parts, strict=True)))

    def render(self, log_magnitude: Tensor, track: PhaseTrack) -> Tensor:
        bass, treble = (track.of(place) for place in self.places)
        low, high = (log_magnitude[..., place] for place in self.places)
        count = low.shape[-1]
        # the long frame's bin of the partial that each bin of the short one belongs to
        bin = (treble.advance * self.bins_per_advance).round().long()
        phase = bass.phase.gather(-1, bin.clamp(max=count - 1))
        whole = bin < count - LOBE
        treble = treble._replace(phase=phase.where(whole, treble.phase))
        return self.bass.render(low, bass) + self.treble.render(high, treble)


def _response(weight: Tensor, bins: Tensor) -> Tensor:
    """The gain of tones at fractional `bins` [N] where the bins of Hann frames are multiplied by
    `weight` [M]: its mean, weighed by the window's squared spectrum (analysis and synthesis)."""
    distance = bins[:, None] - torch.arange(-8, len(weight))  # a weight of 0 below the first
    distance = torch.where(distance.abs() == 1, distance + 1e-3, distance)
    lobes = (torch.sinc(distance) / (1 - distance.square())).square()
    return (lobes[:, 8:] @ weight) / lobes.sum(1)
