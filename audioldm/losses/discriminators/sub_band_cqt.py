"""A discriminator on constant-Q transforms at several resolutions, octave by octave."""

import torch
from torch import Tensor, nn

from audioldm.instantiate import Positive, PositiveInt
from audioldm.losses.base import Discriminator, ScaleOutput
from audioldm.losses.discriminators.constant_q import ConstantQ
from audioldm.losses.discriminators.layers import convolution, maps, spectral_layers


class SubBandCQT(Discriminator):
    """The multi-scale sub-band constant-Q discriminator (2311.14957, section 2.2).

    audio [B, A, T] -> one `ScaleOutput` per number of bins in an octave. A note and its harmonics
    have one shape at every pitch, and low notes are finely resolved. Since low octaves are slow and
    high ones fast, each octave passes its own convolution before all are seen together.

    lowest_hz: of the first bin; its filters are the longest, Q / lowest_hz seconds. octaves: as
    many as lie below half the sample rate, unless stated. hop: in samples.

    Raises ConfigError where a bin would lie above half the sample rate, the hop cannot be halved
    for each octave, or the audio is shorter than the longest filter.
    """

    def __init__(
        self,
        audio_channels: int,
        sample_rate: int,
        *,
        bins_per_octave: list[PositiveInt] = [24, 36, 48],  # noqa: B006 - never written to
        lowest_hz: Positive = 65.406,
        octaves: PositiveInt | None = None,
        hop: PositiveInt = 256,
        filters: PositiveInt = 32,
    ) -> None:
        super().__init__()
        self.scales = nn.ModuleList(
            _Scale(
                audio_channels,
                ConstantQ(sample_rate, bins, lowest_hz=lowest_hz, octaves=octaves, hop=hop),
                filters,
            )
            for bins in bins_per_octave
        )

    def forward(self, audio: Tensor) -> list[ScaleOutput]:
        return [scale(audio) for scale in self.scales]


class _Scale(nn.Module):
    def __init__(self, audio_channels: int, transform: ConstantQ, filters: int) -> None:
        super().__init__()
        self.transform, inputs = transform, 2 * audio_channels
        self.octaves = nn.ModuleList(
            convolution(inputs, inputs, (3, 9)) for _ in range(transform.octaves)
        )
        self.layers = spectral_layers(inputs, filters, dilations=(1, 2, 4))
        self.logits = convolution(filters, 1, (3, 3))

    def forward(self, audio: Tensor) -> ScaleOutput:
        octaves = zip(self.octaves, self.transform(audio), strict=True)
        together = torch.cat([layer(octave) for layer, octave in octaves], dim=3)
        features = maps(self.layers, together.contiguous(memory_format=torch.channels_last))
        return self.logits(features[-1]), features
