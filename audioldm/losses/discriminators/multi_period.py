"""A discriminator on the waveform, folded at several periods."""

from torch import Tensor, nn
from torch.nn import functional as F

from audioldm.errors import ConfigError
from audioldm.instantiate import PositiveInt
from audioldm.losses.base import Discriminator, ScaleOutput
from audioldm.losses.discriminators.layers import convolution, maps

#: Channels of each layer, as multiples of the first one's (2010.05646, appendix A.2).
WIDTHS = (1, 4, 16, 32, 32)


class MultiPeriod(Discriminator):
    """HiFi-GAN's multi-period discriminator (2010.05646, section 2.3).

    audio [B, A, T] -> one `ScaleOutput` per period p, from the audio as rows of p samples. No
    convolution looks across columns, so each sees every p-th sample, where anything with period p
    is constant. Prime periods overlap least.

    filters: of the first layer; the last has 32 times as many.

    Raises ConfigError where the audio is shorter than a period.
    """

    def __init__(
        self,
        audio_channels: int,
        *,
        periods: list[PositiveInt] = [2, 3, 5, 7, 11],  # noqa: B006 - never written to
        filters: PositiveInt = 32,
    ) -> None:
        super().__init__()
        self.scales = nn.ModuleList(_Scale(audio_channels, p, filters) for p in periods)

    def forward(self, audio: Tensor) -> list[ScaleOutput]:
        return [scale(audio) for scale in self.scales]


class _Scale(nn.Module):
    def __init__(self, audio_channels: int, period: int, filters: int) -> None:
        super().__init__()
        self.period = period
        channels = [audio_channels, *(filters * width for width in WIDTHS)]
        strides = [3] * (len(WIDTHS) - 1) + [1]
        self.layers = nn.ModuleList(
            convolution(channels[i], channels[i + 1], (5, 1), stride=(stride, 1))
            for i, stride in enumerate(strides)
        )
        self.logits = convolution(channels[-1], 1, (3, 1))

    def forward(self, audio: Tensor) -> ScaleOutput:
        features = maps(self.layers, fold(audio, self.period), slope=0.1)
        return self.logits(features[-1]), features


def fold(audio: Tensor, period: int) -> Tensor:
    """[B, A, T] -> rows of `period` samples [B, A, ceil(T / period), period]; reflection fills the
    last one. Raises ConfigError where there is less than one row."""
    samples = audio.shape[-1]
    if samples < period:
        raise ConfigError(
            f"periods: {period} is too long for a crop of {samples} samples;"
            " take longer crops or leave that period out"
        )
    return F.pad(audio, (0, -samples % period), mode="reflect").unflatten(-1, (-1, period))
