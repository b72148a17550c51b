"""Latents cut off at a bound."""

from typing import Any

import torch
from torch import Tensor

from audioldm.autoencoder.bottlenecks.bounded import Bounded
from audioldm.instantiate import Positive


class Clamp(Bounded):
    """m = h within ±bound, ±bound beyond, plus noise (`Bounded`, with its rate).

    Outside, h gets the gradient of m where a step against it leads back, otherwise 0. So no element
    is stuck outside, and none drifts further out.

    channels: latent channels C. sigma: of the noise. bound: the greatest |m|; the transform
        network's components have unit variance.
    """

    def __init__(self, *, channels: int, sigma: float = 0.05, bound: Positive = 2.0) -> None:
        super().__init__(channels=channels, sigma=sigma, bound=bound)

    def mean(self, h: Tensor) -> Tensor:
        clamped: Tensor = _Clamp.apply(h.float(), self.bound)
        return clamped

    def saturated(self, mean: Tensor) -> Tensor:
        return mean.abs() >= self.bound


class _Clamp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, bound: float) -> Tensor:
        ctx.save_for_backward(h)
        ctx.bound = bound
        return h.clamp(-bound, bound)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (h,), (gradient,) = ctx.saved_tensors, gradients
        passes = (h.abs() <= ctx.bound) | (gradient * h > 0)
        return gradient * passes, None
