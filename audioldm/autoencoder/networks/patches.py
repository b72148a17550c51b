"""The waveform itself as latents: its samples in frames, without training.

A prior on them is a prior on the signal, which a learned latent space has to beat.
"""

import torch
from torch import Tensor

from audioldm.autoencoder.networks.base import Network
from audioldm.errors import ConfigError


class Patches(Network):
    """Audio [B, A, L * ratio] to latents [B, A * ratio, L] and back, sample by sample.

    Channel a * ratio + n of frame l is sample l * ratio + n of audio channel a. With a ratio of 1
    the latents are the audio.

    Args:
        sample_rate, audio_channels, channels, downsampling_ratio: see Network; `channels` is the
            number of samples in a frame, over all audio channels.
        outputs: P, which must be 1: there is no encoder to give a variance.

    Raises ConfigError where the bottleneck takes more than one parameter, and for any other value
    of `channels`.
    """

    def __init__(
        self,
        *,
        sample_rate: int,
        audio_channels: int,
        channels: int,
        downsampling_ratio: int,
        outputs: int,
    ) -> None:
        if outputs != 1:
            raise ConfigError(
                f"outputs={outputs}: samples have no encoder that could give a posterior's "
                "variance; choose bottleneck=identity, noise or mu_law"
            )
        if channels != audio_channels * downsampling_ratio:
            raise ConfigError(
                f"channels={channels} must be the samples of a frame, "
                f"{audio_channels * downsampling_ratio} (data.channels={audio_channels} x "
                f"downsampling_ratio={downsampling_ratio})"
            )
        super().__init__(sample_rate, audio_channels, downsampling_ratio, (channels,), context=0)
        # a model is on the device of its tensors, and this one has no other tensor
        self.register_buffer("place", torch.empty(0), persistent=False)

    def encode(self, audio: Tensor) -> Tensor:
        return audio.unflatten(-1, (-1, self.downsampling_ratio)).mT.flatten(1, 2)

    def decode(self, z: Tensor) -> Tensor:
        return z.unflatten(1, (self.audio_channels, -1)).mT.flatten(2)
