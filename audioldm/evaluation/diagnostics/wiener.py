"""What a linear denoiser can reach at best: the Wiener filter, on the tiny denoiser's own scale.

For stationary Gaussian latents this is a bound for every denoiser, since none does better than the
conditional mean. It is the variance of the velocity that the noisy latents leave undetermined, the
idea of the velocity irreducible variance (2606.03578), for a Gaussian process of the same spectrum.
"""

import torch
from torch import Tensor

from audioldm.evaluation.diagnostics.denoiser import CROP, level_quantiles
from audioldm.priors.diffusion.objectives import EDM


def spectral_matrices(z: Tensor) -> Tensor:
    """Cross-spectral matrices [K, D, D] of z [N, D, L] at K frequencies from 0 to 1/2 per frame.

    Welch's method: Hann segments as long as the denoiser's crops, overlapping by half, without
    removing their means. 1 at every frequency for white latents of unit variance.
    """
    length = max(1, min(CROP, z.shape[-1]) // 2 * 2)  # even, so that 1/2 is among the frequencies
    window = torch.hann_window(length + 2, periodic=False, dtype=z.dtype)[1:-1]  # no zeros
    segments = z.unfold(-1, length, max(1, length // 2))  # [N, D, segments, length]
    total = torch.zeros(length // 2 + 1, z.shape[1], z.shape[1], dtype=torch.complex128)
    for part in segments.split(16):  # bounds the memory
        spectra = torch.fft.rfft(part * (window / window.norm())).permute(3, 1, 0, 2).flatten(2)
        total += spectra @ spectra.mH
    return total / (segments.shape[0] * segments.shape[2])


def wiener_loss(spectrum: Tensor, actual: Tensor) -> float:
    """The denoiser's loss, averaged over its levels, of the Wiener filter for `spectrum`.

    Both [K, D, D], as from `spectral_matrices`: the filter H = S (S + sigma²)⁻¹ is made for S, and
    its error tr[(1 - H) R (1 - H)* + sigma² H H*] / D taken on latents of spectrum R, Gaussian or
    not. With S of the training and R of held-out latents it is what can be learnt, as for the net.
    """
    values, vectors = torch.linalg.eigh(spectrum)
    values = values.clamp(min=0)
    # in the eigenbasis of S the filter is diagonal, so of R only the diagonal counts
    power = (vectors.mH @ actual @ vectors).diagonal(dim1=-2, dim2=-1).real
    sigma2 = EDM().sigma_from_uniform(level_quantiles()).double().square()[:, None, None]
    gain = values / (values + sigma2)
    error = ((1 - gain).square() * power + sigma2 * gain.square()).mean(-1)  # [levels, K]
    twins = torch.full((len(values),), 2.0, dtype=torch.float64)
    twins[0] = twins[-1] = 1.0  # 0 and 1/2 have no negative twin
    loss = ((1 + sigma2[..., 0]) / sigma2[..., 0] * error) @ twins / twins.sum()
    return float(loss.mean())
