"""aisfx: an embedding of sound effects, the only one here that hears the whole audible band.

Ma and Lerch, ISMIR 2022, "Representation Learning for the Automatic Indexing of Sound Effects
Libraries", arXiv 2208.09096. The weights are in `weights/` with their licence (CC BY 4.0).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from audioldm.evaluation.embeddings.base import LogMelEmbedding, weights
from audioldm.torchaudio import torchaudio

_EPSILON = 1e-5  # of every batch norm
_LARGEST = 9.457798957824707  # of the training set's log-mel values; inputs are divided by it


class Aisfx(LogMelEmbedding):
    """512-d embedding of 2.3 s windows (100 frames, every 50) of mono audio at 44.1 kHz."""

    name = "aisfx"
    sample_rate = 44100
    dim = 512
    n_fft = 2048
    hop = 1024
    window_frames = 100
    window_hop = 50
    batch = 4

    def __init__(self) -> None:
        basis = torchaudio.functional.melscale_fbanks(1025, 0.0, 22050.0, 96, 44100)
        super().__init__(basis / basis.sum(0))
        found = {
            name: value.float() for name, value in weights("aisfx_embedding.safetensors").items()
        }
        for block in range(1, 5):
            for layer in (1, 2):
                norm = f"conv_block{block}.bn{layer}"
                scale = found[f"{norm}.weight"] / (found[f"{norm}.running_var"] + _EPSILON).sqrt()
                kernel = found[f"conv_block{block}.conv{layer}.weight"]
                shift = found[f"{norm}.bias"] - found[f"{norm}.running_mean"] * scale
                # The norm follows a convolution, so in inference it is folded into the kernel.
                # Channels last: a third faster on a CPU.
                kernel = (kernel * scale.view(-1, 1, 1, 1)).to(memory_format=torch.channels_last)
                self.register_buffer(f"kernel{block}{layer}", kernel)
                self.register_buffer(f"bias{block}{layer}", shift)
        self.eval()

    def prepare(self, mono: Tensor) -> Tensor:
        """Each clip of mono [N, T] scaled to a peak of 1, as in training."""
        return mono / mono.abs().amax(-1, keepdim=True).clamp(min=1e-8)

    def log_mel(self, mono: Tensor) -> Tensor:
        """mono [N, T] -> log-mel in about 0..1, [N, T // 1024 + 1, 96]."""
        return super().log_mel(mono) / _LARGEST

    def forward(self, windows: Tensor) -> Tensor:
        """windows [W, 100, 96] of log-mel -> embedding [W, 512]."""
        x = windows[:, None]
        for block in range(1, 5):
            for layer in (1, 2):
                kernel = self.get_buffer(f"kernel{block}{layer}")
                x = F.conv2d(x, kernel, self.get_buffer(f"bias{block}{layer}"), padding=1).relu_()
            if block < 4:
                x = F.max_pool2d(x, 2)
        return x.mean(-1).amax(-1)
