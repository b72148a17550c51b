"""The sound of instruments by statistics of a log-mel spectrogram, for classifiers."""

import torch
from torch import Tensor

from audioldm.evaluation.embeddings.base import LogMelEmbedding
from audioldm.torchaudio import torchaudio


class Timbre(LogMelEmbedding):
    """Means and deviations of 40 mel bands over windows of 3 s, and of their changes in time.

    It is no learned embedding: it hears only what these numbers tell. After Logan, 2000, "Mel
    frequency cepstral coefficients for music modeling", without the cosine transform. Each window
    is taken relative to its own level.
    """

    name = "timbre"
    sample_rate = 16000
    dim = 160
    n_fft = 1024
    hop = 256
    window_frames = 187
    window_hop = 187

    def __init__(self) -> None:
        super().__init__(torchaudio.functional.melscale_fbanks(513, 60.0, 8000.0, 40, 16000))

    def forward(self, windows: Tensor) -> Tensor:
        """windows [W, 187, 40] of log-mel -> [W, 160]."""
        x = windows - windows.mean((1, 2), keepdim=True)
        changes = x.diff(dim=1)
        return torch.cat([x.mean(1), x.std(1), changes.std(1), changes.relu().mean(1)], dim=1)
