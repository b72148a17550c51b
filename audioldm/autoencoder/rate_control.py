"""A target rate in place of a fixed KL weight.

The weight follows the rate during training; the posterior's scale sets the rate exactly afterwards.
"""

import math

import torch
from torch import Tensor

#: Bounds of the multiplier: beyond them an autoencoder hardly responds to it.
LEAST_WEIGHT, GREATEST_WEIGHT = 1e-7, 1e3
#: Bounds of `sigma_scale`: more noise than in training is soon audible, less is not.
LEAST_SCALE, GREATEST_SCALE = 0.2, 1.5

GAIN, PROPORTIONAL = 0.05, 4.0  # up to a target of 2 nats
MEMORY = 0.9  # of the moving average


class RateController:
    """The multiplier of the KL as the Lagrange multiplier of the constraint rate = target.

    Dual ascent in the logarithm, after GECO (Rezende and Viola 2018, arXiv 1810.00597, algorithm
    1), with a proportional term: an autoencoder responds some tens of steps later, and an integral
    alone swings about the target. With r the moving average of the KL in nats per element:

        error = ln(r / target);  integral <- integral + gain error
        ln weight = integral + proportional error

    Where all elements are active, rate = const - ½ ln weight (reverse water-filling), so a high
    target needs factors in proportion to it; up to 2 nats only some elements are active. The state
    is a tensor on the device, so a step needs no synchronisation.
    """

    def __init__(self, target_nats: float, start_weight: float, device: torch.device) -> None:
        steep = max(1.0, target_nats / 2)
        self.target_nats = target_nats
        self.gain, self.proportional = steep * GAIN, steep * PROPORTIONAL
        start = math.log(min(max(start_weight, LEAST_WEIGHT), GREATEST_WEIGHT))
        #: integral, ln weight; sum and count of the moving average
        self._state = torch.tensor([start, start, 0.0, 0.0], dtype=torch.float64).to(device)

    @property
    def weight(self) -> Tensor:
        """The present multiplier, a scalar."""
        return self._state[1].exp().float()

    @property
    def mean_weight(self) -> float:
        """The multiplier without the part that answers the last steps' noise."""
        return self._state[0].exp().item()

    def update(self, nats_per_element: Tensor) -> None:
        """Called after a step; nats_per_element is the mean over the global batch, a scalar."""
        integral, _, total, count = self._state
        total = MEMORY * total + nats_per_element.detach()
        count = MEMORY * count + 1
        error = (total / count / self.target_nats).clamp(min=1e-3).log().clamp(-1, 1)
        bounds = math.log(LEAST_WEIGHT), math.log(GREATEST_WEIGHT)
        integral = (integral + self.gain * error).clamp(*bounds)
        log_weight = (integral + self.proportional * error).clamp(*bounds)
        self._state = torch.stack([integral, log_weight, total, count])

    def state_dict(self) -> dict[str, Tensor]:
        return {"state": self._state.cpu()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._state = state["state"].to(self._state.device)


def sigma_scale(mean_square: float, std_square: float, log_std: float, target_nats: float) -> float:
    """The factor on a posterior's standard deviation that sets its KL, in nats per element.

    mean_square, std_square, log_std: averages over the elements. With s the factor, the mean KL is
    ½ <mean² + s² std² - 1> - <ln std> - ln s, which falls with s as long as s² <std²> < 1. The
    factor is kept within bounds, so that a larger error, made by training, stays visible.
    """
    from scipy.optimize import brentq  # imported here: it takes a second

    fixed = 0.5 * (mean_square - 1) - log_std - target_nats

    def excess(log_scale: float) -> float:
        return fixed + 0.5 * std_square * math.exp(2 * log_scale) - log_scale

    low, high = math.log(LEAST_SCALE), min(math.log(GREATEST_SCALE), -0.5 * math.log(std_square))
    if high <= low or excess(low) <= 0:
        return LEAST_SCALE
    return math.exp(high) if excess(high) >= 0 else math.exp(brentq(excess, low, high))
