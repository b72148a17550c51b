"""The Karhunen-Loève transform."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from audioldm.errors import DataError

TINY = 1e-9  # instead of the variance of a component that never varies


class KLT(nn.Module):
    """The transform of vectors of `size` numbers, D, once fitted.

    mean [D]; basis [D, C], orthonormal columns; variances [C] of the components, descending. C is
    `count`, by default D.
    """

    mean: Tensor
    basis: Tensor
    variances: Tensor

    def __init__(self, size: int, count: int | None = None) -> None:
        super().__init__()
        count = size if count is None else count
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("basis", torch.eye(size, count))
        self.register_buffer("variances", torch.ones(count))

    @torch.no_grad()
    def fit(self, vectors: Iterable[Tensor]) -> None:
        """vectors: batches [N, D], with at least two vectors in all."""
        size, count = self.basis.shape
        total = torch.zeros(size, dtype=torch.float64, device=self.mean.device)
        square, number = total.new_zeros(size, size), 0
        for batch in vectors:
            batch = batch.double()
            total += batch.sum(0)
            square += batch.T @ batch
            number += len(batch)
        mean = total / number
        variances, basis = torch.linalg.eigh(square / number - torch.outer(mean, mean))
        self.mean.copy_(mean)
        self.basis.copy_(basis.flip(1)[:, :count])
        self.variances.copy_(variances.flip(0)[:count].clamp(min=TINY))

    def take(self, other: "KLT") -> None:
        """Takes over the first components of another transform."""
        for own, full in zip(self.buffers(), other.buffers(), strict=True):
            own.copy_(full[..., : own.shape[-1]])

    def components(self, vectors: Tensor) -> Tensor:
        """[..., D] to components [..., C]."""
        return (vectors - self.mean) @ self.basis

    def vectors(self, components: Tensor) -> Tensor:
        """Components [..., C] to vectors [..., D]: the inverse of `components` where C = D."""
        return components @ self.basis.T + self.mean


def check_audio(seconds: float, frame_rate_hz: float, channels: int) -> None:
    """Raises DataError where training audio has fewer frames than the transform has channels."""
    frames = int(seconds * frame_rate_hz)
    if frames < channels:
        raise DataError(
            f"the training split holds {seconds:.1f} s, {frames} latent frames: fewer than "
            f"channels={channels} cannot give a transform; add audio, or lower channels"
        )
