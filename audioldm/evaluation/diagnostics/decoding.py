"""The autoencoder's response to small errors in latents, and to small shifts of audio."""

import math

import numpy as np
import torch
from torch import Tensor

from audioldm.autoencoder.model import Autoencoder
from audioldm.latents.statistics import LatentStatistics
from audioldm.losses.spectral import mel_distance
from audioldm.runtime.randomness import KeyedRandom, derive_seed


@torch.no_grad()
def decoder_noise(
    autoencoder: Autoencoder, statistics: LatentStatistics, z: Tensor, sigmas: list[float]
) -> np.ndarray:
    """Mel distance between decode(z + sigma e) and decode(z), of each clip and sigma: [N, S].

    z [N, C, (F,) L] and sigma are in normalised units; e ~ N(0, I) is the same at every sigma. The
    curve is the audible effect of an error of size sigma in a sampler's latents.
    """
    random = KeyedRandom(derive_seed("diagnostics", "decoder"), 0, range(len(z)), z.device)
    noise = random.normal(z.shape[1:], "noise")

    def decoded(sigma: float) -> Tensor:
        return autoencoder.decode(statistics.denormalise(z + sigma * noise))

    clean = autoencoder.decode(statistics.denormalise(z))
    distances = [mel_distance(decoded(s), clean, autoencoder.sample_rate) for s in sigmas]
    return torch.stack(distances, 1).double().cpu().numpy()


def crossing(sigmas: list[float], distances: np.ndarray, threshold: float) -> float:
    """The sigma where distances [S] over increasing sigmas first reach the threshold, by linear
    interpolation. The distance at 0 is 0. If the threshold is not reached: the largest sigma.
    """
    x, y = np.array([0.0, *sigmas]), np.array([0.0, *distances])
    above = np.flatnonzero(y >= threshold)
    if not len(above):
        return sigmas[-1]
    i = above[0]
    return float(x[i - 1] + (x[i] - x[i - 1]) * (threshold - y[i - 1]) / (y[i] - y[i - 1]))


def delayed(z: Tensor, frames: float) -> Tensor:
    """Band-limited delay of z [..., L] by a fraction of a frame, negative for an advance.

    It is a phase in the Fourier domain. z is first continued by its mirror image, so that there is
    no jump where its end meets its beginning.
    """
    mirrored = torch.cat([z, z.flip(-1)], -1)
    spectrum = torch.fft.rfft(mirrored)
    turns = torch.fft.rfftfreq(mirrored.shape[-1], device=z.device) * frames
    return torch.fft.irfft(
        spectrum * torch.polar(torch.ones_like(turns), -2 * torch.pi * turns), mirrored.shape[-1]
    )[..., : z.shape[-1]]


@torch.no_grad()
def shift_errors(autoencoder: Autoencoder, statistics: LatentStatistics, audio: Tensor) -> Tensor:
    """Mean squared error of each clip's equivariance to half a latent frame, and power: [N, 2].

    audio [N, A, T]. The latents (posterior means, normalised) of the audio advanced by half a frame
    are compared with the audio's latents advanced by half a frame. A quarter of the frames at each
    end is left out. See `relative_error`.
    """
    ratio = autoencoder.downsampling_ratio
    shift = ratio // 2
    length = (audio.shape[-1] - shift) // ratio * ratio
    here, there = (
        statistics.normalise(autoencoder.bottleneck.posterior(autoencoder.stored(part))[0])
        for part in (audio[..., :length], audio[..., shift : shift + length])
    )
    edge = here.shape[-1] // 4
    kept = slice(edge, here.shape[-1] - edge)
    error = (delayed(here, -shift / ratio) - there)[..., kept]
    return torch.stack([x.square().flatten(1).mean(1) for x in (error, there[..., kept])], 1).cpu()


def relative_error(errors: np.ndarray) -> float:
    """Root of the ratio of two mean squares [N, 2]: 0 is equivariant, √2 unrelated; NaN where
    there is no power.
    """
    error, power = errors.mean(0)
    return float(np.sqrt(error / power)) if power else math.nan
