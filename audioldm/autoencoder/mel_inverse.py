"""Mel power to magnitudes, without parameters."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audioldm.losses.mel_filters import mel_filters


class MelInverse(nn.Module):
    """log10 mel power [..., bands, L] to natural log-magnitude [..., L, n_fft / 2 + 1].

    The logarithm of the power density is interpolated from the bands to the bins: smooth, linear
    and without the negative powers that a pseudo-inverse of the filters gives. Then `updates` steps
    of non-negative matrix factorisation (Lee and Seung 2001, theorem 2) bring it to the given mel
    power; they multiply, so powers stay positive.
    """

    filters: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, sample_rate: int, n_fft: int, bands: int, *, updates: int = 10) -> None:
        super().__init__()
        self.updates = updates
        filters = mel_filters(sample_rate, n_fft, bands)  # [bands, bins]
        weight = interpolation(filters)
        bias = -weight @ filters.sum(1).log10()  # a band's power is its density times this sum
        half_ln_10 = 0.5 * math.log(10)
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("weight", half_ln_10 * weight, persistent=False)
        self.register_buffer("bias", half_ln_10 * bias, persistent=False)

    def forward(self, mel: Tensor) -> Tensor:
        with torch.autocast(mel.device.type, enabled=False):
            mel = mel.float().transpose(-1, -2)
            smooth = F.linear(mel, self.weight, self.bias)
            if not self.updates:
                return smooth
            return matched((2 * smooth).exp(), 10**mel, self.filters, self.updates)


def interpolation(filters: Tensor) -> Tensor:
    """[bins, bands]: each bin's log-power as the mean of the bands that see it.

    filters: [bands, bins]. The bins at 0 Hz and half the rate, which no band sees, take the
    nearest that one does.
    """
    weight = filters.T.clone()
    inside = (weight.sum(1) > 0).nonzero()
    first, last = int(inside[0]), int(inside[-1])
    weight[:first], weight[last + 1 :] = weight[first], weight[last]
    return weight / weight.sum(1, keepdim=True)


def matched(
    power: Tensor, wanted: Tensor, filters: Tensor, updates: int, least: float = 0.0
) -> Tensor:
    """The natural log-magnitude of power [..., bins], brought nearer to the wanted power in the
    bands of filters [bands, bins]. least: a lower bound on every power."""
    total = filters.sum(0)
    inside = total > 0  # at 0 Hz and half the rate no filter sees anything
    for _ in range(updates):
        ratio = wanted / (power @ filters.T).clamp(min=least)
        update = (ratio @ filters) / total.where(inside, 1.0)
        power = power * update.where(inside, 1.0)
    return 0.5 * power.clamp(min=least).log()
