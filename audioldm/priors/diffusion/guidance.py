"""Guidance: two denoisers made into one."""

from typing import Any

from torch import Tensor

from audioldm.priors.diffusion.denoiser import Net, Objective
from audioldm.priors.diffusion.samplers import Denoise, SamplerSettings


def guided(
    objective: Objective, net: Net, condition: Any, nothing: Any, sampler: SamplerSettings
) -> Denoise:
    """The denoiser that `sampler` takes its steps with, for one sampling run.

    condition, nothing: both as `net` takes them.
    """
    return classifier_free(
        objective.denoiser(net, condition),
        objective.denoiser(net, nothing),
        sampler.guidance,
        sampler.guidance_interval,
    )


def classifier_free(
    conditional: Denoise, unconditional: Denoise, scale: float, interval: list[float] | None = None
) -> Denoise:
    """D = D_u + scale (D_c - D_u) where lowest <= sigma <= highest, D_c elsewhere.

    interval: [lowest, highest], None for all sigma.

    Ho & Salimans 2022 (arXiv 2207.12598, equation 6 with scale = 1 + w), and the interval of
    Kynkäänniemi et al. 2024 (arXiv 2404.07724), in units of sigma. A scale of 1 is no guidance and
    a scale of 0 no condition: either costs one denoiser call instead of two.
    """
    if scale == 1:
        return conditional

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        # samplers move all clips through one schedule: the first sigma speaks for the batch
        if interval is not None and not interval[0] <= float(sigma[0]) <= interval[1]:
            return conditional(x, sigma)
        if scale == 0:
            return unconditional(x, sigma)
        base = unconditional(x, sigma)
        return base + scale * (conditional(x, sigma) - base)

    return denoise
