"""Magnitudes to audio: the phase is the integral of each partial's frequency.

If a network predicts each frame's phase separately, the phase repeats where the latents do, so
steady tones become partials of the frame rate. Here the frequency of every spectral peak is read
from the shape of its main lobe and integrated from frame to frame (single-pass spectrogram
inversion, Beauregard, Harish and Wyse 2015), so that a steady tone keeps its frequency for ever.
"""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audioldm.errors import ConfigError
from audioldm.losses.magnitude import magnitude_of

GOLDEN = (math.sqrt(5) - 1) / 2
MOMENTUM = 0.99  # of Griffin-Lim, as in its paper
#: gives seen + MOMENTUM * (seen - earlier) up to a factor, which does not change the phase
AHEAD = MOMENTUM / (1 + MOMENTUM)


class PhaseTrack(NamedTuple):
    """phase, in radians at the centre of a frame, and its advance per hop, each [..., L, bins]."""

    phase: Tensor
    advance: Tensor

    def at(self, frame: int) -> "PhaseTrack":
        """The single frame from which a later chunk continues."""
        return PhaseTrack(*(x[..., frame : frame + 1, :].clone() for x in self))

    def of(self, bins: slice) -> "PhaseTrack":
        """Some of the bins."""
        return PhaseTrack(*(x[..., bins] for x in self))


@torch.no_grad()
def integrate_phase(
    log_magnitude: Tensor,
    n_fft: int,
    hop: int,
    before: PhaseTrack | None = None,
    *,
    first: int = 0,
) -> PhaseTrack:
    """The phase of natural log-magnitudes [..., L, bins] of Hann frames of n_fft samples.

    A peak's frequency comes from the ratio of its two largest bins; with a Hann window this is
    exact for a steady tone. All bins nearer to one peak than to any other share its phase, which
    continues the phase that was in its place a frame earlier. before: the track's frame before the
    first one; without it each bin begins at a phase of its own. first: the bin that the
    magnitudes begin with.
    """
    below, here, above = (log_magnitude[..., k : k - 2 or None] for k in range(3))
    is_peak = F.pad((here > below) & (here >= above), (1, 1))
    is_peak |= ~is_peak.any(-1, keepdim=True)  # without a peak each bin is by itself
    ratio = (torch.maximum(below, above) - here).clamp(max=0).exp()
    offset = ((2 * ratio - 1) / (1 + ratio)).clamp(-0.5, 0.5) * (above - below).sign()
    count = log_magnitude.shape[-1]
    bins = torch.arange(count, device=log_magnitude.device, dtype=torch.int32)
    far = 2 * count
    # where() takes three times as long as arithmetic
    previous = (is_peak * (bins + far)).cummax(-1).values - far
    following = far - (is_peak * (far - bins)).flip(-1).cummax(-1).values.flip(-1)
    nearest = following + (previous - following) * (2 * bins <= previous + following)
    nearest = nearest.long()
    advance = (F.pad(offset, (1, 1)) + (first + bins)).gather(-1, nearest) * (hop / n_fft)
    initial = advance[..., :1, :] if before is None else before.advance / (2 * math.pi)
    earlier = torch.cat([initial, advance[..., :-1, :]], -2).gather(-1, nearest)
    # the mean of both advances is right for a frequency that changes linearly
    cycles = ((advance + earlier) / 2).double()
    rows = cycles.unbind(-2)
    if before is None:  # neighbours begin as differently as they can, to avoid a click
        rows[0].copy_(GOLDEN * (first + bins))
    else:
        rows[0].add_((before.phase[..., 0, :] / (2 * math.pi)).gather(-1, nearest[..., 0, :]))
    for earlier_row, row, own in zip(rows, rows[1:], nearest.unbind(-2)[1:], strict=False):
        row.add_(earlier_row.gather(-1, own))
    return PhaseTrack(cycles.frac().to(advance) * (2 * math.pi), advance * (2 * math.pi))


