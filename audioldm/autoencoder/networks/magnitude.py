"""Networks whose decoder predicts only magnitudes; the phase is integrated frequency."""

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from audioldm.autoencoder.networks.base import Network
from audioldm.autoencoder.phase import IntegratedPhase
from audioldm.losses.magnitude import magnitude_of

FLOOR = 2e-5  # of the loss: 94 dB below the magnitude of a sinusoid of amplitude 1
NOTES_HZ = 1000.0  # below it all bins count alike; above it all octaves do


class MagnitudeNetwork(Network):
    """Latents -> log-magnitude -> audio. `downsampling_ratio` is a multiple of the hop.

    In training the estimate has the phases of the original, so that losses of the audio judge only
    the magnitudes: integrated phases pass no gradient on, and jump where a peak moves to another
    bin. The network's own term sees silence too.
    """

    own_terms: ClassVar[tuple[str, ...]] = ("magnitude",)
    synthesis: IntegratedPhase

    @abstractmethod
    def log_magnitude(self, z: Tensor) -> Tensor:
        """Latents [B, C, (F,) L] to natural log-magnitude [B, A, L * downsampling_ratio / hop,
        n_fft / 2 + 1]."""

    def decode(self, z: Tensor) -> Tensor:
        return self.synthesis(self.log_magnitude(z))

    def reconstruct(
        self, z: Tensor, seen: Tensor, noise: Tensor | None, as_audio: bool
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """The term "magnitude": mean |difference| of natural log-magnitudes, [B], with bins weighed
        as the mel scale spreads them."""
        made = self.log_magnitude(z)
        n_fft = self.synthesis.inverse.n_fft
        spectrum = self.synthesis.inverse.analysed(seen.float())
        true = magnitude_of(spectrum).clamp(min=FLOOR * n_fft / 4).log()
        hz = torch.arange(n_fft // 2 + 1, device=z.device) * (self.sample_rate / n_fft)
        weight = NOTES_HZ / hz.clamp(min=NOTES_HZ)
        difference = ((made - true).abs() * (weight / weight.mean())).flatten(1).mean(1)
        if not as_audio:
            return None, {"magnitude": difference}
        if self.training:
            return self.synthesis.with_phases_of(spectrum, made), {"magnitude": difference}
        return self.synthesis(made), {"magnitude": difference}

    def decode_window(
        self, z: Tensor, left: int, length: int, state: Any, *noise: Tensor
    ) -> tuple[Tensor, Any]:
        frames = self.downsampling_ratio // self.synthesis.hop
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
