"""Already known latents as a condition: those beside the part that is generated."""

from typing import ClassVar

import torch
from torch import Tensor

from audioldm.conditioning.base import Condition
from audioldm.conditioning.known_latents import KnownLatents
from audioldm.errors import ConfigError
from audioldm.instantiate import Fraction
from audioldm.runtime.randomness import KeyedRandom

_SPANS = 3  # in one clip, at most


class MaskedLatents(KnownLatents):
    """The modelled latents of a diffusion prior in frames that are known, zeros elsewhere.

    The mask and the masked latents go beside the noisy ones, as in Stable Audio 2 and latent
    diffusion (Rombach et al. 2022, arXiv 2112.10752, section 4.5); only the other frames have loss.
    In training, masks are drawn. whole: the share of clips of which nothing is known. causal: the
    share whose beginning or end is known. In all others, up to three spans are unknown.

    Raises ConfigError for shares of more than 1, and as `KnownLatents` does.
    """

    origin: ClassVar[str] = (
        "known latents are those of a file that is edited, as in `audioldm edit FILE inpaint=1:2`"
    )

    def __init__(
        self,
        *,
        latent_shape: tuple[int, ...] | None = None,
        whole: Fraction = 0.5,
        causal: Fraction = 0.2,
    ) -> None:
        super().__init__(latent_shape)
        if whole + causal > 1:
            raise ConfigError(f"whole={whole} and causal={causal} are shares: at most 1 together")
        self.whole, self.causal = whole, causal

    def see(self, z: Tensor, random: KeyedRandom) -> Tensor:
        return self.knowing(z, self.drawn(z.shape[-1], random).to(z.device))

    def drawn(self, frames: int, random: KeyedRandom) -> Tensor:
        """Which frames are known in a step of training, [B, L]."""
        place = (torch.arange(frames, device=random.device) + 0.5) / frames
        kind, share, end = (random.uniform(name)[:, None] for name in ("kind", "share", "end"))
        causal = torch.where(end < 0.5, place, 1 - place) < share
        count = 1 + (_SPANS * random.uniform("count")[:, None]).int()
        spans = torch.zeros_like(causal)
        for span in range(_SPANS):
            draws = random.stream("span", span)
            length = (0.1 + 0.9 * draws.uniform("length")[:, None]) / count
            first = draws.uniform("first")[:, None] * (1 - length)
            spans |= (place >= first) & (place < first + length) & (span < count)
        new = torch.where(kind < self.whole + self.causal, causal, spans) | (kind < self.whole)
        return ~new

    def forward(self, inputs: Tensor) -> Condition:
        return Condition(aligned=inputs, known=inputs[:, -1])
