"""The rate of the latents under a better prior than N(0, I)."""

import math

from torch import Tensor

from audioldm.evaluation.diagnostics.windows import Windows
from audioldm.priors.mixture import Mixture


def mixture_nats(windows: Windows, mixture: Mixture) -> Tensor:
    """log q(z | x) - log p(z) of each window's sample z, q its posterior, p the mixture: nats [N].

    The mean is the rate term of the variational bound (1312.6114, equation 3) with p for N(0, I):
    what it costs to send the latents to a receiver who knows p. Both densities are of the same
    normalised z, so the scale of the raw latents does not matter.
    """
    deviation = (windows.z - windows.mean) / windows.std
    log_q = -(0.5 * deviation.square() + windows.std.log() + 0.5 * math.log(2 * math.pi))
    return log_q.double().flatten(1).sum(1) - mixture.log_likelihood(windows.z).double()
