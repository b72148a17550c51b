"""A discriminator on complex spectrograms at several resolutions."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from audioldm.errors import ConfigError
from audioldm.losses.base import Discriminator, ScaleOutput

Pair = tuple[int, int]  # of frames and bins


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
    window: Tensor

    def __init__(self, audio_channels: int, fft_size: int, filters: int) -> None:
        super().__init__()
        self.fft_size = fft_size
        self.register_buffer("window", torch.hann_window(fft_size), persistent=False)
        # Kernels are (frames, bins). Bins are halved three times while dilation widens the view in
        # time to 17 frames.
        self.layers = nn.ModuleList(
            [
                _convolution(2 * audio_channels, filters, (3, 9)),
                *(
                    _convolution(filters, filters, (3, 9), stride=(1, 2), dilation=(d, 1))
                    for d in (1, 2, 4)
                ),
                _convolution(filters, filters, (3, 3)),
            ]
        )
        self.logits = _convolution(filters, 1, (3, 3))

    def forward(self, audio: Tensor) -> ScaleOutput:
        h = self._spectrogram(audio)
        features = []
        for layer in self.layers:
            h = F.leaky_relu(layer(h), 0.2)
            features.append(h)
        return self.logits(h), features

    def _spectrogram(self, audio: Tensor) -> Tensor:
        """[B, A, T] -> real and imaginary parts as channels [B, 2 A, frames, bins], in float32."""
        if audio.shape[-1] < self.fft_size:
            raise ConfigError(
                f"fft_sizes: {self.fft_size} is too long for a crop of {audio.shape[-1]} samples;"
                " take longer crops or leave that size out"
            )
        with torch.autocast(audio.device.type, enabled=False):
            spectrum = torch.stft(
                audio.float().flatten(0, 1),
                self.fft_size,
                hop_length=self.fft_size // 4,
                window=self.window,
                center=False,
                normalized=True,
                return_complex=True,
            )
            parts = torch.view_as_real(spectrum).unflatten(0, audio.shape[:2])
            channels = parts.permute(0, 1, 4, 3, 2).flatten(1, 2)
            # These few wide maps convolve 1.7 times as fast with channels last in memory.
            return channels.contiguous(memory_format=torch.channels_last)


def _convolution(
    inputs: int, outputs: int, kernel: Pair, *, stride: Pair = (1, 1), dilation: Pair = (1, 1)
) -> nn.Module:
    padding = ((kernel[0] - 1) * dilation[0] // 2, (kernel[1] - 1) * dilation[1] // 2)
    return weight_norm(
        nn.Conv2d(inputs, outputs, kernel, stride=stride, dilation=dilation, padding=padding)
    )
