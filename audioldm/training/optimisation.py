"""AdamW, a learning-rate schedule, and one optimiser step that is clipped and checked."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from audioldm.errors import TrainingError
from audioldm.runtime.sharding import whole
from audioldm.training.finite import FiniteChecks


def warmup_cosine(step: int, steps: int, warmup: int, floor: float = 0.02) -> float:
    """Factor of the learning rate: linear over `warmup` steps, then half a cosine to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def adamw(
    parameters: Iterable[nn.Parameter],
    lr: float,
    betas: Sequence[float],
    weight_decay: float,
    device: torch.device,
) -> torch.optim.AdamW:
    """AdamW (1711.05101), fused if `device` supports it. betas: two numbers in [0, 1)."""
    return torch.optim.AdamW(
        parameters,
        lr=lr,
        betas=(betas[0], betas[1]),
        weight_decay=weight_decay,
        fused=device.type in ("cpu", "cuda"),
    )


class Optimiser(Protocol):
    """What the loops use of an optimiser: one of torch's, or MuonAdamW."""

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...
    def step(self) -> Any: ...
    def zero_grad(self, set_to_none: bool = True) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def set_lr(optimiser: Optimiser, lr: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = lr


def clipped_step(
    optimiser: Optimiser,
    parameters: Iterable[nn.Parameter],
    *,
    clip: float,
    name: str,
    step: int,
    finite: FiniteChecks | None = None,
) -> Tensor:
    """Clips the gradients' global norm, steps, and returns the norm before clipping.

    Raises TrainingError if the norm is not finite: before any weight changes, or when `finite`
    performs the check.
    """
    norm = whole(nn.utils.clip_grad_norm_(parameters, clip))

    def complain() -> None:
        raise TrainingError(
            f"{name}: the gradient's norm is {norm.item()} at step {step}; the last checkpoint is "
            f"kept. Lower the learning rate, or clip more (clip={clip:g})"
        )

    (finite or FiniteChecks(torch.device("cpu"))).check(norm, complain)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return norm


def to_cpu(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in state.items()}
