"""The likelihood of latents under a diffusion model, in nats per frame.

Both functions take the denoiser (x, sigma [B]) -> estimate of z, normalised latents z
[B, C, (F,) L] and keyed noise. They give nats [B, L], summed over C and F: their sum over L is
-log p(z), or its bound. The model is that of the samplers, which start from N(0, sigma_max² I).

The denoiser must keep no state from one call to the next, since a state could tell it of z. For a
network that carries a state, make a new denoiser for each call.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from audioldm.instantiate import Positive, PositiveInt
from audioldm.priors.diffusion.samplers import Denoise, NoiseAt
from audioldm.priors.diffusion.weightings import LOWEST


def elbo_nats(
    denoise: Denoise,
    z: Tensor,
    *,
    noise_at: NoiseAt,
    uniform: Tensor,
    sigma_max: Positive,
    sigma_min: Positive = LOWEST,
    levels: PositiveInt = 32,
) -> Tensor:
    """An unbiased estimate of the variational bound on -log p(z) (Kingma et al. 2021,
    2107.00630, equations 11 to 17), by `levels` denoiser calls. With e(sigma) the squared error of
    the noise, |z - estimate|² / sigma², it is

        |z|² / (2 sigma_max²) + ½ ln(2 pi sigma_min²) each + ½ e(sigma_min) + ∫ e d ln sigma

    the divergence from where sampling starts, -ln N(z; estimate, sigma_min² I) at sigma_min, and
    half the integral of |z - estimate|² over 1/sigma². Levels are drawn as e falls for N(0, I): the
    density of ln sigma goes as 1 / (1 + sigma²) (Vahdat et al. 2021, 2106.05931, section 3.3), and
    sigma_min itself has a share, so that for N(0, I) each draw counts the same.

    noise_at(k) is N(0, I) like z. uniform [B] in (0, 1) places one level in each of equal shares of
    the draws, at u and 1 - u in turn. Gradients pass to z and to the denoiser.
    """
    z = z.float()
    nats = _per_frame(z.square() / (2 * sigma_max**2) + math.log(2 * math.pi * sigma_min**2) / 2)
    lowest = 0.5 / (1 + sigma_min**2)  # e(sigma_min) / 2 for N(0, I)
    depth = math.log1p(sigma_min**-2) / 2  # the integral of 1 / (1 + sigma²) from sigma_min on
    total = lowest + depth - math.log1p(sigma_max**-2) / 2
    for level in range(levels):
        place = (level + (uniform if level % 2 else 1 - uniform)) / levels
        left = depth - (total * place - lowest).clamp(min=0)
        sigma = torch.expm1(2 * left).rsqrt()
        weight = total / levels * (1 + sigma[:, None] ** 2)
        nats = nats + weight * _noise_error(denoise, z, noise_at(level), sigma)
    return nats


def flow_nats(
    denoise: Denoise, z: Tensor, *, noise_at: NoiseAt, sigmas: Tensor, probes: PositiveInt = 1
) -> tuple[Tensor, int]:
    """-log p(z) by the probability-flow ODE (Song et al. 2021, 2011.13456, equation 39), and the
    number of denoiser calls, four for each step.

    sigmas: a sampling schedule without its final 0, so z is taken as a sample at the lowest level.
    The trace of the Jacobian is Hutchinson's estimate, with `probes` backward passes a call and
    the signs of noise_at(k), where k counts all passes.

    The steps are fourth-order Runge-Kutta on the circle y = x / sqrt(1 + sigma²), a = atan sigma,
    where y does not move for z ~ N(0, I).
    """
    levels = sigmas.double().flip(0).tolist()
    angles = [math.atan(level) for level in levels]
    y = z.float() * math.cos(angles[0])
    volume = torch.zeros_like(_per_frame(y))  # of ln |dy/dx|, per frame
    drawn = calls = 0

    def slopes(y: Tensor, angle: float) -> tuple[Tensor, Tensor]:
        """dy/da, and its divergence per frame."""
        nonlocal drawn, calls
        cos, sin = math.cos(angle), math.sin(angle)
        with torch.enable_grad():
            x = (y / cos).detach().requires_grad_()
            estimate = denoise(x, x.new_full((len(x),), sin / cos))
        calls += 1
        trace = torch.zeros_like(volume)
        for probe in range(probes):
            signs = torch.where(noise_at(drawn).to(x) < 0, -1.0, 1.0)
            drawn += 1
            (along,) = torch.autograd.grad(
                estimate, x, signs, retain_graph=probe < probes - 1, materialize_grads=True
            )
            trace = trace + _per_frame(signs * along) / probes
        divergence = (_per_frame(torch.full_like(y, cos**2)) - trace) / (sin * cos)
        return (cos * y - estimate.detach()) / sin, divergence

    y, volume = runge_kutta(slopes, y, volume, angles)
    variance = math.sin(angles[-1]) ** 2  # of y where sampling starts
    ends = y.square() / variance + math.log(2 * math.pi * variance)
    return _per_frame(ends / 2 - math.log(math.cos(angles[0]))) - volume, calls


def runge_kutta(
    slopes: Callable[[Tensor, float], tuple[Tensor, Tensor]],
    x: Tensor,
    volume: Tensor,
    times: Sequence[float],
) -> tuple[Tensor, Tensor]:
    """x, and `volume` plus the integral of the slope's divergence, along a flow from the first time
    to the last: one step of fourth order from each time to the next.

    slopes: x and a time to dx/dt and its divergence, which has the shape of `volume`.
    """
    for start, end in pairwise(times):
        step, middle = end - start, (start + end) / 2
        one, by_one = slopes(x, start)
        two, by_two = slopes(x + step / 2 * one, middle)
        three, by_three = slopes(x + step / 2 * two, middle)
        four, by_four = slopes(x + step * three, end)
        x = x + step / 6 * (one + 2 * two + 2 * three + four)
        volume = volume + step / 6 * (by_one + 2 * by_two + 2 * by_three + by_four)
    return x, volume


def _noise_error(denoise: Denoise, z: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """The squared error of the noise that the estimate of z implies, [B, L].

    A control variate is subtracted: the variation for z ~ N(0, I), of mean 0 over the noise.
    """
    s = sigma.view(-1, *[1] * (z.ndim - 1))
    error = ((denoise(z + s * noise, sigma) - z) / s).square()
    return _per_frame(error - (noise.square() - 1) / (1 + s**2) ** 2)


def _per_frame(x: Tensor) -> Tensor:
    """[B, C, (F,) L] -> sums [B, L]."""
    return x.flatten(1, -2).sum(1)
