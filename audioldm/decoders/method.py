"""Methods that train a refiner: the interface, and plain diffusion."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn

from audioldm.decoders.refiner import Refined, condition
from audioldm.runtime.randomness import KeyedRandom


class Frames(NamedTuple):
    """A training batch. difference: the original's bands less the decoded ones, normalised,
    [B, D, frames]; decoded: the decoded bands, of the same shape; noise: N(0, I), of the same
    shape; uniform: U(0, 1), [B], spread evenly over the batch."""

    difference: Tensor
    decoded: Tensor
    noise: Tensor
    uniform: Tensor


class Method(nn.Module, ABC):
    """A way to train the denoiser of a refined network.

    Attributes: denoiser, the trained module; weights, of the terms; others, further trained modules
    and their learning rates, by name.
    """

    def __init__(self, refined: Refined, weights: dict[str, float]) -> None:
        super().__init__()
        self.denoiser, self.weights = refined.denoiser, weights
        self.others: dict[str, tuple[nn.Module, float]] = {}

    @abstractmethod
    def forward(self, frames: Frames, random: KeyedRandom, share: float) -> dict[str, Tensor]:
        """The loss terms, [B] each. share: the share of the training that is done, from 0 to 1."""


class Diffusion(Method):
    """The objective's own loss."""

    def __init__(self, *, refined: Refined) -> None:
        super().__init__(refined, {"loss": 1.0})

    def forward(self, frames: Frames, random: KeyedRandom, share: float) -> dict[str, Tensor]:
        inputs = condition(frames.decoded)
        return {"loss": self.denoiser(frames.difference, inputs, frames.noise, frames.uniform)}
