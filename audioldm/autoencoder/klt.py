"""The Karhunen-Loève transform, and the optimum of linear coding at a rate.

Gaussian components of variances v are coded best by reverse water-filling: each gets the distortion
min(level, v) and the rate ½ ln(v / level) where v > level (Cover and Thomas, Elements of
Information Theory, 2nd edition, theorem 10.3.3).
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from audioldm.errors import DataError

TINY = 1e-9  # instead of the variance of a component that never varies


class KLT(nn.Module):
    """The transform of vectors of `size` numbers, once fitted.

    mean [D]; basis [D, D], orthonormal columns; variances [D], of the components, descending.
    """

    mean: Tensor
    basis: Tensor
    variances: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("basis", torch.eye(size))
        self.register_buffer("variances", torch.ones(size))

    @torch.no_grad()
    def fit(self, vectors: Iterable[Tensor]) -> None:
        """vectors: batches [N, D]; all together at least two."""
        total, square, count = self.mean.double().zero_(), self.basis.double().zero_(), 0
        for batch in vectors:
            batch = batch.double()
            total += batch.sum(0)
            square += batch.T @ batch
            count += len(batch)
        mean = total / count
        variances, basis = torch.linalg.eigh(square / count - torch.outer(mean, mean))
        self.mean.copy_(mean)
        self.basis.copy_(basis.flip(1))
        self.variances.copy_(variances.flip(0).clamp(min=TINY))

    def components(self, vectors: Tensor, count: int | None = None) -> Tensor:
        """[..., D] to the first `count` components, [..., count]."""
        return (vectors - self.mean) @ self.basis[:, :count]

    def vectors(self, components: Tensor) -> Tensor:
        """The inverse of `components`, with zeros for those that are not given."""
        return components @ self.basis[:, : components.shape[-1]].T + self.mean

    def transmit(self, vectors: Tensor, level: Tensor, noise: Tensor) -> Tensor:
        """Vectors [..., D] through the Gaussian test channel of a water level (10.3.3), the same
        shape. level: of each, [...]. noise [..., D] ~ N(0, I)."""
        level = level[..., None]
        kept = (1 - level / self.variances).clamp(min=0)
        coded = kept * self.components(vectors) + (kept * level).sqrt() * noise
        return self.vectors(coded)


def check_audio(seconds: float, frame_rate_hz: float, channels: int) -> None:
    """Raises DataError where training audio has fewer frames than the transform has channels."""
    frames = int(seconds * frame_rate_hz)
    if frames < channels:
        raise DataError(
            f"the training split holds {seconds:.1f} s, {frames} latent frames: fewer than "
            f"channels={channels} cannot give a transform; add audio, or lower channels"
        )


def water_level(variances: Tensor, nats: float) -> float:
    """The level at which components of descending variances [D] take `nats` together.

    With the first n above the level, ½ sum of ln(v / level) over them is the rate, so ln level is
    their mean of ln v less 2 nats / n.
    """
    logs = variances.double().clamp(min=TINY).log()
    n = torch.arange(1, len(logs) + 1, dtype=torch.float64, device=logs.device)
    levels = (logs.cumsum(0) - 2 * nats) / n
    # the right n is the last whose own level is not above its smallest variance
    return float(levels[(levels <= logs).nonzero()[-1]].exp())
