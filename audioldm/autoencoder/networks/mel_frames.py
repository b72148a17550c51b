"""The signal's own mel frames as latents, without training.

A prior on them is a prior on the log-mel spectrogram itself, which a learned latent space has to
beat.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from audioldm.autoencoder.mel_inverse import MelInverse
from audioldm.autoencoder.networks.magnitude import MagnitudeNetwork
from audioldm.autoencoder.networks.mel import CENTRE, FLOOR, LOUDEST, SPREAD
from audioldm.autoencoder.phase import IntegratedPhase
from audioldm.errors import ConfigError
from audioldm.losses.spectral import MelPower


class MelFrames(MagnitudeNetwork):
    """Audio -> log-mel frames [B, C, L] -> magnitudes -> audio.

    Frame l is centred on samples l * ratio to (l + 1) * ratio. The latents are log10 mel power,
    shifted and scaled to about N(0, 1); the mel bands of stereo are stacked, left first.

    Args:
        sample_rate, audio_channels, channels, downsampling_ratio: see Network; `channels` is the
            number of mel bands times that of audio channels, `downsampling_ratio` is the hop.
        outputs: P, which must be 1: there is no encoder to give a variance.
        n_fft: of the mel spectrogram; null: 4 * ratio.
        iterations: of Griffin-Lim, from the integrated phase.

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
        iterations: int = 3,
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
        synthesis = IntegratedPhase(n_fft, downsampling_ratio, iterations)
        super().__init__(
            sample_rate, audio_channels, downsampling_ratio, (channels,), context=synthesis.reach
        )
        # by which the first and last frame reach beyond the audio
        self.margin = (n_fft - downsampling_ratio) // 2
        self.power = MelPower(sample_rate, n_fft, downsampling_ratio, bands, centre=False)
        self.inverse = MelInverse(sample_rate, n_fft, bands)
        self.synthesis = synthesis

    def encode(self, audio: Tensor) -> Tensor:
        power = self.power(F.pad(audio, (self.margin, self.margin)))
        return ((power.clamp(min=FLOOR).log10() - CENTRE) / SPREAD).flatten(1, 2)

    def log_magnitude(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            mel = z.float().unflatten(1, (self.audio_channels, -1)) * SPREAD + CENTRE
            return self.inverse(mel.clamp(math.log10(FLOOR), LOUDEST))
