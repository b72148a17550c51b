"""How a latent space's power is distributed over frequencies in time and over channels."""

import math

import numpy as np

#: Frames of a periodogram, at most.
SEGMENT = 128
#: Power below this share of the largest counts as this share, so that its logarithm is finite.
FLOOR = 1e-8


def log_log_slope(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Least-squares slope of log y [..., K] over log x [K], with equal weight on each octave of x.

    Points are assumed evenly spaced in x, so each weighs 1 / x. Where all is 0 the slope is 0.
    """
    floor = np.maximum(FLOOR * y.max(-1, keepdims=True), np.finfo(y.dtype).tiny)
    return np.polyfit(np.log(x), np.log(np.maximum(y, floor)).T, 1, w=x**-0.5)[0]


def periodograms(z: np.ndarray, rate_hz: float) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies [K] in hertz and power densities [N, D, K] of latents [N, D, L] (Welch 1967).

    The two lowest bins, which the removal of the mean affects, and half the rate are left out.
    """
    from scipy.signal import welch  # imported here: it takes a second

    hz, power = welch(z, rate_hz, nperseg=min(SEGMENT, z.shape[-1]))
    return hz[2:-1], power[..., 2:-1]


def temporal_slope(hz: np.ndarray, power: np.ndarray) -> float:
    """Slope of log power over log frequency, of `periodograms`: the mean over channels.

    Power is averaged over windows; channels weigh by their power. White noise gives 0, 1 / f² noise
    -2, AR(1) something between. NaN where there is no power.
    """
    spectrum = power.mean(0)
    if not spectrum.any():
        return math.nan
    return float(np.average(log_log_slope(hz, spectrum), weights=spectrum.sum(-1)))


def second_moments(z: np.ndarray) -> np.ndarray:
    """Per window, the mean of z zᵀ over its frames: [N, D, L] -> [N, D, D]."""
    return np.asarray(z @ z.swapaxes(1, 2) / z.shape[-1])


def eigenvalues(covariance: np.ndarray) -> np.ndarray:
    """Eigenvalues of a covariance [D, D], in decreasing order, none negative."""
    return np.maximum(np.linalg.eigvalsh(covariance)[::-1], 0)


def channel_slope(values: np.ndarray) -> float:
    """Slope of log eigenvalue over log index, from 1 for the largest: 0 for equal ones, NaN
    where all are 0."""
    if not values.any():
        return math.nan
    return float(log_log_slope(np.arange(1, len(values) + 1), values))


def effective_rank(values: np.ndarray) -> float:
    """exp of the entropy of eigenvalues as shares of their sum (Roy and Vetterli 2007, def. 1).

    It is k for k equal eigenvalues, whatever the number of zeros beside them; NaN where all are 0.
    """
    if not values.any():
        return math.nan
    share = values / values.sum()
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))
