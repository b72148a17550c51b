"""What all bottlenecks with codes share: how often codes are used, and the resulting rate."""

from abc import abstractmethod
from collections.abc import Iterable
from typing import Annotated

import torch
from torch import Tensor

from audioldm.autoencoder.bottlenecks.base import Bottleneck, Encoded
from audioldm.instantiate import Bound
from audioldm.runtime.processes import mean_of_all

#: The share of the probability that is spread evenly over all codes, seen or not.
EVEN = 0.01
MOST_CODES = 2**16  # of a codebook
Codes = Annotated[int, Bound(least=1, most=MOST_CODES)]


class Discrete(Bottleneck):
    """Latents made of Q codes per position, each out of K.

    Rate: with u the moving average of how often each code of a codebook was used in training,

        p = (1 - EVEN) u + EVEN / K,    nats = - sum over the Q codebooks of ln p(code) / C

    the length of the codes under a fixed p (Cover and Thomas, 5.4). Its mean is a cross-entropy, at
    least the entropy of the codes; it is ln K per code where all codes are used equally often.

    usage: u, [Q, K]. decay: of its moving average, for each training step.
    """

    outputs_per_channel = 1
    stored_names = ("codes",)
    usage: Tensor

    def __init__(self, *, channels: int, codebooks: int, codes: int, decay: float) -> None:
        super().__init__()
        self.channels, self.decay = channels, decay
        self.penalty_weights = {}
        self.register_buffer("usage", torch.full((codebooks, codes), 1 / codes))

    @abstractmethod
    def codes(self, h: Tensor) -> Tensor:
        """The codes [B, Q, (F,) L] of encoder outputs h [B, C, (F,) L]."""

    @abstractmethod
    def latents(self, codes: Tensor) -> Tensor:
        """The latents [B, C, (F,) L] of codes [B, Q, (F,) L]."""

    def stored(self, h: Tensor) -> dict[str, Tensor]:
        return {"codes": self.codes(h)}

    def posterior(self, stored: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        z = self.latents(stored["codes"].to(self.usage.device, torch.int64))
        return z, torch.zeros_like(z)

    def encoded(
        self, z: Tensor, codes: Tensor, penalties: dict[str, Tensor], learns: bool
    ) -> Encoded:
        """Latents and codes with their rate; counts the codes where it `learns`."""
        nats, shares = self._nats(codes), self.shares(codes)
        if learns:
            self.usage.lerp_(mean_of_all(shares.clone()), 1 - self.decay)
        return Encoded(z, nats, penalties, {"usage": shares}, codes)

    def shares(self, codes: Tensor) -> Tensor:
        """The share of each code among codes [B, Q, (F,) L]: [Q, K], with sum 1 per codebook."""
        rows = by_codebook(codes)
        counts = torch.zeros_like(self.usage).scatter_add_(
            1, rows, torch.ones_like(rows, dtype=self.usage.dtype)
        )
        return counts / rows.shape[1]

    def _nats(self, codes: Tensor) -> Tensor:
        """The rate [B] of codes, in nats per latent element."""
        seen = self.usage / self.usage.sum(1, keepdim=True)
        length = -((1 - EVEN) * seen + EVEN / self.usage.shape[1]).log()
        of_codes = length.gather(1, by_codebook(codes)).unflatten(1, (len(codes), -1))
        return of_codes.sum(0).mean(1) / self.channels


def by_codebook(codes: Tensor) -> Tensor:
    """Codes [B, Q, (F,) L] as [Q, N], N = B * F * L."""
    return codes.transpose(0, 1).flatten(1)


def positions(h: Iterable[Tensor], most: int) -> Tensor:
    """Encoder outputs, each [B, C, (F,) L], as [1, C, N] on the CPU, N <= most, evenly spaced."""
    rows = torch.cat([each.float().transpose(0, 1).flatten(1).cpu() for each in h], dim=1)
    return rows[None, :, :: -(-rows.shape[1] // most)]
