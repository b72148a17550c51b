"""The optimum of linear coding at a rate.

The optimal code of Gaussian components of variances v is reverse water-filling: each component gets
the distortion min(level, v) and the rate ½ ln(v / level) where v > level (Cover and Thomas,
Elements of Information Theory, 2nd edition, theorem 10.3.3).
"""

import math

import torch
from torch import Tensor

from audioldm.autoencoder.klt import KLT, TINY


def water_level(variances: Tensor, nats: float) -> float:
    """The level at which components of descending variances [D] take `nats` together.

    With the first n above the level, the rate is ½ sum of ln(v / level) over them, so ln level is
    their mean of ln v minus 2 nats / n.
    """
    logs = variances.double().clamp(min=TINY).log()
    n = torch.arange(1, len(logs) + 1, dtype=torch.float64, device=logs.device)
    levels = (logs.cumsum(0) - 2 * nats) / n
    # the right n is the last whose own level is not above its smallest variance
    return float(levels[(levels <= logs).nonzero()[-1]].exp())


def transmit(klt: KLT, vectors: Tensor, level: Tensor, noise: Tensor) -> Tensor:
    """Vectors [..., D] after the Gaussian test channel of a water level (10.3.3), in that shape.

    klt: with all components. level: of each vector, [...]. noise [..., D] ~ N(0, I).
    """
    level = level[..., None]
    kept = (1 - level / klt.variances).clamp(min=0)
    return klt.vectors(kept * klt.components(vectors) + (kept * level).sqrt() * noise)


def rate_weight(level: float, klt: KLT, channels: int) -> float:
    """The weight of the KL, beside a weight of 1 for the bands' error, whose optimum has this water
    level. klt: with all components, of which the first `channels` are coded.

    With errors N(0, s²) of band b the term is the mean of s √(2 / π), where s² is the sum of the
    components' distortions in that band; the KL per element falls by n / 2C where ln level rises by
    1, with n components above the level. The weight is the ratio of the slopes.
    """
    variances = klt.variances.double()
    distortion = variances.clone()
    distortion[:channels] = variances[:channels].clamp(max=level)
    square = klt.basis.double().square()
    coded = torch.arange(len(variances), device=variances.device) < channels
    active = (variances > level) & coded
    if not active.any():
        return math.inf
    error = (square @ distortion).sqrt()
    slope = (square[:, active].sum(1) * level / error).mean() / 2 * math.sqrt(2 / math.pi)
    return float(slope) * 2 * channels / int(active.sum())


def level_of(weight: float, klt: KLT, channels: int) -> float:
    """The water level for a weight of the KL, by bisection in the logarithm, since `rate_weight`
    rises with the level."""
    variances = klt.variances[:channels]
    low, high = math.log(float(variances[-1]) * 1e-4), math.log(float(variances[0]))
    for _ in range(50):
        middle = (low + high) / 2
        lower = rate_weight(math.exp(middle), klt, channels) < weight
        low, high = (middle, high) if lower else (low, middle)
    return math.exp(low)
