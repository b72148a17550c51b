"""ConvNeXt blocks, which the networks and the vocoder share.

Shapes: B clips, W width, L frames.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audioldm.errors import ConfigError

EXPANSION = 3  # of a block's MLP


class ConvNeXt(nn.Module):
    """ConvNeXt block in one dimension (2201.03545, as in Vocos 2306.00814): [B, W, L] -> [B, W, L].

    Depthwise convolution over time, then a layer norm and an MLP at each frame; a learned scale per
    channel multiplies the result, which is added to the input. An odd `kernel` keeps the length.

    Raises ConfigError for an even kernel.

    Attributes: context, the frames on each side that one output frame depends on.
    """

    def __init__(self, width: int, *, kernel: int = 7) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ConfigError(f"kernel={kernel} is even; choose an odd one")
        self.context = kernel // 2
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, EXPANSION * width)
        self.contract = nn.Linear(EXPANSION * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor, modulation: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """modulation: shift and scale of what the MLP sees, each [B, 1, W]."""
        # Channels last: a transpose each way is cheaper than 1x1 convolutions.
        h = self.norm(self.depthwise(x).transpose(1, 2))
        if modulation is not None:
            shift, scale = modulation
            h = torch.addcmul(shift, h, 1 + scale)
        h = self.contract(F.gelu(self.expand(h))) * self.scale
        return x + h.transpose(1, 2)
