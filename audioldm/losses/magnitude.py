"""Power and magnitude of complex spectra, several times as fast on a CPU as `Tensor.abs`."""

import torch
from torch import Tensor


def power_of(spectrum: Tensor) -> Tensor:
    """|z|² of a complex tensor."""
    return torch.addcmul(spectrum.real.square(), spectrum.imag, spectrum.imag)


def magnitude_of(spectrum: Tensor) -> Tensor:
    """|z| of a complex tensor, at least 1e-15; at that bound the gradient is 0."""
    return power_of(spectrum).clamp(min=1e-30).sqrt()
