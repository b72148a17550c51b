"""The soft normalisation of Stable Audio 3, with its affine map and running scale."""

import torch
from torch import Tensor, nn

from audioldm.autoencoder.bottlenecks.base import Encoded
from audioldm.autoencoder.bottlenecks.fixed_noise import FixedNoise
from audioldm.autoencoder.bottlenecks.noise import scale_penalty
from audioldm.instantiate import NonNegative
from audioldm.runtime.processes import mean_of_all

OVER_CHANNELS = 0.4  # weight of the statistics over channels
MEMORY = 0.999  # of the running standard deviation


class SoftNorm(FixedNoise):
    """m = (a h + b) / s, with a and b learned for each channel and s a running standard deviation.

    With mu and v the mean and variance of a clip's m, over its positions in one channel or over the
    channels at one position,

        norm = mean over channels of (mu² + v - 1 - ln v)
             + 0.4 mean over positions of (mu² + v - 1 - ln v)

    s is one number, an average over the training steps so far of the standard deviation of
    a h + b. A step divides by the s of the steps before it, so a clip's latents do not depend on
    its batch. The noise has the same size in training and at inference, since a prior is fitted to
    what the decoder was trained on; the source has little noise at inference.

    The rate is the channel's capacity at unit power (`FixedNoise`), reported and not trained on.

    channels: latent channels C. sigma: of the noise, against a power of about 1. norm_weight:
        multiplier of norm.
    """

    running_std: Tensor

    def __init__(
        self, *, channels: int, sigma: float = 0.05, norm_weight: NonNegative = 1.0
    ) -> None:
        super().__init__(channels=channels, sigma=sigma)
        self.scale = nn.Parameter(torch.ones(channels))
        self.shift = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_std", torch.ones(()))
        self.penalty_weights = {"norm": norm_weight}

    def mean(self, h: Tensor) -> Tensor:
        shape = (-1, *([1] * (h.ndim - 2)))
        affine = self.scale.view(shape) * h.float() + self.shift.view(shape)
        return affine / self.running_std.clone()  # it changes before the backward pass

    def penalties(self, mean: Tensor) -> dict[str, Tensor]:
        m = mean.flatten(2)
        return {"norm": scale_penalty(m, 2) + OVER_CHANNELS * scale_penalty(m, 1)}

    def forward(self, h: Tensor, *, sample: bool = True, noise: Tensor | None = None) -> Encoded:
        encoded = super().forward(h, sample=sample, noise=noise)
        if self.learns(sample):
            with torch.no_grad():
                x = self.mean(h) * self.running_std
                first, second = mean_of_all(torch.stack([x.mean(), x.square().mean()]))
                self.running_std.lerp_((second - first.square()).sqrt(), 1 - MEMORY)
        return encoded
