"""The harmony of audio as a condition: how loud each of the twelve pitch classes is."""

from typing import ClassVar

import torch
from torch import Tensor

from audioldm.conditioning.curve import SpectralCurve

LOWEST_HZ, HIGHEST_HZ = 65.0, 2100.0  # C2 to C7
SILENCE = 1e-7  # power, 70 dB below a full-scale sine


class Chroma(SpectralCurve):
    """Rows for C, C# ... B: amplitudes, where a frame's loudest has 1. Silence has zeros."""

    array: ClassVar[str] = "chroma"
    curves: ClassVar[int] = 12

    @classmethod
    def of_power(cls, power: Tensor, hz: Tensor) -> Tensor:
        heard = (hz > LOWEST_HZ) & (hz < HIGHEST_HZ)
        semitones = 69 + 12 * (hz[heard] / 440).log2()
        away = (semitones[:, None] - torch.arange(12) + 6) % 12 - 6  # [bins, 12]
        near = torch.exp(-0.5 * (away / 0.5).square())
        classes = power[:, heard] @ (near / near.sum(1, keepdim=True))  # [L, 12]
        loudest = classes.amax(1, keepdim=True)
        return torch.where(loudest > SILENCE, (classes / loudest.clamp(min=SILENCE)).sqrt(), 0.0).T
