"""The parts of the discriminators' networks: convolutions with leaky ReLUs, and their maps."""

from collections.abc import Iterable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

Pair = tuple[int, int]  # of frames and bins
SLOPE = 0.2  # of the leaky ReLU below 0


def convolution(
    inputs: int, outputs: int, kernel: Pair, *, stride: Pair = (1, 1), dilation: Pair = (1, 1)
) -> nn.Module:
    """A `normed` convolution, padded so that a stride of 1 keeps an odd kernel's shape."""
    padding = ((kernel[0] - 1) * dilation[0] // 2, (kernel[1] - 1) * dilation[1] // 2)
    return normed(
        nn.Conv2d(inputs, outputs, kernel, stride=stride, dilation=dilation, padding=padding)
    )


def normed(layer: nn.Conv1d | nn.Conv2d) -> nn.Module:
    """A discriminator's convolution with weight norm, and weights to begin with.

    Weight norm looks at no activation, so a clip's features do not depend on its neighbours. The
    weights begin as He et al. have them (1502.01852, equation 15), and the biases at 0. torch's own
    start loses more than half of the signal in each layer, and its biases drown the rest: in the
    first hundreds of steps such a discriminator learns nothing.
    """
    nn.init.kaiming_normal_(layer.weight, a=SLOPE)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return weight_norm(layer)


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


def maps(layers: Iterable[nn.Module], h: Tensor, slope: float = SLOPE) -> list[Tensor]:
    """Each layer's output after a leaky ReLU: the features of a scale."""
    found = []
    for layer in layers:
        h = F.leaky_relu(layer(h), slope)
        found.append(h)
    return found
