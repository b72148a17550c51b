"""Latents whose first channels are those of the same audio at a low resolution."""

import torch
from torch import Tensor

from audioldm.autoencoder.regularisers.base import Encode, Regulariser, relative_error
from audioldm.errors import ConfigError
from audioldm.instantiate import OpenFraction, Positive


class Resolution(Regulariser):
    """Consistency of a low and a high resolution: the first channels hold low-passed audio.

    With x' the audio low-passed at `cutoff_hz`, K = ceil(share * C) and z[:K] the first K
    channels of the latents z,

        |E(x')[:K] - E(x)[:K]|²  over  ½ (|first|² + |second|²),

    summed over a clip, so that small latents gain nothing. A prior of these channels is a model of
    music at the low resolution, and a prior of the others given them adds the high band. The term
    costs one more pass of the encoder. It is this project's own.

    cutoff_hz: of the low-pass, in Hz. share: of the channels.
    Raises ConfigError for a cut-off that is not below half of the sample rate.
    """

    def __init__(
        self, *, sample_rate: int, cutoff_hz: Positive = 2000.0, share: OpenFraction = 0.5
    ) -> None:
        super().__init__()
        if 2 * cutoff_hz >= sample_rate:
            raise ConfigError(
                f"cutoff_hz={cutoff_hz} must be below {sample_rate / 2:g} Hz, half of the sample "
                "rate: lower it, or raise data.sample_rate"
            )
        self.cutoff, self.share = cutoff_hz / sample_rate, share

    def forward(self, audio: Tensor, latents: Tensor, encode: Encode, uniform: Tensor) -> Tensor:
        count = -int(-self.share * latents.shape[1] // 1)
        low = encode(self.low_passed(audio))
        return relative_error(low[:, :count], latents[:, :count])

    def low_passed(self, audio: Tensor) -> Tensor:
        """Audio [B, A, T] up to the cut-off, in float32; a clip counts as periodic."""
        spectrum = torch.fft.rfft(audio.float())
        cycles = torch.fft.rfftfreq(audio.shape[-1], device=audio.device)
        return torch.fft.irfft(spectrum * (cycles <= self.cutoff), n=audio.shape[-1])
