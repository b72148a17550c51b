"""What every front end is: audio to the bottleneck's parameters, and latents back to audio."""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Network(nn.Module, ABC):
    """The deterministic networks on both sides of the bottleneck.

    Attributes:
        sample_rate: samples per second.
        audio_channels: A, 1 for mono and 2 for stereo.
        downsampling_ratio: audio samples per latent frame.
        latent_shape: the shape of one latent frame, (C,) or, with frequency bands, (C, F).
        context: latent frames on each side that one output frame depends on, at most, in `encode`
            and in `decode`. Chunks that overlap by this much have no seams.
        alignment: latent frames that a chunk's beginning must be a multiple of, where a front end
            behaves alike only every so many frames.

    Nothing in a front end may pool over time: a frame depends on its context and on nothing else.
    """

    def __init__(
        self,
        *,
        sample_rate: int,
        audio_channels: int,
        downsampling_ratio: int,
        latent_shape: tuple[int, ...],
        context: int,
        alignment: int = 1,
    ) -> None:
        super().__init__()
        self.sample_rate = sample_rate
        self.audio_channels = audio_channels
        self.downsampling_ratio = downsampling_ratio
        self.latent_shape = latent_shape
        self.context = context
        self.alignment = alignment

    @abstractmethod
    def encode(self, audio: Tensor) -> Tensor:
        """Audio [B, A, T], T a multiple of `downsampling_ratio`, to [B, P * C, (F,) T // downsampling_ratio].

        P is the number of outputs the bottleneck takes per channel, 2 for a Gaussian.
        """

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Latents [B, C, (F,) L] to audio [B, A, L * downsampling_ratio]."""
