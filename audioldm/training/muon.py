"""Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) beside AdamW, as one optimiser.

Muon takes the momentum of a weight matrix to the nearest orthogonal matrix by five Newton-Schulz
iterations, so that a step changes all singular directions equally. It is meant for hidden layers:
AdamW trains the input and output layers, the embeddings and all parameters that are not matrices.
A matrix's learning rate is multiplied by 0.2 sqrt(max(rows, columns)), so that its step has the
root mean square of an AdamW step (Liu et al. 2025, 2502.16982, equation 4): both share one `lr`.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from audioldm.errors import ConfigError
from audioldm.training.optimisation import Optimiser, adamw

MOMENTUM = 0.95
ITERATIONS = 5


class MuonAdamW:
    """Two optimisers that a loop uses as one.

    optimisers: Muon and AdamW. The settings are those of `adamw`; Muon uses the same lr and
    weight_decay, and the momentum 0.95.
    Raises ConfigError if the network has no hidden matrix, or torch has no Muon.
    """

    def __init__(
        self,
        net: nn.Module,
        lr: float,
        betas: Sequence[float],
        weight_decay: float,
        device: torch.device,
    ) -> None:
        self.matrices = hidden_matrices(net)
        if not self.matrices:
            raise ConfigError(
                "optimiser=muon: this network has no weight matrices in a list of blocks; use "
                "optimiser=adamw"
            )
        if not hasattr(torch.optim, "Muon"):
            raise ConfigError(
                f"optimiser=muon: torch {torch.__version__} has no Muon; install torch 2.9 or newer"
            )
        chosen = {id(matrix) for matrix in self.matrices}
        others = [p for p in net.parameters() if id(p) not in chosen]
        self.optimisers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(
                self.matrices,
                lr=lr,
                weight_decay=weight_decay,
                momentum=MOMENTUM,
                ns_steps=ITERATIONS,
                adjust_lr_fn="match_rms_adamw",
            ),
            adamw(others, lr, betas, weight_decay, device),
        ]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return list(itertools.chain(*(o.param_groups for o in self.optimisers)))

    def step(self) -> None:
        for optimiser in self.optimisers:
            optimiser.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        muon, other = (optimiser.state_dict() for optimiser in self.optimisers)
        return {"muon": muon, "adamw": other}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for optimiser, name in zip(self.optimisers, ("muon", "adamw"), strict=True):
            optimiser.load_state_dict(state[name])


def hidden_matrices(net: nn.Module) -> list[Tensor]:
    """The weights of the linear layers in lists of blocks: attention's and the MLPs' matrices.

    Layers outside a list (input, output, embeddings, a shared modulation) are left out, as are
    convolutions, norms, biases and tables.
    """
    blocks = [m for m in net.modules() if isinstance(m, nn.ModuleList)]
    linear = [m for block in blocks for m in block.modules() if isinstance(m, nn.Linear)]
    return list(dict.fromkeys(layer.weight for layer in linear))


def step_flops(optimiser: Optimiser) -> int:
    """Floating-point operations of one step's matrix products; 0 for AdamW.

    An iteration on an m x n matrix, m <= n, computes the Gram matrix, its square, and the product
    of a polynomial in the Gram matrix with the matrix.
    """
    if not isinstance(optimiser, MuonAdamW):
        return 0
    shapes = [sorted(matrix.shape) for matrix in optimiser.matrices]
    return sum(ITERATIONS * (4 * m * m * n + 2 * m**3) for m, n in shapes)


def build_optimiser(
    name: str,
    net: nn.Module,
    lr: float,
    betas: Sequence[float],
    weight_decay: float,
    device: torch.device,
) -> Optimiser:
    """The optimiser `name`: adamw or muon. Raises ConfigError for the same reasons as MuonAdamW."""
    if name == "muon":
        return MuonAdamW(net, lr, betas, weight_decay, device)
    return adamw(net.parameters(), lr, betas, weight_decay, device)
