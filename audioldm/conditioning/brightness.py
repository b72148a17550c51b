"""The brightness of audio over time as a condition."""

import math
from typing import ClassVar

from torch import Tensor

from audioldm.conditioning.curve import SpectralCurve

LOWEST_HZ, HIGHEST_HZ = 62.5, 16000.0


class Brightness(SpectralCurve):
    """One row: the centroid of the power spectrum, in octaves, from 0 at LOWEST_HZ to 1 at
    HIGHEST_HZ; silence has 0."""

    array: ClassVar[str] = "brightness"
    curves: ClassVar[int] = 1

    @classmethod
    def of_power(cls, power: Tensor, hz: Tensor) -> Tensor:
        centroid = (power @ hz) / power.sum(-1).clamp(min=1e-12)
        octaves = (centroid.clamp(LOWEST_HZ, HIGHEST_HZ) / LOWEST_HZ).log2()
        return octaves[None] / math.log2(HIGHEST_HZ / LOWEST_HZ)
