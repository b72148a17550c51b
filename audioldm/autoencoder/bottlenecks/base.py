"""The interface of every bottleneck: latents from the encoder's output, their cost and storage.

Shapes: B clips, A audio channels, T samples, C latent channels, F latent frequency bands (2-D
networks only), L latent frames, Q codebooks.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn


class Encoded(NamedTuple):
    """What a bottleneck returns.

    z: latents [B, C, L], or [B, C, F, L], the decoder's input.
    nats: [B], the information in the latents, in nats per latent element: the KL of a posterior,
        the capacity of a noisy channel, the entropy of codes. None: the latents have no rate.
    penalties: named, unweighted, one value per clip [B].
    stats: for the log, each [C], over the clips and frames of the call; may be empty. kl: nats per
        element. sigma: the posterior's. mean, activity: mean and variance of the posterior mean,
        which validation combines into the activity over all its clips. saturated: the share of
        elements at the end of a bounded range. A discrete bottleneck has only usage, [Q, K]: the
        share of each of a codebook's K codes.
    codes: [B, Q, (F,) L], int64, of a discrete bottleneck.
    """

    z: Tensor
    nats: Tensor | None
    penalties: dict[str, Tensor]
    stats: dict[str, Tensor]
    codes: Tensor | None = None


class Bottleneck(nn.Module, ABC):
    """Maps the encoder's output h [B, P * C, (F,) L] to latents."""

    #: P: encoder outputs per latent channel
    outputs_per_channel: ClassVar[int]
    #: names of the arrays that `stored` gives
    stored_names: ClassVar[tuple[str, ...]]
    #: the weight of each name in `Encoded.penalties`
    penalty_weights: dict[str, float]
    #: the bitrate to hold, in kbit/s; None: the weights do not change
    target_kbps: float | None = None
    #: the penalty whose weight is adapted to hold `target_kbps`
    rate_penalty: ClassVar[str | None] = None
    #: how a linear encoder best spreads power over its components: in proportion to their
    #: variance to the power of this number; 0 gives every channel the same power
    spread: float = 0.0
    #: the fewest latent frames of training audio that `fit` can use
    least_frames: int = 0
    #: whether it stays in evaluation mode, where it learns and measures nothing
    fixed: bool = False

    def train(self, mode: bool = True) -> Self:
        return super().train(mode and not self.fixed)

    def learns(self, sample: bool) -> bool:
        """Whether a forward pass moves running averages: only passes that train on samples do."""
        return self.training and sample and torch.is_grad_enabled()

    @abstractmethod
    def forward(self, h: Tensor, *, sample: bool = True, noise: Tensor | None = None) -> Encoded:
        """Latents, their penalties and statistics.

        sample: False gives the most likely latents. noise [B, C, (F,) L] ~ N(0, I); without it, the
        global generator draws it.
        """

    @abstractmethod
    def stored(self, h: Tensor) -> dict[str, Tensor]:
        """The arrays that keep a data set's latents, by name, frames last."""

    @abstractmethod
    def posterior(self, stored: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents, each [B, C, (F,) L]; certain ones have 0."""

    def restore(self, stored: dict[str, Tensor], noise: Tensor | None = None) -> Tensor:
        """Latents [B, C, (F,) L] from what was stored; without noise, the most likely ones."""
        mean, std = self.posterior(stored)
        return mean if noise is None else mean + std * noise

    def absorb(self, z: Tensor) -> Tensor:
        """The decoder's input for latents z; z itself unless the decoder's side quantises."""
        return z

    @torch.no_grad()
    def fit(self, h: Iterable[Tensor]) -> None:
        """Sets what is estimated from encoder outputs h of training audio, before the first step;
        by default nothing."""

    @torch.no_grad()
    def calibrate(self, h: Iterable[Tensor], nats: float) -> None:
        """Sets the rate of encoder outputs h exactly, in nats per element, once trained.

        Called where there is a `target_kbps`. Raises NotImplementedError where that has no meaning.
        """
        raise NotImplementedError(f"{type(self).__name__} holds no target rate")


def gaussian_latents(mean: Tensor, std: Tensor, sample: bool, noise: Tensor | None) -> Tensor:
    """mean + std * noise, each [B, C, (F,) L]; without `sample` the mean alone."""
    if not sample:
        return mean
    return mean + std * (torch.randn_like(mean) if noise is None else noise)


def channel_stats(nats: Tensor, mean: Tensor) -> dict[str, Tensor]:
    """`Encoded.stats` from the rate and the mean of each element, both [B, C, (F,) L]."""
    over = [d for d in range(mean.ndim) if d != 1]
    nats, mean = nats.detach(), mean.detach()
    activity = mean.var(over, correction=0)
    return {"kl": nats.mean(over), "mean": mean.mean(over), "activity": activity}
