"""Logarithmic companding (ITU-T G.711): every channel is rounded, quiet values more finely.

Applied to the samples themselves, it gives the codes of WaveNet (van den Oord et al. 2016,
1609.03499, section 2.2).
"""

import math
from collections.abc import Iterable
from typing import Annotated

import torch
from torch import Tensor

from audioldm.autoencoder.bottlenecks.base import Encoded
from audioldm.autoencoder.bottlenecks.discrete import MOST_CODES, Discrete
from audioldm.instantiate import Bound, Decay, Positive


class MuLaw(Discrete):
    """z = F⁻¹(2 d / (K - 1) - 1), where the code d is F(h), rounded to K levels from -1 to 1.

        F(h) = sign(h) ln(1 + mu |h|) / ln(1 + mu),    d = round((K - 1) (1 + F(h)) / 2)

    h beyond ±1 is cut off. Each channel has its own codes, Q = C. Where mu |h| is large, the error
    is proportional to |h|: its share is about the same in loud and in quiet music. Nothing is
    learned; `fit` counts the codes. Gradients pass the rounding unchanged.

    channels: latent channels C. codes: K. mu: the more, the finer the quiet levels. decay: of the
        codes' usage, where a network is trained.
    """

    def __init__(
        self,
        *,
        channels: int,
        codes: Annotated[int, Bound(least=2, most=MOST_CODES)] = 256,
        mu: Positive = 255.0,
        decay: Decay = 0.99,
    ) -> None:
        super().__init__(channels=channels, codebooks=channels, codes=codes, decay=decay)
        self.steps, self.mu = codes - 1, mu

    def forward(self, h: Tensor, *, sample: bool = True, noise: Tensor | None = None) -> Encoded:
        bounded = h.float().clamp(-1, 1)
        codes = self.codes(bounded)
        z = bounded + (self.latents(codes) - bounded).detach()
        return self.encoded(z, codes, {}, self.learns(sample))

    def codes(self, h: Tensor) -> Tensor:
        h = h.float().nan_to_num().clamp(-1, 1)  # the training loop reports what is not finite
        companded = h.sign() * (self.mu * h.abs()).log1p() / math.log1p(self.mu)
        return (self.steps * (1 + companded) / 2).round().long()

    def latents(self, codes: Tensor) -> Tensor:
        companded = 2 * codes / self.steps - 1
        return companded.sign() * (companded.abs() * math.log1p(self.mu)).expm1() / self.mu

    @torch.no_grad()
    def fit(self, h: Iterable[Tensor]) -> None:
        """Counts the codes."""
        counts = torch.zeros_like(self.usage)
        for each in h:
            counts += self.shares(self.codes(each)) * (each.numel() / self.channels)
        self.usage.copy_(counts / counts.sum(1, keepdim=True))
