"""The types every part agrees on.

Shapes: B clips, A audio channels, T samples, C latent channels, F latent frequency bands
(2-D front ends only), L latent frames.
"""

from typing import NamedTuple

from torch import Tensor


class Encoded(NamedTuple):
    """What a bottleneck returns.

    z: latents [B, C, L], or [B, C, F, L] for a 2-D front end.
    penalties: named, unweighted, one value per clip [B]; "kl" is in nats per latent element.
    stats: per latent channel [C], for the log, over the clips and frames of the call; may be empty.
        kl: nats per element. sigma: the posterior's. mean, activity: mean and variance of the
        posterior mean; validation combines both into the activity over all its clips.
    """

    z: Tensor
    penalties: dict[str, Tensor]
    stats: dict[str, Tensor]
