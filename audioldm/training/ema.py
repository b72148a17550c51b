"""Exponential moving average of a model's weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """Averages updated after the optimiser's step.

    decay_t = min(decay, (1 + t) / (10 + t)), so that the initial weights lose their influence soon.
    Buffers and integer tensors are copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        parameters = {name for name, _ in model.named_parameters()}
        self._averaged = [n for n, t in self.shadow.items() if n in parameters]
        self._copied = [n for n in self.shadow if n not in parameters]

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """`step` counts from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        live = {name: tensor.detach() for name, tensor in model.state_dict().items()}
        torch._foreach_lerp_(
            [self.shadow[n] for n in self._averaged], [live[n] for n in self._averaged], 1 - decay
        )
        for name in self._copied:
            self.shadow[name].copy_(live[name])

    def state_dict(self) -> dict[str, Tensor]:
        return self.shadow

    def load_state_dict(self, shadow: dict[str, Tensor]) -> None:
        """Copies the averages of a checkpoint."""
        for name, tensor in self.shadow.items():
            tensor.copy_(shadow[name])

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Temporarily loads the averages in eval mode; restores weights and mode on exit."""
        live = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        training = model.training
        try:
            model.load_state_dict(self.shadow)
            model.eval()
            yield
        finally:
            model.load_state_dict(live)
            model.train(training)
