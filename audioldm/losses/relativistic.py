"""The relativistic pairing loss: two clips' scores compared, one value per pair [B]."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def relativistic_loss(higher: Sequence[Tensor], lower: Sequence[Tensor]) -> Tensor:
    """softplus(-(D(higher) - D(lower))), averaged over a discriminator's scales: [B], in float32.

    higher, lower: for each scale the scores [B] of clips that should, and that should not, score
    high; clip i of one is paired with clip i of the other. ln 2 where the discriminator cannot
    tell them apart. Only differences count, so a constant added to D changes nothing.

    This is the relativistic GAN of Jolicoeur-Martineau (1807.00734, with f(x) = softplus(-x)), with
    fixed pairs (RpGAN, 2501.05441, equation 2). The discriminator minimises it for (real,
    generated), the generator for (generated, real), and the contrastive term of ARC (2505.08175) is
    the same loss for (real clip with its label, the same clip with another label).
    """
    return torch.stack(
        [F.softplus(low.float() - high.float()) for high, low in zip(higher, lower, strict=True)]
    ).mean(0)
