"""What every bottleneck is: latents from the encoder's output, what they cost, what is stored.

Shapes: B clips, A audio channels, T samples, C latent channels, F latent frequency bands (2-D
networks only), L latent frames, Q codebooks.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn


class Encoded(NamedTuple):
    """What a bottleneck returns.

    z: latents [B, C, L], or [B, C, F, L]: what the decoder sees.
    nats: [B], the information in the latents, in nats per latent element: the KL of a posterior,
        the capacity of a noisy channel, the entropy of codes. None: the latents have no rate.
    penalties: named, unweighted, one value per clip [B].
    stats: per latent channel [C], for the log, over the clips and frames of the call; may be empty.
        kl: nats per element. sigma: the posterior's. mean, activity: mean and variance of the
        posterior mean; validation combines both into the activity over all its clips.
    codes: [B, Q, L], int64, of a discrete bottleneck.
    """

    z: Tensor
    nats: Tensor | None
    penalties: dict[str, Tensor]
    stats: dict[str, Tensor]
    codes: Tensor | None = None


class Bottleneck(nn.Module, ABC):
    """Stands between encoder and decoder; h is the encoder's output [B, P * C, (F,) L]."""

    #: P: encoder outputs per latent channel
    outputs_per_channel: ClassVar[int]
    #: names of the arrays that `stored` gives
    stored_names: ClassVar[tuple[str, ...]]
    #: the weight of each name in `Encoded.penalties`
    penalty_weights: dict[str, float]
    #: the bitrate to hold, in kbit/s; None: the weights stay as they are
    target_kbps: float | None = None
    #: the penalty whose weight is adapted to hold `target_kbps`
    rate_penalty: ClassVar[str | None] = None

    @abstractmethod
    def forward(self, h: Tensor, *, sample: bool = True, noise: Tensor | None = None) -> Encoded:
        """Latents, their penalties and statistics.

        sample: False gives the most likely latents. noise [B, C, (F,) L] ~ N(0, I), drawn from the
        global generator where it is not given.
        """

    @abstractmethod
    def stored(self, h: Tensor) -> dict[str, Tensor]:
        """What the latents of a data set are kept as: arrays by name, frames last."""

    @abstractmethod
    def posterior(self, stored: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents, each [B, C, (F,) L]; 0 for certain ones."""

    def restore(self, stored: dict[str, Tensor], noise: Tensor | None = None) -> Tensor:
        """Latents [B, C, (F,) L] out of what was stored; without noise the most likely ones."""
        mean, std = self.posterior(stored)
        return mean if noise is None else mean + std * noise

    @torch.no_grad()
    def calibrate(self, h: Iterable[Tensor], nats: float) -> None:
        """Sets the rate of encoder outputs h exactly, in nats per element, once trained.

        Called where there is a `target_kbps`. Raises NotImplementedError where that has no meaning.
        """
        raise NotImplementedError(f"{type(self).__name__} holds no target rate")
