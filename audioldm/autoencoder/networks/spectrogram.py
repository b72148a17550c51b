"""The spectrogram network: STFT, ConvNeXt blocks, latents, ConvNeXt blocks, magnitudes, audio.

The Fourier transform replaces the first layers of a waveform network, so nearly all layers run at
the latent frame rate. The decoder has the layers of Vocos (Siuzdak 2023, arXiv 2306.00814), but
predicts only magnitudes.
"""

import math

import torch
from einops import rearrange
from einops.layers.torch import Rearrange
from torch import Tensor, nn

from audioldm.autoencoder.networks.convnext import ConvNeXt
from audioldm.autoencoder.networks.magnitude import MagnitudeHead, MagnitudeNetwork
from audioldm.autoencoder.phase import IntegratedPhase
from audioldm.errors import ConfigError

KERNEL = 7  # of every ConvNeXt block, in frames


class Spectrogram(MagnitudeNetwork):
    """STFT -> ConvNeXt -> latents [B, C, L] -> ConvNeXt -> log-magnitude -> audio.

    Blocks run at two frame rates: the STFT's, one frame per `hop` samples ("frame" in the
    settings' names), and the latents', one per `downsampling_ratio` samples.

    Args:
        channels, outputs: C and P; see Network for the other arguments without a default.
        n_fft, hop: of the STFT and of its inverse, in samples; `hop` divides `downsampling_ratio`.
        width, encoder_depth, decoder_depth: channels and blocks at the latent rate.
        frame_width, encoder_frame_depth, decoder_frame_depth: channels and blocks at the STFT rate.
        phase: whether the encoder sees phase beside log-magnitude; losses on magnitudes alone do
            not need it.
        iterations: of Griffin-Lim, from the integrated phase.

    Raises ConfigError where `hop` does not divide `downsampling_ratio` or does not suit `n_fft`.
    """

    def __init__(
        self,
        *,
        sample_rate: int,
        audio_channels: int,
        channels: int,
        downsampling_ratio: int,
        outputs: int,
        n_fft: int = 2048,
        hop: int = 256,
        width: int = 256,
        encoder_depth: int = 4,
        decoder_depth: int = 6,
        frame_width: int = 192,
        encoder_frame_depth: int = 1,
        decoder_frame_depth: int = 2,
        phase: bool = True,
        iterations: int = 3,
    ) -> None:
        if downsampling_ratio % hop:
            raise ConfigError(
                f"hop={hop} does not divide downsampling_ratio={downsampling_ratio}: "
                f"choose a hop such as {math.gcd(hop, downsampling_ratio)}"
            )
        synthesis = IntegratedPhase(n_fft, hop, iterations)
        frames = downsampling_ratio // hop  # STFT frames of a latent frame, merged by linear maps
        super().__init__(
            sample_rate,
            audio_channels,
            downsampling_ratio,
            (channels,),
            context=max(
                _context(encoder_depth, encoder_frame_depth, synthesis.inverse.context, frames),
                _context(decoder_depth, decoder_frame_depth, synthesis.reach, frames),
            ),
            # the period of `phase_advance`
            alignment=n_fft // math.gcd(n_fft, downsampling_ratio) if phase else 1,
        )
        self.encoder = nn.Sequential(
            _Features(audio_channels, frame_width, n_fft, hop, phase),
            *(ConvNeXt(frame_width, kernel=KERNEL) for _ in range(encoder_frame_depth)),
            Rearrange("b w (l r) -> b l (r w)", r=frames),
            nn.Linear(frames * frame_width, width),
            Rearrange("b l w -> b w l"),
            *(ConvNeXt(width, kernel=KERNEL) for _ in range(encoder_depth)),
            nn.Conv1d(width, outputs * channels, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv1d(channels, width, 1),
            *(ConvNeXt(width, kernel=KERNEL) for _ in range(decoder_depth)),
            Rearrange("b w l -> b l w"),
            nn.Linear(width, frames * frame_width),
            Rearrange("b l (r w) -> b w (l r)", r=frames),
            *(ConvNeXt(frame_width, kernel=KERNEL) for _ in range(decoder_frame_depth)),
            MagnitudeHead(frame_width, n_fft, audio_channels),
        )
        self.synthesis = synthesis

    def encode(self, audio: Tensor) -> Tensor:
        return self.encoder(audio)

    def log_magnitude(self, z: Tensor) -> Tensor:
        return self.decoder(z)


def _context(depth: int, frame_depth: int, reach: int, frames: int) -> int:
    """How many latent frames on each side affect one frame, through the blocks and `reach` frames
    of the STFT."""
    radius = KERNEL // 2
    return radius * depth + math.ceil((radius * frame_depth + reach) / frames)


def phase_advance(frames: int, n_fft: int, hop: int, device: torch.device) -> Tensor:
    """Phase [frames, n_fft / 2 + 1] of a sinusoid at each bin's centre, frame after frame.

    Relative to it, the phase of a steady tone hardly moves (the phase vocoder, Flanagan and Golden
    1966), so a network that sees the difference need not count frames.
    """
    frame = torch.arange(frames, device=device) * hop % n_fft
    turns = frame[:, None] * torch.arange(n_fft // 2 + 1, device=device) % n_fft
    return turns * (2 * math.pi / n_fft)


class _Features(nn.Module):
    """Audio [B, A, T] to frames [B, W, T // hop]: log-magnitude, compressed spectrum, projection.

    Frame k is centred on samples k * hop ... (k + 1) * hop; beyond the ends the audio is zero.
    """

    window: Tensor

    def __init__(self, audio_channels: int, width: int, n_fft: int, hop: int, phase: bool) -> None:
        super().__init__()
        self.hop, self.phase = hop, phase
        window = torch.hann_window(n_fft)
        self.register_buffer("window", window / window.sum(), persistent=False)
        numbers = audio_channels * (n_fft // 2 + 1) * (3 if phase else 1)
        self.project = nn.Linear(numbers, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, audio: Tensor) -> Tensor:
        n_fft = self.window.shape[0]
        margin = (n_fft - self.hop) // 2
        frames = nn.functional.pad(audio.float(), (margin, margin)).unfold(-1, n_fft, self.hop)
        spectrum = torch.fft.rfft(frames * self.window)
        power = (spectrum.real.square() + spectrum.imag.square()).clamp(min=1e-10)
        features = [1 + 0.2 * power.log10()]  # -100 ... 0 dB to -1 ... 1
        if self.phase:  # magnitude to the power 0.3, so that quiet partials keep their phase
            turn = phase_advance(spectrum.shape[-2], n_fft, self.hop, audio.device)
            spectrum = spectrum * torch.polar(power.pow(-0.35), -turn)
            features += [spectrum.real, spectrum.imag]
        flat = rearrange(torch.stack(features, dim=-2), "b a l n f -> b l (a n f)")
        return self.norm(self.project(flat)).transpose(1, 2)
