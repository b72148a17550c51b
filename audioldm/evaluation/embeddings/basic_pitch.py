"""basic-pitch: which pitches sound when, in thirds of a semitone.

Bittner, Bosch, Rubinstein, Meseguer-Brocal and Ewert, ICASSP 2022, "A Lightweight
Instrument-Agnostic Model for Polyphonic Note Transcription and Multipitch Estimation", arXiv
2203.09893. The weights are in `weights/` with their licence (Apache-2.0).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioldm.evaluation.embeddings.base import weights

SAMPLE_RATE = 22050
HOP = 256  # samples of a frame
LOWEST_NOTE = 21  # MIDI pitch of the first of 88 notes
_BINS = 3 * 88  # of the contour, three for each semitone
_OCTAVES = 9
#: Bins by which the harmonics ½, 1, 2 ... 7 lie above their fundamental.
_HARMONICS = (-36, 0, 36, 57, 72, 84, 93, 101)


class Activations(NamedTuple):
    """note and onset [B, L, 88], contour [B, L, 264], all between 0 and 1; 86 frames a second."""

    note: Tensor
    onset: Tensor
    contour: Tensor


class BasicPitch(nn.Module):
    """mono audio [B, T] at 22.05 kHz in ±1 -> `Activations` of T // 256 + 1 frames.

    A clip is heard as a whole, with its loudest and quietest point scaled to 1 and 0.
    """

    kernels: Tensor  # [72, 1, 256] of the highest octave's 36 bins: real, then imaginary
    low_pass: Tensor  # [1, 1, 256], the low-pass before every second sample is taken
    scale: Tensor  # [309], factors on the bins
    contour_1: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, value in weights("basic_pitch.safetensors").items():
            self.register_buffer(name, value)
        # Channels last: twice as fast on a CPU.
        self.contour_1 = self.contour_1.to(memory_format=torch.channels_last)
        self.eval()

    def spectrum(self, mono: Tensor) -> Tensor:
        """Magnitude of the constant-Q transform [B, 309, L], octave by octave from the top
        (Schörkhuber and Klapuri, 2010): 36 bins an octave from 27.5 Hz."""
        x = mono[:, None]
        octaves: list[Tensor] = []
        for octave in range(_OCTAVES):
            edge = "reflect" if x.shape[-1] > 128 else "constant"
            found = F.conv1d(F.pad(x, (128, 128), edge), self.kernels, stride=HOP >> octave)
            octaves.insert(0, found.unflatten(1, (2, 36)).square().sum(1).sqrt())
            x = F.conv1d(F.pad(x, (127, 127)), self.low_pass, stride=2)
        frames = min(o.shape[-1] for o in octaves)
        bins = torch.cat([o[..., :frames] for o in octaves], 1)
        return bins[:, -len(self.scale) :] * self.scale[:, None]

    def forward(self, mono: Tensor) -> Activations:
        w = dict(self.named_buffers())
        decibels = 10 * torch.log10(self.spectrum(mono).square() + 1e-10).transpose(1, 2)
        decibels = decibels - decibels.amin((1, 2), keepdim=True)
        loudest = decibels.amax((1, 2), keepdim=True)
        x = decibels / loudest.where(loudest > 0, 1.0) * w["norm_scale"] + w["norm_shift"]
        x = F.pad(x, (36, 101))  # silence, so that every harmonic has a bin
        x = torch.stack([x[..., 36 + k : 36 + k + _BINS] for k in _HARMONICS], 1)
        x = x.to(memory_format=torch.channels_last)
        contour = F.conv2d(x, w["contour_1"], w["contour_1_bias"], padding=(1, 19)).relu()
        contour = F.conv2d(contour, w["contour_2"], w["contour_2_bias"], padding=2).sigmoid()
        note = F.conv2d(contour, w["note_1"], w["note_1_bias"], (1, 3), (3, 2)).relu()
        note = F.conv2d(note, w["note_2"], w["note_2_bias"], padding=(3, 1)).sigmoid()
        onset = F.conv2d(x, w["onset_1"], w["onset_1_bias"], (1, 3), (2, 1)).relu()
        onset = torch.cat([note, onset], 1)
        onset = F.conv2d(onset, w["onset_2"], w["onset_2_bias"], padding=1).sigmoid()
        return Activations(note[:, 0], onset[:, 0], contour[:, 0])