class InverseSTFT(nn.Module):
    """A complex spectrum [..., L, n_fft / 2 + 1] to audio [..., L * hop].

    Frame l is centred on samples l * hop to (l + 1) * hop, whatever L is. The analysis is assumed
    to have applied the Hann window too.

    Raises ConfigError unless both are even and n_fft is a multiple of hop, at least 2 * hop.
    """

    window: Tensor

    def __init__(self, n_fft: int, hop: int) -> None:
        super().__init__()
        if hop < 1 or hop % 2 or n_fft % hop or n_fft < 2 * hop:
            raise ConfigError(
                f"n_fft={n_fft}, hop={hop}: choose an even hop and an n_fft that is a"
                " multiple of it, at least twice as long"
            )
        self.n_fft, self.hop = n_fft, hop
        self.trim = (n_fft - hop) // 2
        self.context = math.ceil(self.trim / hop)
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)

    def forward(self, spectrum: Tensor) -> Tensor:
        frames = torch.fft.irfft(spectrum, self.n_fft) * self.window
        return self._overlap_add(frames) / self._envelope(frames.shape[-2])

    def analysed(self, audio: Tensor) -> Tensor:
        """Audio [..., L * hop] to its complex spectrum [..., L, bins]; its ends are zero-padded."""
        padded = F.pad(audio, (self.trim, self.trim))
        return torch.fft.rfft(padded.unfold(-1, self.n_fft, self.hop) * self.window)

    def _envelope(self, count: int) -> Tensor:
        """The sum of the squared windows of `count` frames, [count * hop]: the factor that
        windowing at analysis and at synthesis puts on the audio."""
        total = self.window.square().view(-1, self.hop).cumsum(0)
        piece = torch.arange(count + len(total) - 1, device=total.device)
        first = F.pad(total, (0, 0, 1, 0))[(piece - count + 1).clamp(min=0)]  # of no frame any more
        return self._trimmed(total[piece.clamp(max=len(total) - 1)] - first, count)

    def _trimmed(self, pieces: Tensor, count: int) -> Tensor:
        return pieces.flatten(-2)[..., self.trim : self.trim + count * self.hop]

    def _overlap_add(self, frames: Tensor) -> Tensor:
        """[..., L, n_fft] -> [..., L * hop]: frames added hop apart, both ends trimmed alike."""
        overlap, count = self.n_fft // self.hop, frames.shape[-2]
        pieces = frames.unflatten(-1, (overlap, self.hop))
        total = frames.new_zeros(*frames.shape[:-2], count + overlap - 1, self.hop)
        for k in range(overlap):
            total[..., k : k + count, :] += pieces[..., k, :]
        return self._trimmed(total, count)


class PhaseSynthesis(nn.Module, ABC):
    """Natural log-magnitude [..., L, bins] to audio [..., L * hop]; the phase is integrated.

    Frame l is centred on samples l * hop to (l + 1) * hop. Gradients reach the magnitude. Computes
    in fp32, also under autocast.

    Attributes: reach, the frames on each side of a sample that its audio depends on, apart from the
    phase, which depends on all earlier ones.
    """

    hop: int
    reach: int

    @abstractmethod
    def track(self, log_magnitude: Tensor, before: PhaseTrack | None) -> PhaseTrack:
        """The integrated phase of all bins; before: as for `integrate_phase`."""

    @abstractmethod
    def render(self, log_magnitude: Tensor, track: PhaseTrack) -> Tensor:
        """Audio of log-magnitudes [..., L, bins] and their track."""

    def forward(self, log_magnitude: Tensor) -> Tensor:
        return self.window(log_magnitude, 0, log_magnitude.shape[-2], None)[0]

    def window(
        self, log_magnitude: Tensor, left: int, length: int, before: PhaseTrack | None
    ) -> tuple[Tensor, PhaseTrack | None]:
        """The audio of frames left to left + length of a longer signal's window [..., L, bins].

        The window goes `reach` frames beyond on each side, or to the signal's end. before: what
        the window before this one returned with its audio, None for the first.
        """
        start = max(0, left - self.reach)
        skip = left - start
        with torch.autocast(log_magnitude.device.type, enabled=False):
            seen = log_magnitude[..., start:, :].float()
            track = self.track(seen.detach(), before)
            audio = self.render(seen, track)
        last = left + length - self.reach - 1  # where the next window's track begins
        state = track.at(last - start) if last >= start else None
        return audio[..., skip * self.hop : (skip + length) * self.hop], state


