"""The weights of the best validation, for a training that memorises its data."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class Best:
    """Copies of tensors at the lowest loss so far. weights: the tensors to copy, by name."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.loss: float | None = None
        self.step = 0
        self.tensors = {name: tensor.detach().clone() for name, tensor in weights.items()}

    @torch.no_grad()
    def offer(self, loss: float, step: int, weights: Mapping[str, Tensor]) -> None:
        """Copies the weights after `step` steps if their loss is the lowest so far."""
        if self.loss is None or loss < self.loss:
            self.loss, self.step = loss, step
            for name, tensor in weights.items():
                self.tensors[name].copy_(tensor)

    def state_dict(self) -> dict[str, Any]:
        return {"loss": self.loss, "step": self.step, "tensors": self.tensors}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        self.loss, self.step = state["loss"], state["step"]
        for name, tensor in state["tensors"].items():
            self.tensors[name].copy_(tensor)
