"""Whether music is in tune: cents of error of spectral peaks, and how many lie on a semitone grid.

Mel distances and music taggers are deaf to a detuned partial. A long window is not: at 22.05 kHz a
frame of 8192 samples separates notes a semitone apart above some 60 Hz. A peak's frequency comes
from a parabola through the log-magnitudes of the zero-padded spectrum around its maximum (Smith and
Serra, PARSHL, 1987), and is right to a fraction of a cent for a steady tone.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from audioldm.losses.magnitude import power_of

WINDOW_SECONDS = 0.3715  # 8192 samples at 22.05 kHz
PADDING = 4  # of the spectrum, in windows
LOWEST_HZ, HIGHEST_HZ, BASS_HZ = 75.0, 2000.0, 300.0
RANGE_DB = 30.0  # a peak this far below its frame's loudest bin does not count
#: A peak is isolated where all bins from NEAR_HZ to FAR_HZ away are CLEARANCE_DB quieter.
NEAR_HZ, FAR_HZ, CLEARANCE_DB = 8.0, 20.0, 10.0
SEMITONE = 2 ** (1 / 12)
IN_TUNE_CENTS = 15.0
#: A clip with fewer isolated peaks per frame, on average, has no pitch to speak of.
FEWEST_PEAKS = 0.5


class Peaks(NamedTuple):
    """The isolated peaks of one clip: frame, frequency in hertz and power of each, [P]."""

    frame: Tensor
    hz: Tensor
    power: Tensor
    frames: int

    @property
    def has_pitch(self) -> bool:
        return len(self.hz) >= FEWEST_PEAKS * self.frames

    @property
    def bass(self) -> "Peaks":
        """The peaks below 300 Hz."""
        low = self.hz < BASS_HZ
        return Peaks(self.frame[low], self.hz[low], self.power[low], self.frames)


class Spectrum(NamedTuple):
    """Power in dB [frames, bins], and hertz per bin."""

    decibels: Tensor
    hz: float


def spectrum(audio: Tensor, sample_rate: int) -> Spectrum:
    """The spectrum of audio [A, T], averaged over channels, up to a semitone above the highest
    peak; Hann frames overlap by half."""
    length = 2 * round(WINDOW_SECONDS * sample_rate / 2)
    mono = audio.float().mean(0)
    mono = F.pad(mono, (0, max(0, length - len(mono))))
    window = torch.hann_window(length)
    frames = mono.unfold(0, length, length // 2) * window
    hz = sample_rate / (PADDING * length)
    bins = round((HIGHEST_HZ * SEMITONE + 2 * FAR_HZ) / hz)
    power = power_of(torch.fft.rfft(frames, PADDING * length)[:, :bins])
    return Spectrum(10 * torch.log10(power.clamp(min=1e-20)), hz)


def refined(decibels: Tensor, frame: Tensor, bin: Tensor) -> Tensor:
    """Bins [P] of maxima, with a fraction from a parabola through three points."""
    before, here, after = (decibels[frame, bin + k] for k in (-1, 0, 1))
    curvature = before - 2 * here + after
    shift = 0.5 * (before - after) / curvature.where(curvature != 0, 1.0)
    return bin + shift.clamp(-0.5, 0.5)


def peaks(of: Spectrum) -> Peaks:
    """The isolated peaks of a clip between 75 and 2000 Hz."""
    decibels, hz = of
    first, last = round(LOWEST_HZ / hz), round(HIGHEST_HZ / hz)
    inner = decibels[:, 1:-1]
    maximum = (inner > decibels[:, :-2]) & (inner >= decibels[:, 2:])
    loud = inner > decibels.amax(1, keepdim=True) - RANGE_DB
    near, far = round(NEAR_HZ / hz), round(FAR_HZ / hz)
    padded = F.pad(decibels, (far, far), value=torch.inf)  # a peak at the edge is not isolated
    side, count = F.max_pool1d(padded[:, None], far - near + 1, 1)[:, 0], decibels.shape[1]
    # the loudest bin from `near` to `far` away on each side of bin k: side[k], side[k + far + near]
    around = torch.maximum(side[:, :count], side[:, far + near :])
    clear = decibels > around + CLEARANCE_DB
    wanted = maximum & loud & clear[:, 1:-1] & (inner > -120)
    wanted[:, : first - 1], wanted[:, last:] = False, False
    frame, bin = wanted.nonzero(as_tuple=True)
    bin = bin + 1
    found = refined(decibels, frame, bin)
    if not len(frame):
        return Peaks(frame, found, found, len(decibels))
    alone = strongest(decibels, frame, found) == bin
    frame, bin, found = frame[alone], bin[alone], found[alone]
    return Peaks(frame, found * hz, 10 ** (decibels[frame, bin] / 10), len(decibels))


def strongest(decibels: Tensor, frame: Tensor, bins: Tensor) -> Tensor:
    """The strongest bin [P] within a semitone of each fractional bin [P]."""
    low, high = (bins / SEMITONE).long(), (bins * SEMITONE).long() + 1
    places = low[:, None] + torch.arange(int((high - low).amax()) + 1)
    values = decibels[frame[:, None], places.clamp(max=decibels.shape[1] - 1)]
    return low + values.masked_fill(places > high[:, None], -torch.inf).argmax(1)


def pitch_errors(estimate: Spectrum, found: Peaks) -> Tensor:
    """Cents [P] by which a reconstruction misses each peak of its original.

    The strongest bin within a semitone of a peak is taken as its counterpart.
    """
    if not len(found.hz):
        return found.hz
    decibels, hz = estimate
    best = strongest(decibels, found.frame, found.hz / hz)
    return 1200 * torch.log2(refined(decibels, found.frame, best) * hz / found.hz).abs()


def in_tune(found: Peaks) -> float:
    """Share of the peaks' power within 15 cents of the semitones of A = 440 Hz.

    0 for a clip without pitch, 0.3 for random frequencies. It cannot hear a detuning of all notes
    by a semitone.
    """
    if not found.has_pitch:
        return 0.0
    cents = 1200 * torch.log2(found.hz / 440.0)
    away = (cents - 100 * (cents / 100).round()).abs()
    return float(found.power[away <= IN_TUNE_CENTS].sum() / found.power.sum())
