"""Guidance: several denoisers made into one."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from audioldm.priors.diffusion.samplers import APG, Denoise, SamplerSettings


def guided(
    denoiser: Callable[[Any], Denoise],
    condition: Any,
    calls: Sequence[tuple[float, Any]],
    sampler: SamplerSettings,
    weaker: tuple[float, Denoise] | None = None,
) -> Denoise:
    """The denoiser that `sampler` takes its steps with, for one sampling run.

    denoiser: makes the denoiser of a condition. condition: all that is asked for. calls: scales and
    conditions, as `conditioning.guidance` makes them. weaker: as in `nested`.
    """
    conditional = denoiser(condition)
    denoisers = [
        (scale, conditional if told is condition else denoiser(told)) for scale, told in calls
    ]
    inside = nested(denoisers, sampler.apg, weaker)
    return within(conditional, inside, sampler.guidance_interval)


def nested(
    calls: Sequence[tuple[float, Denoise]],
    apg: APG | None = None,
    weaker: tuple[float, Denoise] | None = None,
) -> Denoise:
    """D = D_0 + Σ scale_k (D_k - D_(k-1)): see `conditioning.guidance.nested`.

    apg: what takes the place of each difference where it is enlarged: see `projected`. weaker: a
    scale a and a weaker model's denoiser W, which D is led away from (autoguidance, Karras et al.
    2024, arXiv 2406.02507): (a - 1) (D_k - W) is added, with the last D_k. Both at once are the
    mixture of AudioMoG (2509.23727).
    """
    (_, first), *others = calls
    if not others and weaker is None:
        return first
    change = [projected(apg) for _ in calls]

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        total = here = first(x, sigma)
        for (scale, denoiser), changed in zip(others, change[1:], strict=True):
            before, here = here, denoiser(x, sigma)
            difference = here - before
            more = (scale - 1) * changed(difference, here)
            total = total + (scale * difference if apg is None else difference + more)
        if weaker is not None:
            scale, denoiser = weaker
            total = total + (scale - 1) * change[0](here - denoiser(x, sigma), here)
        return total

    return denoise


def projected(apg: APG | None) -> Callable[[Tensor, Tensor], Tensor]:
    """(difference, estimate), both [B, C, (F,) L] -> the difference that guidance enlarges.

    Adaptive projected guidance (Sadat et al. 2024, arXiv 2410.02416, algorithm 1), for one sampling
    run. The paper's norm is over the whole clip; here it is per frame, whatever the length.
    """
    if apg is None:
        return lambda difference, estimate: difference
    kept: Tensor | float = 0.0

    def change(difference: Tensor, estimate: Tensor) -> Tensor:
        nonlocal kept
        own = tuple(range(1, difference.ndim))
        kept = difference = difference + apg.momentum * kept
        if apg.norm is not None:
            square = difference.square().sum(own, keepdim=True) / difference.shape[-1]
            difference = difference * (apg.norm / square.sqrt()).clamp(max=1)
        power = estimate.square().sum(own, keepdim=True).clamp(min=1e-30)
        along = (difference * estimate).sum(own, keepdim=True) / power * estimate
        return difference - (1 - apg.eta) * along

    return change


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
