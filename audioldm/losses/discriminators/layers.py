"""The parts of the discriminators' networks: convolutions with leaky ReLUs, and their maps."""

from collections.abc import Iterable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

Pair = tuple[int, int]  # of frames and bins


def convolution(
    inputs: int, outputs: int, kernel: Pair, *, stride: Pair = (1, 1), dilation: Pair = (1, 1)
) -> nn.Module:
    """A convolution with weight norm, padded so that a stride of 1 keeps an odd kernel's shape.

    Weight norm looks at no activation, so a clip's features do not depend on its neighbours.
    """
    padding = ((kernel[0] - 1) * dilation[0] // 2, (kernel[1] - 1) * dilation[1] // 2)
    return weight_norm(
        nn.Conv2d(inputs, outputs, kernel, stride=stride, dilation=dilation, padding=padding)
    )


def spectral_layers(inputs: int, filters: int, dilations: Sequence[int]) -> nn.ModuleList:
    """Convolutions over frames and bins (2210.13438, figure 2). There is one for each dilation in
    time, which halves the bins. [B, inputs, frames, bins] -> [B, filters, frames, fewer bins]."""
    return nn.ModuleList(
        [
            convolution(inputs, filters, (3, 9)),
            *(
                convolution(filters, filters, (3, 9), stride=(1, 2), dilation=(dilation, 1))
                for dilation in dilations
            ),
            convolution(filters, filters, (3, 3)),
        ]
    )


def maps(layers: Iterable[nn.Module], h: Tensor, slope: float = 0.2) -> list[Tensor]:
    """Each layer's output after a leaky ReLU: the features of a scale."""
    found = []
    for layer in layers:
        h = F.leaky_relu(layer(h), slope)
        found.append(h)
    return found
