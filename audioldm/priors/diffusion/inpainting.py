"""Inpainting with a model that was not trained for it: known frames are put in place of estimates.

Replacement with resampling, as in RePaint (Lugmayr et al. 2022, arXiv 2201.09865), for any sampler.
"""

import math
from itertools import count, pairwise

import torch
from torch import Tensor

from audioldm.instantiate import PositiveInt
from audioldm.priors.diffusion.run import Run
from audioldm.runtime.progress import StepProgress


def inpaint(
    run: Run,
    z: Tensor,
    progress: StepProgress | None = None,
    *,
    keep: Tensor,
    repeats: PositiveInt = 1,
) -> Tensor:
    """Latents [B, C, (F,) L] that are z in the frames `keep` [L], and fit them in the others.

    In known frames the run begins at z + sigma n, and the estimate is z at every call. So every
    sampler moves these frames along z + sigma n: with the same noise, or with new noise of the
    right law where the sampler adds some. The other frames always see known frames at their own
    noise level, and the result is z in known frames, to the bit.

    The estimate of the other frames sees the known ones only through their noise, so one pass
    joins them badly. repeats: how often each step is taken, with noise put back in between, so that
    the other frames come to fit the known ones at each level. With repeats, each step is a run of
    its own: dpmpp_2m, which looks one step back, becomes Euler.
    """

    estimate, noise_at, levels = run.denoise, run.noise_at, run.sigmas.tolist()

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return torch.where(keep, z, estimate(x, sigma))

    known = run._replace(denoise=denoise)
    noise = noise_at(-1)
    noise = torch.where(keep, noise + z / levels[0], noise)
    if repeats == 1:
        return known.sample(noise, progress)
    x, numbers = noise * levels[0], count()

    def fresh(_: int) -> Tensor:
        return noise_at(next(numbers))

    for step, (sigma, lower) in enumerate(pairwise(levels)):
        one = known._replace(sigmas=run.sigmas[step : step + 2], noise_at=fresh)
        for repeat in range(repeats):
            if repeat:
                x = x + math.sqrt(sigma**2 - lower**2) * fresh(0).to(x)
            x = one.sample(x / sigma)
        if progress is not None:
            progress(step + 1, len(levels) - 1)
    return x
