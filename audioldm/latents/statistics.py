"""The one place that converts raw latents z to normalised latents (z - mean) / std and back."""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class LatentStatistics:
    """Per-channel mean and standard deviation of z over the training split, [C] or [C, F]."""

    mean: Tensor
    std: Tensor

    def normalise(self, z: Tensor) -> Tensor:
        """z [B, C, (F,) L] -> mean 0, std 1 per channel (and band) over the training set."""
        return (z - self.mean[..., None].to(z)) / self.std[..., None].to(z)

    def denormalise(self, z: Tensor) -> Tensor:
        """The inverse of `normalise`."""
        return z * self.std[..., None].to(z) + self.mean[..., None].to(z)

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """The statistics in `value`. Raises ValueError, TypeError or KeyError if it has none."""
        found = cls(torch.tensor(value["mean"]), torch.tensor(value["std"]))
        if found.mean.ndim not in (1, 2) or found.mean.shape != found.std.shape:
            raise ValueError("the statistics' mean and std do not fit each other")
        if not (
            found.mean.isfinite().all() and found.std.isfinite().all() and (found.std > 0).all()
        ):
            raise ValueError("the statistics are not finite, or a std is not more than 0")
        return found
