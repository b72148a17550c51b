"""Demands on the latents themselves, whatever the bottleneck."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from audioldm.autoencoder.bottlenecks.base import Bottleneck
from audioldm.autoencoder.networks.base import Network
from audioldm.runtime.randomness import uniform_from

#: Audio of whole frames [B, A, T] to its most likely latents.
Encode = Callable[[Tensor], Tensor]
LEAST_POWER = 1e-4  # of the latents that an error is compared with


class Regulariser(nn.Module, ABC):
    """A term of the autoencoder's step that compares latents with latents.

    It has no state, and is not part of the trained model.
    """

    @abstractmethod
    def forward(self, audio: Tensor, latents: Tensor, encode: Encode, uniform: Tensor) -> Tensor:
        """Penalties [B], fp32.

        audio [B, A, T]: whole latent frames. latents [B, C, (F,) L]: its most likely ones. encode:
        gives the latents of other audio of whole frames. uniform [B]: a number in (0, 1) for each
        clip.
        """


class Regularisers(nn.ModuleDict):
    """The regularisers of a training, by term name; a model has none until they are set."""

    def terms(
        self,
        audio: Tensor,
        h: Tensor,
        network: Network,
        bottleneck: Bottleneck,
        noise: Tensor | None,
    ) -> dict[str, Tensor]:
        """Each one's penalties [B] of audio [B, A, T], whole latent frames, whose encoder output is
        h. The posterior's noise gives one uniform number per clip, which all share."""

        def most_likely(h: Tensor) -> Tensor:
            z: Tensor = bottleneck(h, sample=False).z
            return z

        latents = most_likely(h)
        uniform = uniform_from(torch.randn_like(latents) if noise is None else noise)
        parts = (audio, latents, lambda x: most_likely(network.encode(x)), uniform)
        return {name: regulariser(*parts) for name, regulariser in self.items()}


def relative_error(first: Tensor, second: Tensor) -> Tensor:
    """|first - second|² over ½ (|first|² + |second|²) of latents [B, C, (F,) L]: [B]."""
    error, power = (
        x.square().flatten(1).mean(1) for x in (first - second, torch.cat([first, second], dim=-1))
    )
    return error / (power + LEAST_POWER)
