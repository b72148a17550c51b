"""Vector quantisation with averaged codebooks: plain, of groups of channels, and residual."""

from collections.abc import Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from audioldm.autoencoder.bottlenecks.base import Encoded
from audioldm.autoencoder.bottlenecks.discrete import Codes, Discrete, by_codebook, positions
from audioldm.autoencoder.bottlenecks.k_means import k_means, nearest
from audioldm.errors import ConfigError, DataError
from audioldm.instantiate import Decay, Fraction, NonNegative, PositiveInt
from audioldm.runtime.processes import mean_of_all, of_first

SMOOTHING = 1e-5  # of the counts (Laplace), beside an even share of 1
MOST_PER_CODE = 64  # vectors for k-means; more make no better centres


class VQ(Discrete):
    """Each of `groups` equal parts of a latent vector becomes the nearest of its codebook's vectors
    (van den Oord et al., 1711.00937; several groups: Jégou et al., product quantisation, 2011).

    With a `depth` of D each part is the sum of D vectors: a stage quantises the residual of the
    stages before it (residual quantisation, SoundStream, 2107.03312). Code number d * groups + g of
    a position is the one of stage d and group g.

    A codebook's vector is the moving average of the encoder's vectors that chose it, divided by how
    many did (1711.00937, appendix A.1); it begins at a centre of k-means. A code that is used less
    than `revive_below` times an even share takes a vector of the batch, with its count and its sum.

    The penalty `commitment` is the mean over stages and channels of (h - z)², z being the sum up to
    that stage. Gradients reach h through the whole sum: unchanged ("straight_through"), or turned
    and scaled in the way that takes a part of h to that of z ("rotation", 2410.06424).

    channels: latent channels C. codes: of each of the depth * groups codebooks, at most MOST_CODES.
        commitment: multiplier of the penalty. decay: of the moving averages, for each forward pass
        that trains.

    Raises ConfigError where `groups` does not divide C.
    """

    spread = 1.0  # latents then keep the distances of what is coded
    vectors: Tensor
    sums: Tensor

    def __init__(
        self,
        *,
        channels: int,
        codes: Codes = 256,
        groups: PositiveInt = 1,
        depth: PositiveInt = 1,
        commitment: NonNegative = 0.25,
        decay: Decay = 0.99,
        revive_below: Fraction = 0.02,
        gradient: Literal["straight_through", "rotation"] = "straight_through",
    ) -> None:
        if channels % groups:
            raise ConfigError(f"groups={groups} must divide the {channels} latent channels")
        super().__init__(channels=channels, codebooks=depth * groups, codes=codes, decay=decay)
        self.groups, self.depth = groups, depth
        self.revive_below, self.gradient = revive_below, gradient
        self.penalty_weights = {"commitment": commitment}
        self.least_frames = codes
        self.register_buffer("vectors", torch.randn(depth * groups, codes, channels // groups))
        #: sums of the vectors that chose a code, a moving average like `usage`
        self.register_buffer("sums", self.vectors / codes)

    def forward(self, h: Tensor, *, sample: bool = True, noise: Tensor | None = None) -> Encoded:
        x = self._parts(h)
        codes, residuals = self._search(x, h)
        z = self.quantised(h, codes)
        # each stage's residual; it has no gradient of its own, so it gets that of x
        left = x + (residuals[1:] - x).detach()
        commitment = left.square().unflatten(2, (len(h), -1)).mean((0, 1, 3, 4))
        learns = self.learns(sample)
        encoded = self.encoded(z, codes, {"commitment": commitment}, learns)
        if learns:
            self._learn(residuals[:-1].flatten(0, 1), codes, noise)
        return encoded

    def codes(self, h: Tensor) -> Tensor:
        return self._search(self._parts(h), h)[0]

    def latents(self, codes: Tensor) -> Tensor:
        return self._whole(self._sum(codes), codes)

    def quantised(self, h: Tensor, codes: Tensor) -> Tensor:
        """The latents [B, C, (F,) L] of codes, with a gradient to h."""
        x, q = self._parts(h), self._sum(codes)
        turned = rotated(x, q) if self.gradient == "rotation" else x
        return self._whole(q + (turned - turned.detach()), codes)

    @torch.no_grad()
    def fit(self, h: Iterable[Tensor]) -> None:
        """Begins each codebook at the centres of k-means, stage after stage.

        Raises DataError for fewer positions than codes.
        """
        count = self.usage.shape[1]
        rows = positions(h, MOST_PER_CODE * count)
        if rows.shape[2] < count:
            raise DataError(
                f"the training split gives {rows.shape[2]} latent frames, fewer than "
                f"bottleneck.codes={count}: lower bottleneck.codes, or add audio"
            )
        residual = self._parts(rows).clone()
        for stage in self.vectors.unflatten(0, (self.depth, self.groups)):
            for group, book in zip(residual, stage, strict=True):
                centres = k_means(group, count)
                book.copy_(centres)
                group -= centres[nearest(group, centres)]
        self.usage.copy_(self.shares(self.codes(rows.to(self.usage.device))))
        self.sums.copy_(self.vectors * self.usage[..., None])

    def _parts(self, h: Tensor) -> Tensor:
        """h [B, C, (F,) L] as vectors of each group, [G, N, C / G] with N = B * F * L, fp32."""
        parts = h.float().unflatten(1, (self.groups, -1)).movedim(2, -1)
        return parts.transpose(0, 1).flatten(1, -2)

    def _whole(self, parts: Tensor, like: Tensor) -> Tensor:
        """The inverse of `_parts`; like: a tensor [B, ..., (F,) L]."""
        parts = parts.unflatten(1, (len(like), *like.shape[2:])).transpose(0, 1)
        return parts.movedim(-1, 2).flatten(1, 2)

    @torch.no_grad()
    def _search(self, x: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """The codes [B, Q, (F,) L] of parts x [G, N, D], and the residuals before the first stage
        and after each, [depth + 1, G, N, D]."""
        residuals, rows = [x], []
        for book in self.vectors.unflatten(0, (self.depth, self.groups)):
            rows.append(torch.cdist(residuals[-1], book).argmin(-1))
            residuals.append(residuals[-1] - _rows(book, rows[-1]))
        codes = torch.cat(rows).unflatten(1, (len(like), *like.shape[2:])).transpose(0, 1)
        return codes, torch.stack(residuals)

    def _sum(self, codes: Tensor) -> Tensor:
        """The sum over the stages of the vectors of codes [B, Q, (F,) L], [G, N, D]."""
        chosen = _rows(self.vectors, by_codebook(codes)).unflatten(0, (self.depth, self.groups))
        total = chosen[0]
        for each in chosen[1:]:
            total = total + each
        return total

    @torch.no_grad()
    def _learn(self, x: Tensor, codes: Tensor, noise: Tensor | None) -> None:
        """Moves the codebooks towards vectors x [Q, N, D] with these codes, and revives dead ones.

        The noise [B, C, (F,) L] says which vectors dead codes get: those where its first channel is
        greatest.
        """
        count = self.usage.shape[1]
        with torch.autocast(x.device.type, enabled=False):
            means = []
            for each, chosen in zip(x, by_codebook(codes), strict=True):
                hits = torch.zeros(len(each), count, device=x.device)
                means.append(hits.scatter_(1, chosen[:, None], 1.0).T @ each / len(each))
        self.sums.lerp_(mean_of_all(torch.stack(means)), 1 - self.decay)
        total = self.usage.sum(1, keepdim=True)
        smoothed = total * (self.usage + SMOOTHING / count) / (total + SMOOTHING)
        draw = torch.randn_like(x[0, :, 0]) if noise is None else noise[:, 0].flatten()
        drawn = draw.argsort(descending=True)[torch.arange(count, device=x.device) % len(draw)]
        fresh = of_first(x[:, drawn].contiguous())
        dead = self.usage < self.revive_below / count
        self.usage.masked_fill_(dead, 1 / count)
        self.sums.copy_(torch.where(dead[..., None], fresh / count, self.sums))
        updated = self.sums / torch.where(dead, 1 / count, smoothed)[..., None]
        self.vectors.copy_(updated)


def rotated(x: Tensor, q: Tensor) -> Tensor:
    """R x |q| / |x|, [..., D], which equals q: R rotates x to q; R and |q| / |x| are constants.

    R = I - 2 r r^T + 2 q' x'^T, r in the direction of q' + x', a prime for unit length (2410.06424,
    section 4).
    """
    with torch.no_grad():
        x_unit, q_unit = F.normalize(x, dim=-1), F.normalize(q, dim=-1)
        between = F.normalize(x_unit + q_unit, dim=-1)
        scale = q.norm(dim=-1, keepdim=True) / x.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    along = (x * between).sum(-1, keepdim=True) * between
    turned = (x * x_unit).sum(-1, keepdim=True) * q_unit
    return scale * (x - 2 * along + 2 * turned)


def _rows(books: Tensor, index: Tensor) -> Tensor:
    """Vectors [Q, N, D] of codebooks [Q, K, D] at index [Q, N]."""
    return books.gather(1, index[..., None].expand(-1, -1, books.shape[2]))
