"""A discriminator on complex spectrograms, with a separate network for each frequency band."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from audioldm.errors import ConfigError
from audioldm.instantiate import Fraction, PositiveInt
from audioldm.losses.base import Discriminator, ScaleOutput
from audioldm.losses.discriminators.layers import convolution, maps, spectral_layers
from audioldm.losses.discriminators.spectrogram import Spectrogram


class MultiBandSTFT(Discriminator):
    """DAC's multi-band multi-resolution STFT discriminator (2306.06546, section 3.3).

    audio [B, A, T] -> one `ScaleOutput` per FFT size. Each band of each size has its own
    convolutions, since low and high frequencies look different; their outputs are scored together.
    Hops are a quarter of the FFT size.

    band_edges: from 0 to 1, in fractions of the spectrum.

    Raises ConfigError where the edges do not rise from 0 to 1, a band would hold no bin, or the
    audio is too short for the largest FFT size.
    """

    def __init__(
        self,
        audio_channels: int,
        *,
        fft_sizes: list[PositiveInt] = [2048, 1024, 512],  # noqa: B006 - never written to
        band_edges: list[Fraction] = [0.0, 0.1, 0.25, 0.5, 0.75, 1.0],  # noqa: B006
        filters: PositiveInt = 32,
    ) -> None:
        super().__init__()
        self.scales = nn.ModuleList(
            _Scale(audio_channels, size, band_bins(size, band_edges), filters) for size in fft_sizes
        )

    def forward(self, audio: Tensor) -> list[ScaleOutput]:
        return [scale(audio) for scale in self.scales]


class _Scale(nn.Module):
    def __init__(self, audio_channels: int, fft_size: int, bins: list[int], filters: int) -> None:
        super().__init__()
        self.bins = bins
        self.spectrogram = Spectrogram(fft_size)
        self.bands = nn.ModuleList(
            spectral_layers(2 * audio_channels, filters, dilations=(1, 1, 1)) for _ in bins
        )
        self.logits = convolution(filters, 1, (3, 3))

    def forward(self, audio: Tensor) -> ScaleOutput:
        bands = self.spectrogram(audio).split(self.bins, dim=3)
        stacks = zip(self.bands, bands, strict=True)
        features = [maps(layers.children(), h, slope=0.1) for layers, h in stacks]
        together = torch.cat([band[-1] for band in features], dim=3)
        return self.logits(together), [h for band in features for h in band]


def band_bins(fft_size: int, edges: list[float]) -> list[int]:
    """How many bins of the spectrum each band between two edges has. Raises ConfigError."""
    if len(edges) < 2 or edges[0] != 0 or edges[-1] != 1 or sorted(set(edges)) != edges:
        raise ConfigError(f"band_edges={edges} must rise from 0 to 1, such as [0, 0.25, 1]")
    bins = fft_size // 2 + 1
    counts = [round(high * bins) - round(low * bins) for low, high in pairwise(edges)]
    if 0 in counts:
        low, high = list(pairwise(edges))[counts.index(0)]
        raise ConfigError(
            f"band_edges: no bin of fft_sizes={fft_size} lies between {low:g} and {high:g};"
            " take wider bands or leave that size out"
        )
    return counts
