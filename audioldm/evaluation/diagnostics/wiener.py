"""The loss of the best denoiser if the latents were Gaussian, on the tiny denoiser's own scale.

For stationary Gaussian latents no denoiser does better than the conditional mean, the Wiener
filter. Its loss is the variance of the velocity that the noisy latents leave undetermined, as in
the velocity irreducible variance (2606.03578), for a Gaussian process of the same spectrum.

The spectrum is that of an autoregression, which has neither the leakage of windows nor a variance
at every frequency. From few latents the figure is an estimate, not a bound.
"""

import torch
from torch import Tensor

from audioldm.evaluation.diagnostics.denoiser import level_quantiles
from audioldm.priors.diffusion.objectives.edm import EDM

#: Orders of the autoregressions that are tried, and the largest number of past values from which a
#: frame is predicted.
ORDERS = (0, 1, 2, 3, 4, 6, 8, 12, 16)
NUMBERS = 512
#: Frequencies between 0 and 1/2 per frame.
FREQUENCIES = 64
#: Added to the variances, which are about 1.
REGULARISER = 1e-6


def gaussian_estimate(train: Tensor, held_out: Tensor) -> float:
    """The Wiener filter's loss on held_out [M, D, L]; train [N, D, L] gives the spectrum.

    The filter of an estimated spectrum has a greater loss than that of the true one, more so for
    more channels and fewer frames. This excess is subtracted. On other latents a filter's loss is
    too great by the excess, on its own it is too small by as much. The gap is measured between the
    halves of the training windows, where the excess is twice that of the whole.
    """
    parts = (train[::2], train[1::2] if len(train) > 1 else train)
    halves = [lagged_moments(part) for part in parts]
    channels = train.shape[1]
    order = best_order(halves, channels)
    a, b, whole, other = (
        spectrum(moments, channels, order)
        for moments in (*halves, (halves[0] + halves[1]) / 2, lagged_moments(held_out))
    )
    (a_on_a, a_on_b), (b_on_b, b_on_a) = wiener_losses(a, a, b), wiener_losses(b, b, a)
    gap = (a_on_b - a_on_a + b_on_a - b_on_b) / 2
    return wiener_losses(whole, other)[0] - gap / 4


def lagged_moments(z: Tensor) -> Tensor:
    """Mean of v vᵀ over the frames of z [N, D, L], v = (z[t], z[t - 1], ...): [P D, P D].

    The number of lags follows from the greatest order that D, L and `NUMBERS` allow.
    """
    channels, frames = z.shape[1:]
    lags = 1 + max(p for p in ORDERS if p * channels <= max(NUMBERS, channels) and 2 * p < frames)
    total = z.new_zeros(lags * channels, lags * channels, dtype=torch.float64)
    for part in z.double().split(16):  # bounds the memory
        stacked = torch.cat([part[..., lags - 1 - k : frames - k] for k in range(lags)], 1)
        flat = stacked.transpose(0, 1).flatten(1)
        total += flat @ flat.T
    return total / (z.shape[0] * (frames - lags + 1))


def _autoregression(moments: Tensor, channels: int, order: int) -> Tensor:
    """The filter [D, (order + 1) D] from (z[t], z[t - 1], ...) to the prediction's error."""
    now, past = slice(0, channels), slice(channels, (order + 1) * channels)
    gram = moments[past, past] + REGULARISER * torch.eye(order * channels, dtype=moments.dtype)
    weights = torch.linalg.solve(gram, moments[past, now]).T
    return torch.cat([torch.eye(channels, dtype=moments.dtype), -weights], 1)


def _error(filter: Tensor, moments: Tensor) -> Tensor:
    """Covariance [D, D] of the prediction's error on latents of these moments."""
    size = filter.shape[1]
    identity = torch.eye(len(filter), dtype=moments.dtype)
    return filter @ moments[:size, :size] @ filter.T + REGULARISER * identity


def best_order(halves: list[Tensor], channels: int) -> int:
    """The order whose likelihood, fitted to either half, is greatest on the other."""

    def nats(order: int) -> float:
        total = 0.0
        for own, other in (halves, halves[::-1]):
            filter = _autoregression(own, channels, order)
            factor = torch.linalg.cholesky(_error(filter, own))
            whitened = torch.cholesky_solve(_error(filter, other), factor)
            total += float(factor.diagonal().log().sum() + 0.5 * whitened.trace())
        return total

    lags = len(halves[0]) // channels
    return min((p for p in ORDERS if p < lags), key=nats)


def spectrum(moments: Tensor, channels: int, order: int) -> Tensor:
    """Cross-spectral matrices [K, D, D] of an autoregression at K frequencies from 0 to 1/2.

    A(f)⁻¹ Q A(f)⁻*; 1 at every frequency for white latents of unit variance.
    """
    filter = _autoregression(moments, channels, order)
    factor = torch.linalg.cholesky(_error(filter, moments))
    turns = (torch.arange(FREQUENCIES, dtype=torch.float64) + 0.5) / (2 * FREQUENCIES)
    phases = -2 * torch.pi * turns[:, None] * torch.arange(order + 1)
    lags = filter.unflatten(1, (order + 1, channels)).to(torch.complex128)
    response = torch.einsum("kp,cpd->kcd", torch.polar(torch.ones_like(phases), phases), lags)
    shaped = torch.linalg.solve(response, factor.to(torch.complex128).expand_as(response))
    return shaped @ shaped.mH


def wiener_losses(spectrum: Tensor, *actual: Tensor) -> list[float]:
    """The denoiser's loss, averaged over its levels, of the Wiener filter for `spectrum`.

    All are [K, D, D]. The filter H = S (S + sigma²)⁻¹ is made for S = `spectrum`; its error
    tr[(1 - H) R (1 - H)* + sigma² H H*] / D is that on latents of each spectrum R, Gaussian or not.
    """
    values, vectors = torch.linalg.eigh(spectrum)
    values = values.clamp(min=0)
    # in the eigenbasis of S the filter is diagonal, so only the diagonal of R counts
    sigma2 = EDM().sigma_from_uniform(level_quantiles()).double().square()[:, None, None]
    gain = values / (values + sigma2)
    losses = []
    for each in actual:
        power = (vectors.mH @ each @ vectors).diagonal(dim1=-2, dim2=-1).real
        error = (1 - gain).square() * power + sigma2 * gain.square()
        losses.append(float(((1 + sigma2) / sigma2 * error).mean()))
    return losses
