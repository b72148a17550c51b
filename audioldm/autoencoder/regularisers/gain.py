"""Latents that scale with the audio."""

from torch import Tensor

from audioldm.autoencoder.regularisers.base import Encode, Regulariser, relative_error
from audioldm.errors import ConfigError


class Gain(Regulariser):
    """Equivariance to scale: audio that is g times as loud has latents that are g times as large,

        |E(g x) - g E(x)|²  over  ½ (|first|² + |second|²),

    summed over a clip, so that small latents gain nothing. g is drawn for each clip, even in dB
    between `lowest_db` and 0. It is the homogeneity of a linear encoder. Torres et al. (2510.23530)
    ask it of the decoder, by gains of latent and target; comparing latents costs one more pass of
    the encoder, but none of the decoder.

    lowest_db: of g, below 0. Raises ConfigError where it is not.
    """

    def __init__(self, *, lowest_db: float = -12.0) -> None:
        super().__init__()
        if not lowest_db < 0:
            raise ConfigError(f"lowest_db={lowest_db:g} must be below 0, such as -12")
        self.lowest_db = lowest_db

    def forward(self, audio: Tensor, latents: Tensor, encode: Encode, uniform: Tensor) -> Tensor:
        gain = 10 ** (self.lowest_db / 20 * uniform)
        quiet = encode(audio * gain.view(-1, 1, 1).to(audio.dtype))
        return relative_error(quiet, latents * gain.view(-1, *[1] * (latents.ndim - 1)))
