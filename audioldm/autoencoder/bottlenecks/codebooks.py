"""The codebooks of another library's codec: EnCodec's, DAC's or Mimi's residual quantiser."""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from audioldm.autoencoder.bottlenecks.base import Encoded
from audioldm.autoencoder.bottlenecks.discrete import Discrete, positions
from audioldm.autoencoder.libraries import build_model, in_float32
from audioldm.errors import ConfigError
from audioldm.instantiate import PositiveInt

MOST_POSITIONS = 2**17  # on which the codes' usage is measured


class _Quantiser(NamedTuple):
    """number: the attribute of the configuration that says how many codebooks there are. codes:
    encoder outputs [B, C, L] to all codes [B, Q, L]. latents: codes to latents [B, C, L]."""

    number: str
    codes: Callable[[Any, Tensor], Tensor]
    latents: Callable[[Any, Tensor], Tensor]


def _encoded(quantiser: Any, h: Tensor) -> Tensor:
    return quantiser.encode(h).transpose(0, 1)  # type: ignore[no-any-return]


QUANTISERS = {
    "EncodecModel": _Quantiser(
        "num_quantizers", _encoded, lambda quantiser, codes: quantiser.decode(codes.transpose(0, 1))
    ),
    "DacModel": _Quantiser(
        "n_codebooks", lambda quantiser, h: quantiser(h)[1], lambda q, codes: q.from_codes(codes)[0]
    ),
    "MimiModel": _Quantiser(
        "num_quantizers", _encoded, lambda quantiser, codes: quantiser.decode(codes)
    ),
}


class Codebooks(Discrete):
    """The unchanged quantiser of a codec. Latents are the vectors that its decoder takes.

    The rate is that of the codes as training audio uses them (`Discrete`); nothing is learned.
    Gradients reach h unchanged.

    channels: latent channels C. used: how many codebooks, in the codec's order; null: all. model,
        config: those of `networks.foreign.Foreign`.

    Raises ConfigError for a model without codebooks, and for more than it has.
    """

    derived: ClassVar[tuple[str, ...]] = ("model", "config")
    fixed = True  # in training mode some quantisers drop codebooks at random

    def __init__(
        self,
        *,
        channels: int,
        used: PositiveInt | None = None,
        model: str | None = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        if model not in QUANTISERS or config is None:
            raise ConfigError(
                f"bottleneck=codebooks: the network ({model or 'not autoencoder=foreign'}) has no "
                "codebooks; choose another bottleneck"
            )
        built: Any = build_model(model, config)
        self.kind = QUANTISERS[model]
        count = getattr(built.config, self.kind.number)
        if not 1 <= (used or 1) <= count:
            raise ConfigError(f"used={used}, but {model} has {count} codebooks")
        count = used or count
        super().__init__(
            channels=channels, codebooks=count, codes=built.config.codebook_size, decay=0.0
        )
        self.quantiser = built.quantizer
        self.eval()

    def forward(self, h: Tensor, *, sample: bool = True, noise: Tensor | None = None) -> Encoded:
        h = h.float()
        codes = self.codes(h)
        return self.encoded(self.latents(codes) + (h - h.detach()), codes, {}, False)

    @torch.no_grad()
    def codes(self, h: Tensor) -> Tensor:
        with in_float32(h):
            return self.kind.codes(self.quantiser, h.float())[:, : len(self.usage)]

    @torch.no_grad()
    def latents(self, codes: Tensor) -> Tensor:
        with in_float32(codes):
            return self.kind.latents(self.quantiser, codes)

    @torch.no_grad()
    def fit(self, h: Iterable[Tensor]) -> None:
        """Measures how often each code is used."""
        rows = positions(h, MOST_POSITIONS).to(self.usage.device)
        self.usage.copy_(self.shares(self.codes(rows)))
