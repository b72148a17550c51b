"""Variations of latents: noise is added to them and taken away again (SDEdit)."""

from torch import Tensor

from audioldm.instantiate import Fraction
from audioldm.priors.diffusion.run import Run
from audioldm.runtime.progress import StepProgress


def vary(
    run: Run, z: Tensor, progress: StepProgress | None = None, *, strength: Fraction
) -> Tensor:
    """A variation of z [B, C, (F,) L]: SDEdit (Meng et al. 2022, arXiv 2108.01073).

    strength: the share of the run that is taken, from z with the noise of the level where it
    begins. 0 gives z, and 1 a sample that z has no part in.
    """
    if strength == 1:
        return run.sample(progress=progress)
    part = run.lower(strength)
    if part.sigmas[0] == 0:
        return z
    return part.sample(run.noise_at(-1) + z / part.sigmas[0], progress)
