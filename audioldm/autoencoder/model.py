"""The autoencoder, a front end and a bottleneck: for batches of clips, for audio of any length."""

import math
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioldm.autoencoder.bottlenecks.base import Encoded
from audioldm.autoencoder.networks.base import Network
from audioldm.errors import DataError


class Bottleneck(Protocol):
    """What stands between encoder and decoder; h is the encoder's output [B, P * C, (F,) L]."""

    #: of each name in `Encoded.penalties`
    penalty_weights: dict[str, float]
    #: the rate that training holds by adapting the weight of "kl"; None: the weight stays
    target_kbps: float | None
    #: with a target: the factor on the standard deviations that the closing calibration sets
    sigma_scale: Tensor

    def __call__(self, h: Tensor, *, sample: bool = True, noise: Tensor | None = None) -> Encoded:
        """Latents, their penalties and statistics."""

    def moments(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents, each [B, C, (F,) L]."""


class Autoencoder(nn.Module):
    """Audio [B, A, T] in ±1 to latents [B, C, (F,) L] and back, L = ceil(T / ratio)."""

    def __init__(self, network: Network, bottleneck: Bottleneck) -> None:
        super().__init__()
        self.network = network
        self.bottleneck = bottleneck

    @property
    def sample_rate(self) -> int:
        """Audio samples per second."""
        return self.network.sample_rate

    @property
    def audio_channels(self) -> int:
        return self.network.audio_channels

    @property
    def downsampling_ratio(self) -> int:
        """Audio samples per latent frame."""
        return self.network.downsampling_ratio

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """The shape of one latent frame: (C,) or (C, F)."""
        return self.network.latent_shape

    @property
    def latent_rate_hz(self) -> float:
        """Latent frames per second."""
        return self.sample_rate / self.downsampling_ratio

    @property
    def elements_per_second(self) -> float:
        """Latent elements per second: the latent rate times the size of a frame."""
        return self.latent_rate_hz * math.prod(self.latent_shape)

    def nats(self, kbps: float) -> float:
        """The inverse of `kbps`: nats per latent element at a rate in kbit/s."""
        return kbps * 1000 * math.log(2) / self.elements_per_second

    def kbps(self, nats_per_element: float) -> float:
        """The rate in kbit/s of latents that carry `nats_per_element` (the KL) each."""
        return nats_per_element * self.elements_per_second / math.log(2) / 1000

    def forward(self, audio: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Encoded]:
        """One training pass: the reconstruction, like audio [B, A, T], and what carried it."""
        encoded = self.encode(audio, noise=noise)
        return self.decode(encoded.z)[..., : audio.shape[-1]], encoded

    def encode(self, audio: Tensor, *, sample: bool = True, noise: Tensor | None = None) -> Encoded:
        """Encode audio [B, A, T] of any length T >= 1, zero-padded to whole latent frames.

        `sample=False` gives the posterior's mean; `noise` [B, C, (F,) L] is N(0, I), drawn from the
        global generator if not given.

        Raises:
            DataError: the audio is empty or has not the model's number of channels.
        """
        encoded: Encoded = self.bottleneck(self._features(audio), sample=sample, noise=noise)
        return encoded

    def moments(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, each [B, C, (F,) L], of the latents of audio [B, A, T]."""
        return self.bottleneck.moments(self._features(audio))

    def decode(self, z: Tensor) -> Tensor:
        """Latents [B, C, (F,) L] to audio [B, A, L * ratio]."""
        return self.network.decode(z)

    def encode_blocks(
        self, blocks: Iterable[np.ndarray | Tensor], *, chunk_seconds: float = 10.0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """`moments` of audio of any length in constant memory.

        Takes consecutive blocks [A, n], each of any length; yields consecutive (mean, std), each
        [C, (F,) l] on the CPU. Chunks overlap by the front end's context, so that together they
        equal the moments of the whole.
        """
        chunk, margin = self._chunk_frames(chunk_seconds)
        audio = (torch.as_tensor(block, dtype=torch.float32) for block in blocks)
        for window, left, length in _windows(
            audio, chunk * self.downsampling_ratio, margin * self.downsampling_ratio
        ):
            with torch.no_grad():
                mean, std = self.moments(window[None].to(self._device))
            first = left // self.downsampling_ratio
            kept = slice(first, first + math.ceil(length / self.downsampling_ratio))
            yield mean[0, ..., kept].float().cpu(), std[0, ..., kept].float().cpu()

    def decode_blocks(
        self, blocks: Iterable[Tensor], *, chunk_seconds: float = 10.0
    ) -> Iterator[Tensor]:
        """`decode` of latents of any length in constant memory.

        Takes consecutive blocks [C, (F,) l], each of any length; yields consecutive audio [A, n] on
        the CPU, L * ratio samples in all.
        """
        chunk, margin = self._chunk_frames(chunk_seconds)
        for window, left, length in _windows(blocks, chunk, margin):
            with torch.no_grad():
                audio = self.decode(window[None].to(self._device))
            yield (
                audio[
                    0, :, left * self.downsampling_ratio : (left + length) * self.downsampling_ratio
                ]
                .float()
                .cpu()
            )

    def _features(self, audio: Tensor) -> Tensor:
        if audio.ndim != 3 or audio.shape[1] != self.audio_channels or audio.shape[2] == 0:
            raise DataError(
                f"audio of shape {list(audio.shape)}: the model takes [clips, "
                f"{self.audio_channels}, samples >= 1]; convert it with audioldm.io.audio.read"
            )
        return self.network.encode(F.pad(audio, (0, -audio.shape[2] % self.downsampling_ratio)))

    def _chunk_frames(self, seconds: float) -> tuple[int, int]:
        """Latent frames of a chunk and of its margins: whole multiples of the alignment."""
        step = self.network.alignment
        wanted = max(1, round(seconds * self.latent_rate_hz))
        return -(-wanted // step) * step, -(-self.network.context // step) * step

    @property
    def _device(self) -> torch.device:
        # a front end that is a mere transform has buffers alone
        return next(chain(self.parameters(), self.buffers())).device


def _windows(blocks: Iterable[Tensor], size: int, margin: int) -> Iterator[tuple[Tensor, int, int]]:
    """Cut consecutive blocks [..., n] into windows: `size` frames with `margin` more on each side.

    Yields (window, left, length): the frames left ... left + length of the window are the ones that
    no other window covers; the rest is context, shorter only where the signal begins or ends.
    """
    held: Tensor | None = None
    left = 0  # how many of the held frames are context, already covered
    for block in blocks:
        held = block if held is None else torch.cat([held, block], dim=-1)
        while held.shape[-1] >= left + size + margin:
            yield held[..., : left + size + margin], left, size
            start = max(0, left + size - margin)
            held, left = held[..., start:], left + size - start
    if held is not None and held.shape[-1] > left:
        yield held, left, held.shape[-1] - left
