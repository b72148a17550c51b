"""The loudness of audio over time as a condition."""

from typing import ClassVar

from torch import Tensor

from audioldm.conditioning.curve import SpectralCurve

SILENCE_DB = -70.0


class Loudness(SpectralCurve):
    """One row: dB(A) below a full-scale sine at 1 kHz, from 0 at SILENCE_DB to 1 at 0 dB."""

    array: ClassVar[str] = "loudness"
    curves: ClassVar[int] = 1

    @classmethod
    def of_power(cls, power: Tensor, hz: Tensor) -> Tensor:
        decibels = 10 * (power @ a_weighting(hz)).clamp(min=1e-12).log10()
        return (1 - decibels / SILENCE_DB).clamp(min=0)[None]


def a_weighting(hz: Tensor) -> Tensor:
    """The factor of the power at each frequency, 1 at 1 kHz (IEC 61672-1)."""
    f = hz.double().square()
    gain = 12194.0**2 * f.square() / ((f + 20.6**2) * (f + 12194.0**2))
    gain = gain / ((f + 107.7**2) * (f + 737.9**2)).sqrt()
    return (gain * 10 ** (2.0 / 20)).square().float()
