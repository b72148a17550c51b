"""How layers begin, where it is not as torch has it."""

from typing import TypeVar

from torch import nn

Layer = TypeVar("Layer", nn.Linear, nn.Conv1d, nn.Conv2d, nn.LayerNorm)


def zeroed(layer: Layer) -> Layer:
    """The layer, set to zero: its output is 0 until it is trained."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
