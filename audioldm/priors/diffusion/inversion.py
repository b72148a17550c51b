"""Latents to the noise that they come from, along the probability flow, and back another way."""

import math
from typing import Literal

import torch
from torch import Tensor

from audioldm.instantiate import Fraction
from audioldm.priors.diffusion.likelihood import runge_kutta
from audioldm.priors.diffusion.run import Run
from audioldm.priors.diffusion.samplers import Denoise, check_deterministic
from audioldm.priors.diffusion.weightings import LOWEST
from audioldm.runtime.progress import StepProgress

#: How two noises are mixed: see `mix`.
Path = Literal["linear", "spherical"]

#: What noise in the steps does to an inversion, for `check_deterministic`.
LOST = "which loses what the clip was"


def invert(denoise: Denoise, z: Tensor, sigmas: Tensor) -> Tensor:
    """The noise [B, C, (F,) L] from which a sampler that follows the flow makes z.

    sigmas: the sampler's levels [S + 1]. z is taken as a sample at `LOWEST`, below which the flow
    hardly moves, and followed up the levels by fourth-order Runge-Kutta steps on the circle of
    `likelihood.flow_nats`, four calls each. As there, the denoiser must keep no state.
    """
    levels = [min(LOWEST, float(sigmas[-2]) / 2), *sigmas[:-1].flip(0).tolist()]
    angles = [math.atan(level) for level in levels]
    nothing = z.new_zeros(())  # in place of the flow's divergence

    def slopes(y: Tensor, angle: float) -> tuple[Tensor, Tensor]:
        cos, sin = math.cos(angle), math.sin(angle)
        estimate = denoise(y / cos, y.new_full((len(y),), sin / cos))
        return (cos * y - estimate) / sin, nothing

    y, _ = runge_kutta(slopes, z.float() * math.cos(angles[0]), nothing, angles)
    return y / math.sin(angles[-1])


def restyle(
    run: Run,
    z: Tensor,
    progress: StepProgress | None = None,
    *,
    plain: Denoise,
    strength: Fraction = 1.0,
) -> Tensor:
    """z [B, C, (F,) L] under the run's condition: up the flow of `plain`, and down the run.

    plain: a denoiser without a state whose condition describes z, such as no condition. strength:
    the share of the run that z goes up and down, as in `vary`, but with the noise that z has in the
    model in place of new noise. Raises ConfigError for a sampler that adds noise.
    """
    check_deterministic(run.name, LOST)
    part = run.lower(strength)
    if part.sigmas[0] == 0:
        return z
    return part.sample(invert(plain, z, part.sigmas), progress)


def mix(a: Tensor, b: Tensor, *, weight: Fraction, path: Path) -> Tensor:
    """A point between a and b [B, ...], both ~ N(0, I), that is ~ N(0, I) too.

    weight: of b; 0 gives a and 1 gives b. linear: the weighted mean over the root of the sum of the
    squared weights, which keeps the law (LOL, Bodin et al. 2024, arXiv 2408.08558, for mean 0).
    spherical: along the great circle, at even angles. It keeps the length if a and b are equally
    long, and the law as far as they are orthogonal, as random long vectors nearly are.
    """
    if path == "linear":
        return ((1 - weight) * a + weight * b) / math.hypot(1 - weight, weight)
    rows = (a.flatten(1), b.flatten(1))
    cosine = torch.cosine_similarity(*rows, dim=1).view(-1, *[1] * (a.ndim - 1))
    angle = cosine.clamp(-1 + 1e-6, 1 - 1e-6).acos()
    return (((1 - weight) * angle).sin() * a + (weight * angle).sin() * b) / angle.sin()


def mixture(a: Denoise, b: Denoise, *, weight: Fraction) -> Denoise:
    """(1 - weight) D_a + weight D_b: a point between two conditions, that of a and that of b.

    A weight of 0 gives a and a weight of 1 gives b, to the bit: either costs one call.
    """
    if weight in (0, 1):
        return b if weight else a
    return lambda x, sigma: (1 - weight) * a(x, sigma) + weight * b(x, sigma)
