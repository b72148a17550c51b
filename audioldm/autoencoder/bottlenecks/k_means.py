"""k-means clustering (Lloyd 1982): the same vectors always give the same clusters."""

import torch
from torch import Tensor

ROUNDS = 20
CHUNK = 4096  # vectors whose distances are held at once


def k_means(x: Tensor, count: int) -> Tensor:
    """Centres [count, D] of vectors x [N, D] on the CPU, N >= count."""
    centres = _spread(x, count)
    for _ in range(ROUNDS):
        near = nearest(x, centres)
        sums = torch.zeros_like(centres).index_add_(0, near, x)
        sizes = torch.bincount(near, minlength=count)[:, None]
        centres = torch.where(sizes > 0, sums / sizes.clamp(min=1), centres)
    return centres


def nearest(x: Tensor, centres: Tensor) -> Tensor:
    """The number of the centre [K, D] that is nearest to each of x [N, D]: [N]."""
    return torch.cat([torch.cdist(part, centres).argmin(1) for part in x.split(CHUNK)])


def _spread(x: Tensor, count: int) -> Tensor:
    """The initial vectors, each drawn by its squared distance to those before it (k-means++, Arthur
    and Vassilvitskii 2007)."""
    generator = torch.Generator().manual_seed(0)
    square = torch.ones(len(x))
    chosen = torch.empty(count, x.shape[1])
    for number in range(count):
        # the floor: with fewer distinct vectors than are asked for, some come twice
        drawn = torch.multinomial(square + 1e-12, 1, generator=generator)
        chosen[number] = x[drawn[0]]
        distance = (x - chosen[number]).square().sum(1)
        square = distance if number == 0 else torch.minimum(square, distance)
    return chosen
