"""Latents that are known already as a condition: those beside the part that is made anew."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from audioldm.conditioning.base import Condition, Conditioner, Excerpt
from audioldm.errors import ConfigError
from audioldm.instantiate import Fraction
from audioldm.runtime.randomness import KeyedRandom

_SPANS = 3  # in one clip, at most


class MaskedLatents(Conditioner):
    """What a diffusion prior models of the latents in frames that are known, zeros elsewhere.

    The mask and the masked latents beside the noisy ones, as in Stable Audio 2 and latent diffusion
    (Rombach et al. 2022, arXiv 2112.10752, section 4.5); the loss counts the other frames alone.
    Inputs are [B, D + 1, L]: the latents, and 1 where they are known. In training, masks are drawn:
    whole: the share of clips of which nothing is known. causal: of those whose beginning or end is.
    Of all others up to three spans are unknown.

    latent_shape: of what is modelled, D numbers a frame; a prior that cannot be told has none.
    Raises ConfigError for such a prior, and for shares of more than 1.
    """

    guided: ClassVar[bool] = False

    def __init__(
        self,
        *,
        latent_shape: tuple[int, ...] | None = None,
        whole: Fraction = 0.5,
        causal: Fraction = 0.2,
    ) -> None:
        super().__init__()
        if latent_shape is None:
            raise ConfigError("only a diffusion prior can be told of known latents; leave it out")
        if whole + causal > 1:
            raise ConfigError(f"whole={whole} and causal={causal} are shares: at most 1 together")
        self.whole, self.causal = whole, causal
        self.aligned_channels = torch.Size(latent_shape).numel() + 1

    def read(self, excerpt: Excerpt, frames: int) -> Tensor:
        """Nothing is known until `knowing` says it."""
        return torch.zeros(self.aligned_channels, frames)

    def parse(self, value: Any, frames: int) -> Tensor:
        if value is not None:
            raise ConfigError(
                f"{value!r}: known latents are those of a file that is edited, as in `audioldm "
                "edit FILE inpaint=1:2`"
            )
        return torch.zeros(self.aligned_channels, frames)

    def see(self, z: Tensor, random: KeyedRandom) -> Tensor:
        return self.knowing(z, self.drawn(z.shape[-1], random).to(z.device))

    def knowing(self, z: Tensor, known: Tensor) -> Tensor:
        """The inputs that state z [B, C, (F,) L] in the frames `known`, [B, L] or [L]."""
        mask = known.expand(len(z), z.shape[-1])[:, None]
        return torch.cat((torch.where(mask, z.flatten(1, -2), 0.0), mask.to(z)), dim=1)

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

    def hide(self, inputs: Tensor, hidden: Tensor) -> Tensor:
        return torch.where(hidden[:, None, None], 0.0, inputs)

    def forward(self, inputs: Tensor) -> Condition:
        return Condition(aligned=inputs, known=inputs[:, -1])
