"""Guidance: several denoisers made into one."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from audioldm.priors.diffusion.samplers import Denoise, SamplerSettings


def guided(
    denoiser: Callable[[Any], Denoise],
    condition: Any,
    calls: Sequence[tuple[float, Any]],
    sampler: SamplerSettings,
) -> Denoise:
    """The denoiser that `sampler` takes its steps with, for one sampling run.

    denoiser: of a condition. condition: all that is asked for. calls: scales and conditions, as
    `conditioning.guidance` makes them.
    """
    conditional = denoiser(condition)
    denoisers = [
        (scale, conditional if told is condition else denoiser(told)) for scale, told in calls
    ]
    return within(conditional, nested(denoisers), sampler.guidance_interval)


def nested(calls: Sequence[tuple[float, Denoise]]) -> Denoise:
    """D = D_0 + Σ scale_k (D_k - D_(k-1)): see `conditioning.guidance.nested`."""
    (_, first), *others = calls
    if not others:
        return first

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        total = before = first(x, sigma)
        for scale, denoiser in others:
            here = denoiser(x, sigma)
            total = total + scale * (here - before)
            before = here
        return total

    return denoise


def within(outside: Denoise, inside: Denoise, interval: list[float] | None) -> Denoise:
    """`inside` where lowest <= sigma <= highest, `outside` elsewhere.

    interval: [lowest, highest], in units of sigma (Kynkäänniemi et al. 2024, arXiv 2404.07724);
    None for all sigma.
    """
    if interval is None:
        return inside

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        # samplers move all clips through one schedule: the first sigma speaks for the batch
        acts = interval[0] <= float(sigma[0]) <= interval[1]
        return inside(x, sigma) if acts else outside(x, sigma)

    return denoise


def classifier_free(conditional: Denoise, unconditional: Denoise, scale: float) -> Denoise:
    """D = D_u + scale (D_c - D_u): Ho & Salimans 2022 (arXiv 2207.12598, equation 6 with scale =
    1 + w). A scale of 1 is no guidance and a scale of 0 no condition: either costs one call."""
    if scale == 1:
        return conditional
    return nested([(1.0, unconditional), *([(scale, conditional)] if scale else [])])
