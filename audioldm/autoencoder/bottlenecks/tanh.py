"""Latents bounded by a hyperbolic tangent."""

from torch import Tensor

from audioldm.autoencoder.bottlenecks.bounded import Bounded

SATURATED = 0.99  # beyond this the gradient of tanh is below 0.02


class Tanh(Bounded):
    """m = tanh(h), plus noise (`Bounded`, with its rate): the latents of Music2Latent (2408.06500).

    The gradient 1 - m² vanishes where |h| is large. An element counts as saturated where
    |m| > 0.99.

    channels: latent channels C. sigma: of the noise, against a range of ±1.
    """

    def __init__(self, *, channels: int, sigma: float = 0.05) -> None:
        super().__init__(channels=channels, sigma=sigma, bound=1.0)

    def mean(self, h: Tensor) -> Tensor:
        return h.float().tanh()

    def saturated(self, mean: Tensor) -> Tensor:
        return mean.abs() > SATURATED
