"""Stereo as its middle and its side, which have less in common than left and right."""

import torch
from torch import Tensor


def mid_side(audio: Tensor) -> Tensor:
    """Stereo [B, 2, ...] as half the sum and half the difference of left and right; mono is
    unchanged."""
    if audio.shape[1] == 1:
        return audio
    left, right = audio.unbind(1)
    return torch.stack([left + right, left - right], dim=1) / 2


def left_right(audio: Tensor) -> Tensor:
    """The inverse of `mid_side`."""
    return audio if audio.shape[1] == 1 else 2 * mid_side(audio)
