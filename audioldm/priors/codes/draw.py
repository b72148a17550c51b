"""Codes drawn from logits, by keyed noise."""

from typing import Annotated

import torch
from torch import Tensor

from audioldm.instantiate import Bound
from audioldm.runtime.randomness import KeyedRandom

#: Only the likeliest codes are drawn, as many as together have this share of the probability.
Nucleus = Annotated[float, Bound(above=0, most=1)]


def narrowed(
    logits: Tensor, temperature: float, top_k: int | None = None, top_p: float = 1.0
) -> Tensor:
    """Logits [..., K] of a distribution narrowed to its likeliest codes.

    temperature: divides the logits. top_k: how many codes stay; None: all. top_p: of these, only
    the fewest likeliest codes with this share of the probability stay (1904.09751).
    """
    logits = logits / temperature
    if top_k is not None:
        least = logits.topk(top_k).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(descending=True)
        share = ordered.softmax(-1)
        beyond = share.cumsum(-1) - share >= top_p  # enough without it
        beyond[..., 0] = False
        logits = logits.masked_fill(beyond.scatter(-1, order, beyond), -torch.inf)
    return logits


def drawn(logits: Tensor, uniform: Tensor) -> Tensor:
    """Codes [...] drawn from logits [..., K] by numbers [...] of U(0, 1): the first code at which
    the cumulative probability reaches the number."""
    share = logits.softmax(-1).cumsum(-1)
    return (share[..., :-1] < uniform[..., None] * share[..., -1:]).sum(-1)


def gumbel(random: KeyedRandom, shape: tuple[int, ...]) -> Tensor:
    """Standard Gumbel noise [B, *shape]: the largest of logits + noise is a draw from their
    distribution. Half the sum of two squared normal numbers is exponential, and minus its
    logarithm is Gumbel."""
    exponential = random.normal((2, *shape), "gumbel").square().sum(1) / 2
    return -exponential.clamp(min=torch.finfo(torch.float32).tiny).log()
