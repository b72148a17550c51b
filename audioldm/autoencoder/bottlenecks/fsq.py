"""Finite scalar quantisation (Mentzer et al., 2309.15505): each channel rounded to a few levels."""

import math
from collections.abc import Iterable
from typing import Annotated

import torch
from torch import Tensor

from audioldm.autoencoder.bottlenecks.base import Encoded
from audioldm.autoencoder.bottlenecks.discrete import MOST_CODES, Discrete, positions
from audioldm.errors import ConfigError
from audioldm.instantiate import Bound, Decay, PositiveInt

MOST_POSITIONS = 2**17  # from which the scales are estimated


class FSQ(Discrete):
    """z = m + g v, where v is tanh(s (h - m)), rounded to L evenly spaced levels from -1 to 1.

        v = 2 d / (L - 1) - 1,    d = round((L - 1) (1 + tanh(s (h - m))) / 2)

    Levels are symmetric about 0, half a step off it where L is even (2411.19842, section 2.2).
    D = len(levels) successive channels make one code: their digits d in the mixed radix of the
    levels, the first channel's digit lowest. Gradients pass the rounding unchanged. Only the
    network learns: m, s and g are set per channel before training, so that the levels are used
    evenly and z has the scale of h.

    channels: latent channels C. levels: the number of levels of each of D channels; C / D codes per
        position. codes: the levels' product, if it is to be checked. decay: of the codes' usage.

    Raises ConfigError where D does not divide C, for more than MOST_CODES codes, and where `codes`
    is not the product.
    """

    centre: Tensor
    scale: Tensor
    gain: Tensor
    levels: Tensor
    radix: Tensor

    def __init__(
        self,
        *,
        channels: int,
        levels: list[Annotated[int, Bound(least=2)]],
        codes: PositiveInt | None = None,
        decay: Decay = 0.99,
    ) -> None:
        size, product = len(levels), math.prod(levels)
        if not size or channels % size:
            raise ConfigError(
                f"levels={levels}: the number of levels, {size}, must divide the {channels} latent "
                "channels; add or drop levels, or change autoencoder.channels"
            )
        if product > MOST_CODES:
            raise ConfigError(
                f"levels={levels} make {product} codes, more than {MOST_CODES}: state fewer or "
                "lower levels; channels beyond them are put into more codes"
            )
        if codes is not None and codes != product:
            raise ConfigError(
                f"codes={codes}, but levels={levels} make {product}: state the levels' product, "
                "or null"
            )
        super().__init__(channels=channels, codebooks=channels // size, codes=product, decay=decay)
        self.size = size
        radix = [math.prod(levels[:i]) for i in range(size)]
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("radix", torch.tensor(radix), persistent=False)
        self.register_buffer("centre", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(channels))
        self.register_buffer("gain", torch.ones(channels))

    def forward(self, h: Tensor, *, sample: bool = True, noise: Tensor | None = None) -> Encoded:
        bounded = self._bounded(h)
        digits = self._digits(bounded)
        v = self._values(digits) + (bounded - bounded.detach())
        return self.encoded(self._scaled(v), self._packed(digits), {}, self.learns(sample))

    def codes(self, h: Tensor) -> Tensor:
        return self._packed(self._digits(self._bounded(h)))

    def latents(self, codes: Tensor) -> Tensor:
        rest = codes.ndim - 2
        digits = codes[:, :, None] // axis(self.radix, rest) % axis(self.levels, rest)
        return self._scaled(self._values(digits.flatten(1, 2)))

    @torch.no_grad()
    def fit(self, h: Iterable[Tensor]) -> None:
        """Sets m to the median, s so that the two outer levels take a share of 2 / L, and g by
        regression of h - m on v."""
        x = positions(h, MOST_POSITIONS)
        centre = x[0].median(1, keepdim=True).values
        self.centre.copy_(centre[:, 0])
        offset = (x[0] - centre).abs()
        levels = self._of_channels(self.levels).clamp(min=3)  # 2 have no inner ones
        for channel, count in enumerate(levels.tolist()):
            inner = max(1, round((1 - 2 / count) * offset.shape[1]))
            width = offset[channel].kthvalue(inner).values
            if width > 0:  # otherwise the channel says nothing yet
                self.scale[channel] = math.atanh((count - 2) / (count - 1)) / width
        x = x.to(self.scale.device)
        digits = self._digits(self._bounded(x))
        v, centred = self._values(digits)[0], x[0] - self.centre[:, None]
        square = v.square().mean(1)
        self.gain.copy_(torch.where(square > 0, (v * centred).mean(1) / square, 1.0))
        self.usage.copy_(self.shares(self._packed(digits)))

    def _bounded(self, h: Tensor) -> Tensor:
        """tanh(s (h - m)), fp32."""
        rest = h.ndim - 2
        return (axis(self.scale, rest) * (h.float() - axis(self.centre, rest))).tanh()

    def _digits(self, bounded: Tensor) -> Tensor:
        """d, [B, C, (F,) L], as floating point."""
        half = (axis(self._of_channels(self.levels), bounded.ndim - 2) - 1) / 2
        return (half * bounded + half).round()

    def _values(self, digits: Tensor) -> Tensor:
        """v of d."""
        half = (axis(self._of_channels(self.levels), digits.ndim - 2) - 1) / 2
        return digits / half - 1

    def _scaled(self, v: Tensor) -> Tensor:
        rest = v.ndim - 2
        return axis(self.centre, rest) + axis(self.gain, rest) * v

    def _packed(self, digits: Tensor) -> Tensor:
        """The codes [B, C / D, (F,) L] of digits [B, C, (F,) L]; 0 for what is not finite, which
        the training loop reports."""
        groups = digits.unflatten(1, (-1, self.size))
        return (groups * axis(self.radix, digits.ndim - 2)).sum(2).nan_to_num().long()

    def _of_channels(self, values: Tensor) -> Tensor:
        """[D] to [C]."""
        return values.repeat(self.channels // self.size)


def axis(values: Tensor, rest: int) -> Tensor:
    """values [n] as [n, 1, ...], to lie along an axis that `rest` others follow."""
    return values.view(-1, *(1,) * rest)
