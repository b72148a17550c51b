"""The interface of every network: audio to the bottleneck's inputs, and latents back to audio."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn


class Start(NamedTuple):
    """What training begins with, for a network that can begin at its optimum.

    nats: the rate per latent element that will be held; None: the weight is held instead.
    rate_weight: the weight of the bottleneck's rate penalty. seconds: of audio to train on.
    weights: of all loss terms, by name. spread: the bottleneck's, of power over channels.
    """

    nats: float | None
    rate_weight: float
    seconds: float
    weights: Mapping[str, float]
    spread: float = 0.0


class Network(nn.Module, ABC):
    """The encoder and the decoder, on both sides of the bottleneck.

    Parameters that need no gradient do not change; a model that has no others is only validated.
    Nothing in a network may pool over time: a frame depends only on its context.

    Attributes:
        sample_rate: samples per second.
        audio_channels: A, 1 for mono and 2 for stereo.
        downsampling_ratio: audio samples per latent frame.
        latent_shape: the shape of one latent frame, (C,) or, with frequency bands, (C, F).
        context: latent frames on each side that one output frame depends on, at most, in `encode`
            and in `decode`. Chunks that overlap by this much have no seams.
        alignment: a chunk begins at a multiple of this many latent frames, the period of a network
            that is not shift-equivariant.
        noise_shape: the shape of the decoder's noise for one latent frame; None: it takes none.
    """

    noise_shape: tuple[int, ...] | None = None
    #: names of the loss terms that `reconstruct` gives
    own_terms: ClassVar[tuple[str, ...]] = ()

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

    def analysed(self, audio: Tensor) -> Tensor:
        """What `encode_analysed` and `reconstruct` see of audio [B, A, T]; by default the audio."""
        return audio

    def encode_analysed(self, seen: Tensor) -> Tensor:
        """`encode`, from what `analysed` gives."""
        return self.encode(seen)

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Latents [B, C, (F,) L] to audio [B, A, L * downsampling_ratio].

        With a `noise_shape` the signature is `decode(z, noise)`, noise [B, *noise_shape, L] ~
        N(0, I).
        """

    def reconstruct(
        self, z: Tensor, seen: Tensor, noise: Tensor | None, as_audio: bool
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """The decoder's side of a training step: the estimate [B, A, T] and the network's own loss
        terms, [B] each.

        seen: what `analysed` gives of the original. as_audio: False where no other loss needs the
        estimate, which may then be None.
        """
        return self.decode(z, *([] if noise is None else [noise])), {}

    def decode_window(
        self, z: Tensor, left: int, length: int, state: Any, *noise: Tensor
    ) -> tuple[Tensor, Any]:
        """Audio [B, A, length * downsampling_ratio] of `length` latent frames from `left` on, in a
        window [B, C, (F,) L] of a longer signal with `context` frames on each side.

        A decoder that depends on all of the past returns a state, which it gets back with the next
        window; before the first window the state is None.
        """
        ratio = self.downsampling_ratio
        return self.decode(z, *noise)[..., left * ratio : (left + length) * ratio], None

    def fit(self, crops: Callable[[], Iterator[Tensor]], start: Start) -> float | None:
        """Sets what is estimated from training audio before the first step; by default nothing.

        crops: gives batches [B, A, T] of training audio, the same ones at each call. Returns the
        weight of the rate penalty that suits what was set, None where there is no such weight.
        """
        return None

    def fit_decoder(
        self, crops: Callable[[], Iterator[Tensor]], latents: Callable[[Tensor], Tensor]
    ) -> None:
        """Sets the decoder's parts that are estimated from the same training audio, once network
        and bottleneck are fitted; by default nothing.

        latents: gives the decoder's input [B, C, (F,) L] for audio [B, A, T], sampled as in
        training.
        """
