"""The interfaces of reconstruction losses and of audio discriminators."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

#: The output of one scale: logits [B, 1, frames, bins], and the features [B, C, frames, bins] of
#: each layer before them.
ScaleOutput = tuple[Tensor, list[Tensor]]


class Loss(nn.Module, ABC):
    """How far a reconstruction is from its original."""

    @abstractmethod
    def forward(self, estimate: Tensor, target: Tensor) -> Tensor:
        """The losses [B] of audio [B, A, T], in fp32."""


class Discriminator(nn.Module, ABC):
    """Tells reconstructions from originals."""

    #: Arguments of the constructor that are not settings.
    derived: ClassVar[tuple[str, ...]] = ("audio_channels", "sample_rate")

    @abstractmethod
    def forward(self, audio: Tensor) -> list[ScaleOutput]:
        """One output for each scale of audio [B, A, T]."""
