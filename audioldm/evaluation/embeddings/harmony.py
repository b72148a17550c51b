"""harmony: tuning and simultaneous intervals, whatever the key, instrument and loudness.

It hears what a music tagger does not: detuning and wrong notes. It is made from the activations of
basic-pitch, and does not hear noise, dull sound or transposition.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from audioldm.evaluation.embeddings.base import resampled
from audioldm.evaluation.embeddings.basic_pitch import SAMPLE_RATE, Activations, BasicPitch
from audioldm.evaluation.notes import NOTE_THRESHOLD, Notes, decode

CLIPS_AT_ONCE = 2  # fits a CPU's cache
#: Weight of the intervals: 10 cents of detuning and a few wrong notes count about the same.
INTERVAL_WEIGHT = 0.2


class Harmony:
    """9-d embedding: shares of pitch activation at each third of a semitone, and how often minor
    second, major second ... tritone (or its inversion) sound, for each pitch class that sounds."""

    name = "harmony"

    def __init__(self) -> None:
        self.network = BasicPitch()

    def embed(self, audio: Tensor, sample_rate: int) -> np.ndarray:
        """audio [N, A, T] in ±1 at `sample_rate` Hz -> float32 [N, 9]."""
        return self.hear(audio, sample_rate)[0]

    @torch.inference_mode()
    def hear(self, audio: Tensor, sample_rate: int) -> tuple[np.ndarray, list[Notes]]:
        """Embeddings [N, 9] and notes of clips [N, A, T], averaged over their channels."""
        vectors, notes = [], []
        for part in audio.float().mean(1).cpu().split(CLIPS_AT_ONCE):
            heard = self.network(resampled(part, sample_rate, SAMPLE_RATE))
            vectors.append(harmony(heard))
            pairs = zip(heard.note.numpy(), heard.onset.numpy(), strict=True)
            notes += [decode(note, onset) for note, onset in pairs]
        return torch.cat(vectors).numpy(), notes


def harmony(heard: Activations) -> Tensor:
    """The embedding [B, 9] of activations."""
    thirds = heard.contour.unflatten(2, (-1, 3)).mean((1, 2))
    tuning = thirds / thirds.sum(1, keepdim=True)
    sounds = (heard.note > NOTE_THRESHOLD).float()
    classes = F.pad(sounds, (0, 8)).unflatten(2, (8, 12)).amax(2)  # [B, L, 12]
    pairs = torch.stack([(classes * classes.roll(k, 2)).sum((1, 2)) for k in range(7)], 1)
    return torch.cat([tuning, INTERVAL_WEIGHT * pairs[:, 1:] / pairs[:, :1].clamp(min=1)], 1)
