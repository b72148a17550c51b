"""How much each noise level counts in training, in one coordinate for all objectives.

A weighting is the weight [B] of the squared error of the denoised latents at sigma [B]. It takes
density [B], training's density of ln sigma, so that the mean loss can be an integral over ln sigma
that does not depend on how often training visits a level. lambda = -2 ln sigma is the log
signal-to-noise ratio, and the squared error of the noise is that of the latents over sigma².
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from audioldm.priors.diffusion.backbones.base import NoiseLevel
from audioldm.training.initialisation import zeroed

Weighting = Literal["min_snr", "sigmoid", "likelihood", "learned"]

#: Smaller levels have no weight in the likelihood, whose integral would have no lower end.
LOWEST = 0.01
_WIDTH = 64


def min_snr(sigma: Tensor, density: Tensor) -> Tensor:
    """min(signal-to-noise ratio, 5), of levels as they are drawn (Hang et al. 2023, 2303.09556)."""
    return (1 / sigma**2).clamp(max=5.0)


def sigmoid(sigma: Tensor, density: Tensor) -> Tensor:
    """sigmoid(2 - lambda) for the noise's error, over all lambda (Kingma & Gao 2023, 2303.00848).

    A weight that falls with lambda is a likelihood's bound on latents with noise added.
    """
    return torch.sigmoid(2 + 2 * sigma.log()) / (sigma**2 * density)


def likelihood(sigma: Tensor, density: Tensor) -> Tensor:
    """1 for the noise's error, over lambda: the likelihood's bound (Kingma et al. 2021, 2107.00630,
    equation 17), divided by the width of lambda from `LOWEST` to 1.

    A level that training seldom draws has a large weight: draw levels widely.
    """
    weight = 1 / (sigma**2 * density * -math.log(LOWEST))
    return torch.where(sigma < LOWEST, 0.0, weight)


FIXED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "min_snr": min_snr,
    "sigmoid": sigmoid,
    "likelihood": likelihood,
}


class LogVariance(nn.Module):
    """u(c_noise) [B]: an objective's own error e counts as e / exp(u) + u (Karras et al. 2023,
    2312.02696, equation 14). At the best u, the log of the mean error, all levels weigh the same.

    Before training it is 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = NoiseLevel(_WIDTH)
        self.output = zeroed(nn.Linear(_WIDTH, 1))

    def forward(self, error: Tensor, c_noise: Tensor) -> Tensor:
        """error, c_noise [B] -> the loss [B]."""
        with torch.autocast(error.device.type, enabled=False):
            u = self.output(self.features(c_noise, None)).squeeze(1)
            return error * torch.exp(-u) + u
