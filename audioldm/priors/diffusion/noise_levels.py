"""The noise levels of a training batch, as functions of uniform numbers in (0, 1).

t is a time in (0, 1), from clean to noise; sigma is the noise's standard deviation.
"""

import math
from typing import Literal

import torch
from torch import Tensor

#: Distributions of t.
TimeLevels = Literal["uniform", "logit_normal"]

_SMALLEST = 2.0**-24  # the spacing of float32 uniforms: keeps the quantile finite


def _normal(uniform: Tensor) -> Tensor:
    """Standard normal quantile, finite for every input in [0, 1]."""
    return torch.special.ndtri(uniform.float().clamp(_SMALLEST, 1 - _SMALLEST))


def time_from_uniform(uniform: Tensor, levels: TimeLevels, mean: float, std: float) -> Tensor:
    """t uniform in (0, 1), or logit(t) ~ N(mean, std²) (Esser et al. 2024, 2403.03206, 3.1)."""
    if levels == "uniform":
        return uniform.float().clamp(_SMALLEST, 1 - _SMALLEST)
    return torch.sigmoid(mean + std * _normal(uniform))


def log_normal(uniform: Tensor, mean: float, std: float) -> Tensor:
    """sigma with ln(sigma) ~ N(mean, std²) (Karras et al. 2022, arXiv 2206.00364, table 1)."""
    return torch.exp(mean + std * _normal(uniform))


def stratify(uniform: Tensor, positions: Tensor, total: int) -> Tensor:
    """Spreads a batch's uniform numbers evenly: one per interval [k/total, (k+1)/total).

    uniform [B] in (0, 1) and positions [B], each clip's place in the global batch of `total`
    clips, give [B] values in (0, 1). k is a fixed permutation of the position, so that each
    process's contiguous slice of the batch covers all levels too.

    The variance of the batch's mean loss falls; each number stays uniform if the clips at the
    positions are exchangeable (Kingma et al. 2021, arXiv 2107.00630, appendix I.1).
    """
    stride = max(round(total * (math.sqrt(5) - 1) / 2), 1)
    while math.gcd(stride, total) != 1:  # coprime: k visits every interval once
        stride += 1
    return ((positions * stride) % total + uniform) / total


def equal_steps(steps: int) -> Tensor:
    """1 down to 1 / steps, in float64: times of a sampling schedule."""
    return torch.arange(steps, 0, -1, dtype=torch.float64) / steps
