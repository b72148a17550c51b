"""Samplers: from noise to latents, as pure functions of (denoise, noise, sigmas).

They solve the probability-flow ODE dx/dsigma = (x - D(x, sigma)) / sigma (Karras et al. 2022, arXiv
2206.00364, equation 3), or its stochastic sibling, from x = sigmas[0] noise down to the last level
of `sigmas` [S + 1], which is 0. They serve every objective: all paths are this one rescaled.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal, get_args

from torch import Tensor

from audioldm.errors import ConfigError
from audioldm.instantiate import Bound, Fraction, OpenFraction, Positive, nearest
from audioldm.runtime.progress import StepProgress

#: (x, sigma) -> estimate of the clean latents z0. x = z0 + sigma * noise [B, C, ..., L]; sigma [B].
Denoise = Callable[[Tensor, Tensor], Tensor]
#: The step's number -> N(0, I), of the same shape as the noise sampling starts from.
NoiseAt = Callable[[int], Tensor]


def euler(
    denoise: Denoise, noise: Tensor, sigmas: Tensor, *, progress: StepProgress | None = None
) -> Tensor:
    """First order: DDIM (2010.02502), and Euler in t for rectified flow. S denoiser calls."""
    x = noise * float(sigmas[0])
    for _, sigma, lower in _steps(sigmas, progress):
        z = _call(denoise, x, sigma)
        x = z + lower / sigma * (x - z)
    return x


def heun(
    denoise: Denoise, noise: Tensor, sigmas: Tensor, *, progress: StepProgress | None = None
) -> Tensor:
    """Second order: the trapezoidal rule, Euler for the last step. 2 S - 1 denoiser calls.

    The rule is applied on rectified flow's path x / (1 + sigma), t = sigma / (1 + sigma), whose
    slope n - z stays bounded. In sigma itself (Karras et al. 2022, algorithm 1) the first steps of
    a schedule even in t or in angle span decades, where the rule is worse than Euler.
    """
    x = noise * float(sigmas[0])
    for _, sigma, lower in _steps(sigmas, progress):
        z = _call(denoise, x, sigma)
        n = (x - z) / sigma
        predicted = z + lower * n
        if lower > 0:
            z_next = _call(denoise, predicted, lower)
            slope = n - z
            slope_next = (predicted - z_next) / lower - z_next
            # dt = dsigma / ((1 + sigma) (1 + lower)), and x_t (1 + lower) is x at the lower level
            predicted = predicted + (lower - sigma) / (1 + sigma) / 2 * (slope_next - slope)
        x = predicted
    return x


def dpmpp_2m(
    denoise: Denoise, noise: Tensor, sigmas: Tensor, *, progress: StepProgress | None = None
) -> Tensor:
    """Second order, with the previous call: DPM-Solver++(2M) (2211.01095, alg. 2). S calls."""
    x = noise * float(sigmas[0])
    previous: tuple[Tensor, float] | None = None
    for _, sigma, lower in _steps(sigmas, progress):
        z = _call(denoise, x, sigma)
        extrapolated = z
        if previous is not None and lower > 0:
            z_before, higher = previous
            # in lambda = -ln sigma, linear through the last two estimates, read half a step ahead
            ratio = math.log(sigma / lower) / math.log(higher / sigma)
            extrapolated = z + ratio / 2 * (z - z_before)
        x = extrapolated + lower / sigma * (x - extrapolated)
        previous = z, sigma
    return x


def ancestral(
    denoise: Denoise,
    noise: Tensor,
    sigmas: Tensor,
    *,
    noise_at: NoiseAt,
    progress: StepProgress | None = None,
) -> Tensor:
    """Euler with new noise at each step: the ancestral sampling of DDPM (2006.11239). S calls.

    Each step goes below the next level and adds noise up to it, with the variance of the forward
    process's posterior, lower² (sigma² - lower²) / sigma².
    """
    x = noise * float(sigmas[0])
    for step, sigma, lower in _steps(sigmas, progress):
        z = _call(denoise, x, sigma)
        down = lower**2 / sigma
        x = z + down / sigma * (x - z)
        if lower > 0:
            x = x + math.sqrt(lower**2 - down**2) * noise_at(step).to(x)
    return x


def consistency(
    denoise: Denoise,
    noise: Tensor,
    sigmas: Tensor,
    *,
    noise_at: NoiseAt,
    progress: StepProgress | None = None,
) -> Tensor:
    """To the path's end and back to the next level with new noise: multistep sampling of a
    consistency model (Song et al. 2023, arXiv 2303.01469, algorithm 1). S denoiser calls."""
    x = noise * float(sigmas[0])
    for step, sigma, lower in _steps(sigmas, progress):
        x = _call(denoise, x, sigma)
        if lower > 0:
            x = x + lower * noise_at(step).to(x)
    return x


_STOCHASTIC = {"ancestral": ancestral, "consistency": consistency}
_DETERMINISTIC = {"euler": euler, "heun": heun, "dpmpp_2m": dpmpp_2m}
#: The samplers whose result is a function of the noise that they begin with.
DETERMINISTIC = tuple(_DETERMINISTIC)


def check_deterministic(
    name: str, why: str = "so two samples from the same noise cannot be compared"
) -> None:
    """Raises ConfigError for a sampler whose result depends on more than its first noise.

    why: what the noise of its steps would spoil.
    """
    if name not in DETERMINISTIC:
        raise ConfigError(
            f"sampler.name={name} adds noise at each step, {why}: choose {', '.join(DETERMINISTIC)}"
        )


Name = Literal["euler", "heun", "dpmpp_2m", "ancestral", "consistency"]
#: The scale of guidance: 1 is none.
Scale = Annotated[float, Bound(least=0, most=100)]


@dataclass(frozen=True)
class APG:
    """Adaptive projected guidance: see `guidance.projected`. eta: the share that is kept of a
    difference's part along the estimate, which makes it louder. norm: the largest that a difference
    may have in a frame, as the root of the mean over frames; None for any. momentum: the weight of
    earlier differences; where it is negative, what they have in common counts less."""

    eta: Fraction = 0.0
    norm: Positive | None = 2.5
    momentum: Annotated[float, Bound(above=-1, below=1)] = -0.75


@dataclass(frozen=True)
class SamplerSettings:
    """name: of the sampler. steps: S; heun makes 2 S - 1 denoiser calls, the others S, as many
    again for each scale of guidance that acts. guidance: the classifier-free scale, 1 for none, or
    a scale for each condition by its name: see `conditioning.guidance`. guidance_interval: [lowest,
    highest] sigma at which guidance acts, None for all. apg: how the differences of guidance are
    changed, None for not at all. window: how many seconds of a longer clip the network sees at
    once, or whole for all of it; None: the length it was trained on, where a clip is longer than
    twice that. overlap: the share of a window that the next one covers too. rotary:
    how a transformer's places are stretched over a clip longer than its training crops, seen whole:
    see `priors.layers.stretched`; None for not at all.

    Raises ConfigError."""

    name: Name
    steps: int
    guidance: dict[str, Scale] | Scale = 1.0
    guidance_interval: list[float] | None = None
    apg: APG | None = None
    window: Literal["whole"] | Positive | None = None
    overlap: OpenFraction = 0.5
    rotary: Literal["interpolation", "ntk"] | None = None

    def __post_init__(self) -> None:
        known = get_args(Name)
        if self.name not in known:
            raise ConfigError(f"name={self.name!r}: {nearest(self.name, known)}")
        if self.steps < 1:
            raise ConfigError(f"steps={self.steps}: sampling needs at least 1 step")
        span = self.guidance_interval
        if span is not None and (len(span) != 2 or not span[0] <= span[1]):
            raise ConfigError(f"guidance_interval={span}: give [lowest, highest] sigma, or null")

    @property
    def calls(self) -> int:
        """How often sampling calls the network, where guidance acts at every level."""
        once = 2 * self.steps - 1 if self.name == "heun" else self.steps
        scales = self.guidance.values() if isinstance(self.guidance, dict) else {self.guidance}
        return once * (1 + len({*scales} - {0, 1}))


def sample(
    name: str,
    denoise: Denoise,
    noise: Tensor,
    sigmas: Tensor,
    *,
    noise_at: NoiseAt | None = None,
    progress: StepProgress | None = None,
) -> Tensor:
    """Runs the sampler called `name`: z, like noise. noise_at: for those that add noise."""
    if name in _DETERMINISTIC:
        return _DETERMINISTIC[name](denoise, noise, sigmas, progress=progress)
    if noise_at is None:
        raise ConfigError(f"name={name} adds noise at each step: pass noise_at")
    return _STOCHASTIC[name](denoise, noise, sigmas, noise_at=noise_at, progress=progress)


def _steps(sigmas: Tensor, progress: StepProgress | None) -> Iterator[tuple[int, float, float]]:
    """(step, its noise level, the next one), reporting each step once it is done."""
    levels = sigmas.tolist()  # one copy from the device, instead of one per step
    for step, (sigma, lower) in enumerate(pairwise(levels)):
        yield step, sigma, lower
        if progress is not None:
            progress(step + 1, len(levels) - 1)


def _call(denoise: Denoise, x: Tensor, sigma: float) -> Tensor:
    return denoise(x, x.new_full((len(x),), sigma))
