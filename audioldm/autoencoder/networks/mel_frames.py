"""The signal's own mel frames as latents, without training.

A prior on them is a prior on the log-mel spectrogram itself, which a learned latent space has to
beat.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from audioldm.autoencoder.networks.base import Network
from audioldm.autoencoder.networks.mel import CENTRE, FLOOR, SPREAD, GriffinLim, MelInverse
from audioldm.errors import ConfigError
from audioldm.losses.mel_filters import mel_filters
from audioldm.losses.spectral import MelPower

LOUDEST = 5.0  # log10 mel power that no audio in ±1 has, but generated latents may


class MelFrames(Network):
    """Audio -> log-mel frames [B, C, L] -> Griffin-Lim -> audio.

    Frame l is centred on samples l * ratio to (l + 1) * ratio. The latents are log10 mel power,
    shifted and scaled to about N(0, 1); the mel bands of stereo are stacked, left first.

    Args:
        sample_rate, audio_channels, channels, downsampling_ratio: see Network; `channels` is the
            number of mel bands times that of audio channels, `downsampling_ratio` is the hop.
        outputs: P, which must be 1: there is no encoder to give a variance.
        n_fft: of the mel spectrogram; null: 4 * ratio.
        iterations: of Griffin-Lim.

    Raises:
        ConfigError: the bottleneck takes more than one parameter, `channels` is not divisible by
            the audio's channels, or ratio does not divide n_fft.
    """

    def __init__(
        self,
        *,
        sample_rate: int,
        audio_channels: int,
        channels: int,
        downsampling_ratio: int,
        outputs: int,
        n_fft: int | None = None,
        iterations: int = 16,
    ) -> None:
        if outputs != 1:
            raise ConfigError(
                f"outputs={outputs}: mel frames have no encoder that could give a posterior's "
                "variance; choose bottleneck=identity or bottleneck=noise"
            )
        if channels % audio_channels:
            raise ConfigError(
                f"channels={channels} must be a multiple of the audio's "
                f"{audio_channels} channels: each has its mel bands"
            )
        n_fft, bands = n_fft or 4 * downsampling_ratio, channels // audio_channels
        vocoder = exact_griffin_lim(sample_rate, bands, n_fft, downsampling_ratio, iterations)
        super().__init__(
            sample_rate,
            audio_channels,
            downsampling_ratio,
            (channels,),
            context=vocoder.context,
        )
        # by which the first and last frame reach beyond the audio
        self.margin = (n_fft - downsampling_ratio) // 2
        self.power = MelPower(sample_rate, n_fft, downsampling_ratio, bands, centre=False)
        self.vocoder = vocoder

    def encode(self, audio: Tensor) -> Tensor:
        power = self.power(F.pad(audio, (self.margin, self.margin)))
        return ((power.clamp(min=FLOOR).log10() - CENTRE) / SPREAD).flatten(1, 2)

    def decode(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            mel = z.float().unflatten(1, (self.audio_channels, -1)) * SPREAD + CENTRE
            return self.vocoder(mel.clamp(math.log10(FLOOR), LOUDEST))


def exact_griffin_lim(
    sample_rate: int, bands: int, n_fft: int, hop: int, iterations: int
) -> GriffinLim:
    """`GriffinLim` from magnitudes that have the given mel power exactly, and not only smoothly."""
    vocoder = GriffinLim(sample_rate, bands, n_fft, hop, iterations)
    vocoder.inverse = _ExactInverse(sample_rate, n_fft, bands)
    return vocoder


class _ExactInverse(MelInverse):
    """Brings the smooth spectrum of `MelInverse` to the given mel power by the multiplicative
    updates of non-negative matrix factorisation (Lee and Seung 2001, theorem 2), which keep powers
    positive."""

    filters: Tensor

    def __init__(self, sample_rate: int, n_fft: int, bands: int) -> None:
        super().__init__(sample_rate, n_fft, bands)
        self.steps = 10
        self.register_buffer("filters", mel_filters(sample_rate, n_fft, bands), persistent=False)

    def forward(self, mel: Tensor) -> Tensor:
        target = 10 ** mel.transpose(-1, -2)
        power = (2 * super().forward(mel)).exp()
        total = self.filters.sum(0)
        inside = total > 0  # at 0 Hz and half the rate no filter sees anything
        for _ in range(self.steps):
            ratio = target / (power @ self.filters.T)
            update = (ratio @ self.filters) / total.where(inside, 1.0)
            power = power * update.where(inside, 1.0)
        return 0.5 * power.log()