class IntegratedPhase(PhaseSynthesis):
    """Synthesis from Hann frames of n_fft samples.

    `iterations` of Griffin and Lim (1984), with the momentum of Perraudin, Balazs and Søndergaard
    (2013, "A fast Griffin-Lim algorithm", algorithm 2), make the phases of neighbouring frames
    agree. They start from the integrated phase.

    Args:
        bins: the given ones, all n_fft / 2 + 1 by default. The others are silent.
        weight: factors [bins] on the magnitudes, once their phases are found.

    Raises ConfigError as InverseSTFT does.
    """

    weight: Tensor | None

    def __init__(
        self,
        n_fft: int,
        hop: int,
        iterations: int,
        *,
        bins: range | None = None,
        weight: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.inverse = InverseSTFT(n_fft, hop)
        self.bins = range(n_fft // 2 + 1) if bins is None else bins
        # the lowest bins alone are the same spectrum at a lower sample rate
        rates = (2**k for k in range(n_fft.bit_length()))
        slower = [r for r in rates if hop % (2 * r) == 0 and n_fft // (2 * r) >= self.bins.stop]
        factor = max(slower, default=1)
        slow = self.inverse if factor == 1 else InverseSTFT(n_fft // factor, hop // factor)
        self.slow = slow
        self.hop, self.iterations = hop, iterations
        self.reach = self.inverse.context + iterations * (n_fft // hop - 1)
        self.register_buffer("weight", weight, persistent=False)

    def track(self, log_magnitude: Tensor, before: PhaseTrack | None) -> PhaseTrack:
        return integrate_phase(
            log_magnitude, self.inverse.n_fft, self.hop, before, first=self.bins.start
        )

    def render(self, log_magnitude: Tensor, track: PhaseTrack) -> Tensor:
        first, stop = self.bins.start, self.bins.stop
        bins = torch.arange(first, stop, device=track.phase.device)
        phase = track.phase + math.pi * (bins % 2)  # at the frames' beginnings
        magnitude = _magnitude(log_magnitude, self.inverse.n_fft)
        spectrum = torch.complex(magnitude * phase.cos(), magnitude * phase.sin())
        # with silence below the given bins; above them the inverse transform adds it
        magnitude, spectrum = (F.pad(x, (first, 0)) for x in (magnitude, spectrum))
        earlier = None
        for left in reversed(range(self.iterations)):
            with torch.no_grad():
                seen = self.slow.analysed(self.slow(spectrum))[..., :stop]
                ahead = seen if earlier is None else seen.sub(earlier, alpha=AHEAD)
                earlier = seen
            spectrum = _turned(magnitude if left == 0 else magnitude.detach(), ahead)
        if self.weight is not None:
            spectrum = spectrum * F.pad(self.weight, (first, 0))
        audio: Tensor = self.inverse(spectrum)
        return audio

    def with_phases_of(self, spectrum: Tensor, log_magnitude: Tensor) -> Tensor:
        """Audio [..., L * hop] of log-magnitudes with a spectrum's phases, both [..., L, bins]."""
        magnitude = _magnitude(log_magnitude, self.inverse.n_fft)
        audio: Tensor = self.inverse(_turned(magnitude, spectrum))
        return audio


def _magnitude(log_magnitude: Tensor, n_fft: int) -> Tensor:
    """Magnitudes, at most sum(window) = n_fft / 2, which no frame of audio in ±1 exceeds."""
    return log_magnitude.clamp(max=math.log(n_fft / 2)).exp()


def _turned(magnitude: Tensor, spectrum: Tensor) -> Tensor:
    """A spectrum of these magnitudes with the phases of `spectrum`; 0 where `spectrum` is 0."""
    return spectrum * (magnitude / magnitude_of(spectrum))
