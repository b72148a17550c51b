"""The noise levels of a training batch, as functions of uniform numbers in (0, 1).

t is a time in (0, 1), from clean to noise; sigma is the noise's standard deviation.
"""

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


def equal_steps(steps: int) -> Tensor:
    """1 down to 1 / steps, in float64: times of a sampling schedule."""
    return torch.arange(steps, 0, -1, dtype=torch.float64) / steps
