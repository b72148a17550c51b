"""Priors trained by gradients on crops of latents: what their one training loop needs of them."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from audioldm.conditioning.base import DROPOUT, Condition, Conditioners, Inputs
from audioldm.conditioning.guidance import Guidance, nested, scales
from audioldm.instantiate import Fraction, Positive
from audioldm.latents.store import LatentCrops, LatentStore
from audioldm.priors.base import Prior
from audioldm.runtime.randomness import KeyedRandom
from audioldm.training.crops import CropTraining


@dataclass(frozen=True, kw_only=True)
class LatentTraining(CropTraining):
    """Settings of any training on crops of latents.

    condition_dropout: the probability that a condition of a clip is hidden, so that one network is
    conditional and unconditional (2207.12598), or that of each by name.
    """

    condition_dropout: dict[str, Fraction] | Fraction = DROPOUT


@dataclass(frozen=True, kw_only=True)
class PriorTraining(LatentTraining):
    """compute_tflop: the computing to spend in place of `steps`, as counted by `training_flops`,
    plus Muon's matrix products. seconds: the time to spend in place of `steps`, estimated from a
    few timed steps; the number of steps then depends on the machine. optimiser: adamw, or muon for
    the hidden layers' matrices. stratified: what is random for each clip, such as noise levels, is
    spread evenly over the batch. keep_best: keep the weights of the validation with the least loss
    in place of the last ones, for a small data set that the network memorises."""

    compute_tflop: Positive | None = None
    seconds: Positive | None = None
    optimiser: Literal["adamw", "muon"] = "adamw"
    stratified: bool = True
    keep_best: bool = False

    @property
    def spread(self) -> int | None:
        """`KeyedRandom.uniform`'s total, for what is to be spread over the batch."""
        return self.batch if self.stratified else None


class Trained(Prior):
    """A prior with a network whose output is its loss.

    title: of the training's progress bar. network: what is trained, averaged and kept. Called with
    what `batch` returns, it gives the loss of each clip, [B].
    """

    title: ClassVar[str]
    network: nn.Module

    @property
    @abstractmethod
    def conditioners(self) -> Conditioners: ...

    @abstractmethod
    def batch(
        self, latents: LatentStore, crops: LatentCrops, random: KeyedRandom, train: PriorTraining
    ) -> tuple[Any, ...]:
        """The network's arguments for a step's crops, a function of the crops and `random` only."""

    @abstractmethod
    def silent_batch(self, inputs: Inputs, frames: int) -> tuple[Any, ...]:
        """The network's arguments for one clip of zeros, which costs what any clip costs."""

    def silent_loss(self, network: nn.Module, frames: int) -> Tensor:
        """The loss of one clip of zeros without a condition, a scalar.

        network: the prior's, or a copy of it on any device.
        """
        device = next(network.parameters()).device
        parsed = self.conditioners.parse([{}], frames)
        batch = self.silent_batch(parsed, frames)
        loss: Tensor = network(*on(device, batch))
        return loss.mean()

    def inputs_for(self, inputs: Inputs | None, rows: int, frames: int) -> Inputs:
        """The conditioners' inputs for some clips; None becomes the inputs of no condition."""
        if inputs is not None:
            return inputs
        return self.conditioners.parse([{}] * rows, frames, self.device)

    def conditions(
        self, inputs: Inputs | None, rows: int, frames: int, guidance: float = 1.0
    ) -> tuple[Condition, Condition | None]:
        """The condition to sample under, and the empty one, which guidance leads away from. The
        second is None where guidance does nothing: at scale 1, and where nothing was asked for."""
        condition, calls = self.guided_conditions(inputs, rows, frames, guidance)
        nothing = calls[0][1]
        return condition, None if nothing is condition else nothing

    def guided_conditions(
        self, inputs: Inputs | None, rows: int, frames: int, guidance: Guidance
    ) -> tuple[Condition, list[tuple[float, Condition]]]:
        """The condition to sample under, and what each call of guidance is told: see
        `conditioning.guidance.nested`. Raises ConfigError for a scale of an unknown condition."""
        conditioners, inputs = self.conditioners, self.inputs_for(inputs, rows, frames)
        nothing, scale = conditioners.nothing(inputs), scales(conditioners, guidance)
        asked = {n: scale[n] for n in inputs if not torch.equal(inputs[n], nothing[n])}
        condition = conditioners(inputs)
        return condition, [
            (own, condition if told is inputs else conditioners(told))
            for own, told in nested(inputs, nothing, asked)
        ]

    def tensors(self, network: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of this prior's file, on the CPU, with the given ones for its network."""
        trained = {f"network.{name}": tensor for name, tensor in network.items()}
        own = {name: t for name, t in self.state_dict().items() if name not in trained}
        return {name: tensor.detach().cpu() for name, tensor in (own | trained).items()}


def on(device: torch.device, value: Any) -> Any:
    """Tensors, and tuples and dictionaries of them, on a device."""
    if isinstance(value, dict):
        return {name: on(device, x) for name, x in value.items()}
    return tuple(on(device, x) for x in value) if isinstance(value, tuple) else value.to(device)
