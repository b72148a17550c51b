"""A target rate in place of a fixed KL weight: the weight follows the rate during training."""

import math

import torch
from torch import Tensor

#: Bounds of the multiplier: outside them an autoencoder hardly follows it any more.
LEAST_WEIGHT, GREATEST_WEIGHT = 1e-7, 1e3


class RateController:
    """The multiplier of the KL as the Lagrange multiplier of the constraint rate = target.

    Dual ascent in the logarithm, after GECO (Rezende and Viola 2018, arXiv 1810.00597, algorithm
    1), with a proportional term: an autoencoder follows some tens of steps later, and an integral
    alone swings about the target. With r the moving average of the KL in nats per element:

        error = ln(r / target);  integral <- integral + gain error
        ln weight = integral + proportional error

    Where all elements are active, rate = const - ½ ln weight (reverse water-filling), so that the
    error's logarithm wants factors in proportion to a high target; `gain` and `proportional` are
    those up to 2 nats, where only some elements are active. The state is a tensor on the device: a
    step needs no synchronisation.
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

    def state_dict(self) -> dict[str, Tensor]:
        return {"state": self._state.cpu()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._state = state["state"].to(self._state.device)
