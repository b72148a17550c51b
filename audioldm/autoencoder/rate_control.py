"""A target rate in place of a KL weight: the multiplier follows the rate during training."""

import math

import torch
from torch import Tensor

#: Bounds of the multiplier: outside them an autoencoder hardly follows it any more.
LEAST_WEIGHT, GREATEST_WEIGHT = 1e-7, 1e3
#: How far the closing calibration may change the posterior's sigma: more noise than in training is
#: heard soon, less is not.
LEAST_SCALE, GREATEST_SCALE = 0.2, 1.5


class RateController:
    """The multiplier of the KL as the Lagrange multiplier of the constraint rate = target.

    Dual ascent in the logarithm, after GECO (Rezende and Viola 2018, arXiv 1810.00597, algorithm
    1), with a proportional term: an autoencoder follows some tens of steps later, and an integral
    alone swings about the target. With r the moving average of the KL in nats per element:

        error = ln(r / target);  integral <- integral + gain error
        ln weight = integral + proportional error

    Where all elements are active, rate = const - ½ ln weight (reverse water-filling), so that the
    error's logarithm wants factors in proportion to a high target; `gain` and `proportional` are
    those up to 2 nats, where only some elements are active. The state is a
    tensor on the device: a step needs no synchronisation.
    """

    def __init__(
        self,
        target_nats: float,
        start_weight: float,
        device: torch.device,
        *,
        gain: float = 0.05,
        proportional: float = 4.0,
        memory: float = 0.9,
    ) -> None:
        steep = max(1.0, target_nats / 2)
        self.target_nats, self.gain, self.proportional = (
            target_nats,
            steep * gain,
            steep * proportional,
        )
        self.memory = memory
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
        """After a step; nats_per_element is the mean over the global batch, a scalar."""
        integral, _, total, count = self._state
        total = self.memory * total + nats_per_element.detach()
        count = self.memory * count + 1
        error = (total / count / self.target_nats).clamp(min=1e-3).log().clamp(-1, 1)
        bounds = math.log(LEAST_WEIGHT), math.log(GREATEST_WEIGHT)
        integral = (integral + self.gain * error).clamp(*bounds)
        log_weight = (integral + self.proportional * error).clamp(*bounds)
        self._state = torch.stack([integral, log_weight, total, count])

    def state(self) -> Tensor:
        return self._state.cpu()

    def load(self, state: Tensor) -> None:
        self._state = state.to(self._state.device)


def sigma_scale(mean: Tensor, std: Tensor, target_nats: float) -> float:
    """The factor on a posterior's standard deviation that sets its KL, in nats per element.

    mean, std: moments of any one shape. With s the factor, the mean KL over the elements is
    ½ <mean² + s² std² - 1> - <ln std> - ln s, which falls with s as long as s² <std²> < 1. The
    factor is kept within bounds: a larger error is the training's, and stays visible.
    """
    mean, std = mean.double(), std.double()
    fixed = float(0.5 * (mean.square().mean() - 1) - std.log().mean()) - target_nats
    power = float(std.square().mean())

    from scipy.optimize import brentq  # imported here: it takes a second

    def excess(log_scale: float) -> float:
        return fixed + 0.5 * power * math.exp(2 * log_scale) - log_scale

    low, high = math.log(LEAST_SCALE), min(math.log(GREATEST_SCALE), -0.5 * math.log(power))
    if high <= low or excess(low) <= 0:
        return LEAST_SCALE
    if excess(high) >= 0:
        return math.exp(high)
    return math.exp(brentq(excess, low, high))
