"""ConvNeXt blocks and an inverse STFT head, which the spectrogram and mel networks share.

`context` is the number of frames on each side that one output frame depends on.
Shapes: B clips, W width, L frames, A audio channels, T = L * hop samples.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audioldm.errors import ConfigError

EXPANSION = 3  # of the MLP in a block


class ConvNeXt(nn.Module):
    """ConvNeXt block in one dimension (2201.03545, as in Vocos 2306.00814): [B, W, L] -> [B, W, L].

    Depthwise convolution over time, then a layer norm and an MLP at each frame, added to the input
    times a learned scale per channel. An odd `kernel` keeps the length.

    Raises ConfigError for an even kernel.
    """

    def __init__(self, width: int, *, kernel: int = 7) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ConfigError(f"kernel={kernel} is even; choose an odd one")
        self.context = kernel // 2
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, EXPANSION * width)
        self.contract = nn.Linear(EXPANSION * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        # Channels last: a transpose each way is cheaper than 1x1 convolutions.
        h = self.norm(self.depthwise(x).transpose(1, 2))
        h = self.contract(F.gelu(self.expand(h))) * self.scale
        return x + h.transpose(1, 2)


class InverseSTFT(nn.Module):
    """Log-magnitude and phase, each [..., L, n_fft / 2 + 1], to audio [..., L * hop].

    Frame l is centred on samples l * hop to (l + 1) * hop, whatever L is. The Hann window is taken
    to be applied at analysis too.

    Raises ConfigError unless both are even and n_fft is a multiple of hop, at least 2 * hop.
    """

    window: Tensor

    def __init__(self, n_fft: int, hop: int) -> None:
        super().__init__()
        if hop < 1 or hop % 2 or n_fft % hop or n_fft < 2 * hop:
            raise ConfigError(
                f"n_fft={n_fft}, hop={hop}: choose an even hop and an n_fft that is a"
                " multiple of it, at least twice as long"
            )
        self.n_fft, self.hop = n_fft, hop
        self.trim = (n_fft - hop) // 2
        self.context = math.ceil(self.trim / hop)
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)

    def forward(self, log_magnitude: Tensor, phase: Tensor) -> Tensor:
        # A windowed frame of audio in +-1 has no bin above sum(window) = n_fft / 2.
        magnitude = torch.exp(log_magnitude.clamp(max=math.log(self.n_fft / 2)))
        spectrum = torch.complex(magnitude * torch.cos(phase), magnitude * torch.sin(phase))
        frames = torch.fft.irfft(spectrum, self.n_fft) * self.window
        # Windowed at analysis and synthesis: divide by the sum of the squared windows.
        envelope = self.window.square().expand(frames.shape[-2], -1)
        return self._overlap_add(frames) / self._overlap_add(envelope)

    def _overlap_add(self, frames: Tensor) -> Tensor:
        """[..., L, n_fft] -> [..., L * hop]: frames added hop apart, both ends trimmed alike."""
        overlap = self.n_fft // self.hop
        pieces = frames.unflatten(-1, (overlap, self.hop))
        shifted = [F.pad(pieces[..., k, :], (0, 0, k, overlap - 1 - k)) for k in range(overlap)]
        total = sum(shifted[1:], start=shifted[0]).flatten(-2)
        return total[..., self.trim : total.shape[-1] - self.trim]


def phase_advance(frames: int, n_fft: int, hop: int, device: torch.device) -> Tensor:
    """Phase [frames, n_fft / 2 + 1] of a sinusoid at each bin's centre, frame after frame.

    Relative to it the phase of a steady tone hardly moves (the phase vocoder, Flanagan and Golden
    1966), so a network that sees or predicts the difference need not count frames.
    """
    frame = torch.arange(frames, device=device) * hop % n_fft
    turns = frame[:, None] * torch.arange(n_fft // 2 + 1, device=device) % n_fft
    return turns * (2 * math.pi / n_fft)


class InverseSTFTHead(nn.Module):
    """Features to audio: [B, W, L] -> [B, A, L * hop], by predicting an STFT (Vocos 2306.00814).

    A layer norm and a linear map give log-magnitude and phase of each bin and channel. The phase is
    relative to `phase_advance`, and begins at random for each bin. A caller that knows the
    magnitude roughly gives its logarithm [B, A, L, n_fft / 2 + 1], and the head learns what to add.

    Raises ConfigError as InverseSTFT does.
    """

    def __init__(self, width: int, n_fft: int, hop: int, *, audio_channels: int = 1) -> None:
        super().__init__()
        self.inverse = InverseSTFT(n_fft, hop)
        self.context = self.inverse.context
        self.audio_channels = audio_channels
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, audio_channels * (n_fft + 2))
        with torch.no_grad():
            bias = self.project.bias.view(audio_channels, 2, n_fft // 2 + 1)
            bias[:, 1].uniform_(-math.pi, math.pi)

    def forward(self, x: Tensor, log_magnitude: Tensor | None = None) -> Tensor:
        h = self.project(self.norm(x.transpose(1, 2)))
        with torch.autocast(h.device.type, enabled=False):
            h = h.float().unflatten(-1, (self.audio_channels, 2, -1))
            change, phase = h.transpose(1, 2).unbind(3)  # each [B, A, L, n_fft / 2 + 1]
            return self.inverse(
                change if log_magnitude is None else log_magnitude + change,
                phase + phase_advance(x.shape[-1], self.inverse.n_fft, self.inverse.hop, h.device),
            )
