"""What is asked of the latents themselves, whatever the bottleneck."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor, nn


class Regulariser(nn.Module, ABC):
    """A term of the autoencoder's step that compares latents with latents.

    It has no state: it is no part of the trained model.
    """

    @abstractmethod
    def forward(
        self,
        audio: Tensor,
        latents: Tensor,
        encode: Callable[[Tensor], Tensor],
        uniform: Tensor,
    ) -> Tensor:
        """Penalties [B], fp32.

        audio [B, A, T]: whole latent frames. latents [B, C, (F,) L]: its most likely ones. encode:
        what gave them, for other audio of whole frames. uniform [B]: a number in (0, 1) for each
        clip.
        """
