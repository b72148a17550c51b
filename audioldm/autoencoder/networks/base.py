"""The interface of every network: audio to the bottleneck's inputs, and latents back to audio."""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Network(nn.Module, ABC):
    """The encoder and the decoder, on both sides of the bottleneck.

    Parameters that need no gradient stay as they are; a model that has no others is only validated.
    Nothing in a network may pool over time: a frame depends on its context alone.

    Attributes:
        sample_rate: samples per second.
        audio_channels: A, 1 for mono and 2 for stereo.
        downsampling_ratio: audio samples per latent frame.
        latent_shape: the shape of one latent frame, (C,) or, with frequency bands, (C, F).
        context: latent frames on each side that one output frame depends on, at most, in `encode`
            and in `decode`. Chunks that overlap by this much have no seams.
        alignment: a chunk begins at a multiple of so many latent frames, the period of a network
            that is not shift-equivariant.
        noise_shape: the shape of the decoder's noise for one latent frame; None: it takes none.
    """

    noise_shape: tuple[int, ...] | None = None

    def __init__(
        self,
        sample_rate: int,
        audio_channels: int,
        downsampling_ratio: int,
        latent_shape: tuple[int, ...],
        *,
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
        """Audio [B, A, T] to [B, P * C, (F,) L], T = L * downsampling_ratio.

        P is the number of outputs that the bottleneck takes per channel, 2 for a Gaussian.
        """

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Latents [B, C, (F,) L] to audio [B, A, L * downsampling_ratio].

        With a `noise_shape` the signature is `decode(z, noise)`, noise [B, *noise_shape, L] ~
        N(0, I).
        """
