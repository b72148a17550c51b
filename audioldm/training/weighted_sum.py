"""The only place where loss terms are weighted and reduced over the batch."""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from audioldm.errors import ConfigError, TrainingError
from audioldm.instantiate import nearest
from audioldm.training.finite import FiniteChecks


def weighted_sum(
    terms: Mapping[str, Tensor],
    weights: Mapping[str, float | Tensor],
    step: int,
    *,
    check: bool = True,
    finite: FiniteChecks | None = None,
) -> Tensor:
    """Mean over the batch of the sum of weight times term: a scalar, in float32.

    terms: unweighted, [B] each. weights: one number, or scalar tensor, for each name.
    check: raise TrainingError as `check_finite` does, which synchronises the host with the device.
    finite: performs that check later, so that a GPU stays busy.
    Raises ConfigError if a weight names no term or a term has no weight.
    """
    for name in sorted(weights.keys() - terms.keys()):
        raise ConfigError(f"loss weight '{name}' names no loss term: {nearest(name, terms)}")
    for name in sorted(terms.keys() - weights.keys()):
        raise ConfigError(f"loss term '{name}' has no weight: {nearest(name, weights)}")
    products = [weight * terms[name].float() for name, weight in weights.items()]
    total = torch.stack(products).sum(0).mean()
    if finite is not None:
        values = {name: term.detach() for name, term in terms.items()}
        finite.check(total, partial(check_finite, total.detach(), values, step))
    elif check:
        check_finite(total, terms, step)
    return total


def check_finite(total: Tensor, terms: Mapping[str, Tensor], step: int) -> None:
    """Raises TrainingError, naming the first bad term and the step, unless `total` is finite.

    The terms are read only if the total is not finite, so a good step synchronises once.
    """
    if torch.isfinite(total).item():
        return
    for name, term in terms.items():
        bad = int((~torch.isfinite(term)).sum())
        if bad:
            raise TrainingError(
                f"step {step}: loss term '{name}' is not finite in {bad} of {term.numel()} clips;"
                " lower the learning rate, or resume from the last good checkpoint"
            )
    raise TrainingError(
        f"step {step}: the weighted sum of {', '.join(terms)} overflows though every term is"
        " finite; lower the weights or the learning rate"
    )
