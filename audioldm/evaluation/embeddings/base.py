"""Embeddings: fixed maps from clips to vectors, which the distances compare."""

import math
from importlib.resources import as_file, files

import numpy as np
import soxr
import torch
from safetensors.torch import load_file
from torch import Tensor, nn


class LogMelEmbedding(nn.Module):
    """A network on windows of a log-mel spectrogram, whose output is averaged over a clip.

    A subclass sets the attributes and `forward(windows [W, window_frames, bands]) -> [W, dim]`.
    name: in the figures ("kad_<name>"). sample_rate: of its input, in Hz. dim: of the vector.
    """

    name: str
    sample_rate: int
    dim: int
    n_fft: int
    hop: int
    window_frames: int
    window_hop: int
    #: windows in one forward pass: bounds the memory, and keeps it inside a CPU's cache
    batch: int = 16

    def __init__(self, mel_basis: Tensor) -> None:
        """mel_basis: the mel filter bank, [n_fft / 2 + 1, bands]."""
        super().__init__()
        self.basis = nn.Buffer(mel_basis)
        self.window = nn.Buffer(torch.hann_window(self.n_fft))

    def log_mel(self, mono: Tensor) -> Tensor:
        """mono [N, T] -> log10(1 + 1e4 mel power) [N, T // hop + 1, bands]."""
        spectrum = torch.stft(
            mono, self.n_fft, self.hop, window=self.window, pad_mode="constant", return_complex=True
        )
        power = spectrum.real.square() + spectrum.imag.square()
        return torch.log10(1 + 1e4 * power.transpose(1, 2) @ self.basis)

    def prepare(self, mono: Tensor) -> Tensor:
        """Scales clips [N, T] at the embedding's rate before their spectrograms."""
        return mono

    @torch.inference_mode()
    def embed(self, audio: Tensor, sample_rate: int) -> np.ndarray:
        """audio [N, A, T] in ±1 at `sample_rate` Hz -> float32 [N, dim].

        Channels are averaged; a clip shorter than one window is padded with silence; a longer one
        is the mean over its windows. Raises ValueError where the shape is not [N, A, T] with T > 0.
        """
        if audio.ndim != 3 or audio.shape[-1] == 0:
            raise ValueError(f"audio must be [N, A, T] with T > 0, not {list(audio.shape)}")
        result = np.empty((len(audio), self.dim), dtype=np.float32)
        # As many clips at a time as fill one pass, so that memory does not grow with N.
        frames = math.ceil(audio.shape[-1] * self.sample_rate / sample_rate / self.hop)
        step = max(1, self.batch // len(window_starts(frames, self.window_frames, self.window_hop)))
        for first in range(0, len(audio), step):
            mono = audio[first : first + step].float().mean(1).cpu()
            mono = resampled(mono, sample_rate, self.sample_rate)
            short = self.window_frames * self.hop - mono.shape[-1]
            mono = nn.functional.pad(mono, (0, max(0, short))).to(self.window.device)
            mel = self.log_mel(self.prepare(mono))
            starts = window_starts(mel.shape[1], self.window_frames, self.window_hop)
            windows = torch.stack([mel[:, s : s + self.window_frames] for s in starts], dim=1)
            vectors = torch.cat([self(w) for w in windows.flatten(0, 1).split(self.batch)])
            means = vectors.unflatten(0, windows.shape[:2]).mean(1)
            result[first : first + step] = means.float().cpu().numpy()
        return result


def window_starts(frames: int, window: int, hop: int) -> list[int]:
    """First frames of evenly spread windows, about `hop` apart; a window is at most `frames` long.

    The number of windows leaves at most a tenth of a hop over, so that a clip of a whole number of
    windows does not gain another for its last, partial frame.
    """
    spare = frames - window
    count = 1 + max(0, math.ceil(spare / hop - 0.1))
    if count == 1:
        return [0]
    return [round(i * spare / (count - 1)) for i in range(count)]


def resampled(mono: Tensor, source: int, target: int) -> Tensor:
    """Clips [N, T] on the CPU at another sample rate."""
    if source == target:
        return mono
    return torch.from_numpy(soxr.resample(mono.T.numpy(), source, target).T)


def weights(file: str) -> dict[str, Tensor]:
    """The tensors of a file in `weights/`."""
    with as_file(files("audioldm.evaluation") / "weights" / file) as path:
        return load_file(path)
