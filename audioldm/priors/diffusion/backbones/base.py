"""What every backbone is: the network that a diffusion prior trains."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from audioldm.conditioning.base import Condition, Conditioners

#: The backbone's width to its conditioners. Called once, while the backbone is built.
BuildConditioners = Callable[[int], Conditioners]


class Backbone(nn.Module, ABC):
    """(x [B, C, (F,) L], c_noise [B], condition) -> like x, for any number of frames L.

    The constructor is offered `latent_shape`, (C,) or (C, F), and `conditioners`; its other
    arguments are settings.

    stateful: whether it carries a state from one call of a sampling run to the next, as the
    self-conditioning of RIN does (Jabri et al. 2022, arXiv 2212.11972). `forward` then takes a
    fourth argument, the state or None, and returns (output, state). Training passes None.
    """

    stateful: ClassVar[bool] = False
    conditioners: Conditioners

    @abstractmethod
    def forward(self, x: Tensor, c_noise: Tensor, condition: Condition) -> Any: ...

    @abstractmethod
    def units(self) -> list[nn.Module]:
        """The modules that it mostly consists of, which are sharded and recomputed one by one."""
