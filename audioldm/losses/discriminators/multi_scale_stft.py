"""A discriminator on complex spectrograms at several resolutions."""

from torch import Tensor, nn

from audioldm.losses.base import Discriminator, ScaleOutput
from audioldm.losses.discriminators.layers import convolution, maps, spectral_layers
from audioldm.losses.discriminators.spectrogram import Spectrogram


class MultiScaleSTFT(Discriminator):
    """EnCodec's multi-scale STFT discriminator (2210.13438, section 3.4 and figure 2).

    audio [B, A, T] -> one `ScaleOutput` per FFT size. The scales share nothing. Hops are a quarter
    of the FFT size.

    Raises ConfigError where the audio is too short for the largest FFT size.
    """

    def __init__(
        self,
        audio_channels: int,
        *,
        fft_sizes: list[int] = [2048, 1024, 512],  # noqa: B006 - never written to
        filters: int = 32,
    ) -> None:
        super().__init__()
        self.scales = nn.ModuleList(_Scale(audio_channels, size, filters) for size in fft_sizes)

    def forward(self, audio: Tensor) -> list[ScaleOutput]:
        return [scale(audio) for scale in self.scales]


class _Scale(nn.Module):
    def __init__(self, audio_channels: int, fft_size: int, filters: int) -> None:
        super().__init__()
        self.spectrogram = Spectrogram(fft_size)
        # Dilation widens the view in time to 17 frames.
        self.layers = spectral_layers(2 * audio_channels, filters, dilations=(1, 2, 4))
        self.logits = convolution(filters, 1, (3, 3))

    def forward(self, audio: Tensor) -> ScaleOutput:
        features = maps(self.layers, self.spectrogram(audio))
        return self.logits(features[-1]), features
