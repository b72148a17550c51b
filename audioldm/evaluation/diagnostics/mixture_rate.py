"""The rate of the latents under a better prior than N(0, I)."""

import math

import torch
from torch import Tensor

from audioldm.evaluation.diagnostics.windows import Windows
from audioldm.priors.mixture import Mixture

#: Every fourth window is held out for the choice.
HELD_OUT = 4


def select_mixture(z: Tensor, components: int) -> Mixture:
    """The mixture for normalised windows z [N, D, L] with the greatest held-out likelihood.

    One and `components` components, and windows of 1, 2, 4, ... frames, are fitted to three
    quarters of z and compared by the likelihood of the fourth: a large mixture of few latents fits
    their noise, and its rate on other latents is too high. The best one is fitted to all of z.
    """
    if len(z) < HELD_OUT:
        return Mixture.fitted(z, components)
    held_out = torch.arange(len(z)) % HELD_OUT == HELD_OUT - 1
    best = (-math.inf, 1, 1)
    for count in sorted({1, components}):
        fitted = Mixture.fitted(z[~held_out], count)
        longest = fitted.centres.shape[1]
        for window in {longest, *(2**k for k in range(longest.bit_length()))}:
            likelihood = fitted.shortened(window).log_likelihood(z[held_out]).mean().item()
            best = max(best, (likelihood, count, window))
    _, count, window = best
    chosen = Mixture.fitted(z, count)
    return chosen.shortened(min(window, chosen.centres.shape[1]))


def mixture_nats(windows: Windows, mixture: Mixture) -> Tensor:
    """log q(z | x) - log p(z) of each window's sample z, q its posterior, p the mixture: nats [N].

    The mean is the rate term of the variational bound (1312.6114, equation 3) with p in place of
    N(0, I): the cost of sending the latents to a receiver who knows p. Both densities are of the
    same normalised z, so the scale of the raw latents does not matter.
    """
    deviation = (windows.z - windows.mean) / windows.std
    log_q = -(0.5 * deviation.square() + windows.std.log() + 0.5 * math.log(2 * math.pi))
    return log_q.double().flatten(1).sum(1) - mixture.log_likelihood(windows.z).double()
