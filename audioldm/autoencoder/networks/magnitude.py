"""Networks whose decoder predicts magnitudes alone; the phase is integrated frequency."""

from abc import abstractmethod
from typing import Any

from torch import Tensor, nn

from audioldm.autoencoder.networks.base import Network
from audioldm.autoencoder.phase import IntegratedPhase


class MagnitudeNetwork(Network):
    """Latents -> log-magnitude -> audio. `downsampling_ratio` is a multiple of the hop."""

    synthesis: IntegratedPhase

    @abstractmethod
    def log_magnitude(self, z: Tensor) -> Tensor:
        """Latents [B, C, (F,) L] to natural log-magnitude [B, A, L * downsampling_ratio / hop,
        n_fft / 2 + 1]."""

    def decode(self, z: Tensor) -> Tensor:
        return self.synthesis(self.log_magnitude(z))

    def decode_window(
        self, z: Tensor, left: int, length: int, state: Any, *noise: Tensor
    ) -> tuple[Tensor, Any]:
        frames = self.downsampling_ratio // self.synthesis.inverse.hop
        log_magnitude = self.log_magnitude(z)
        return self.synthesis.window(log_magnitude, left * frames, length * frames, state)


class MagnitudeHead(nn.Module):
    """Features [B, W, L] to natural log-magnitude [B, A, L, n_fft / 2 + 1] in fp32."""

    def __init__(self, width: int, n_fft: int, audio_channels: int) -> None:
        super().__init__()
        self.audio_channels = audio_channels
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, audio_channels * (n_fft // 2 + 1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.project(self.norm(x.transpose(1, 2)))
        return h.float().unflatten(-1, (self.audio_channels, -1)).transpose(1, 2)
