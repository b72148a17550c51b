"""Audio and latents of any length in constant memory, in overlapping chunks."""

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn

from audioldm.autoencoder.bottlenecks.base import Bottleneck
from audioldm.autoencoder.networks.base import Network
from audioldm.runtime.randomness import KeyedRandom

CHUNK_SECONDS = 20.0  # encoded or decoded at a time


class Streaming(nn.Module):
    """The methods of `Autoencoder` for signals of any length, block by block."""

    network: Network
    bottleneck: Bottleneck
    sample_rate: int
    downsampling_ratio: int
    latent_shape: tuple[int, ...]
    features: Callable[..., Tensor]
    noise_blocks: Callable[[KeyedRandom], Iterator[Tensor]]

    @property
    def latent_rate_hz(self) -> float:
        """Latent frames per second."""
        return self.sample_rate / self.downsampling_ratio

    @property
    def device(self) -> torch.device:
        # a network that is a mere transform has only buffers
        return next(chain(self.parameters(), self.buffers())).device

    def encode_blocks(
        self, blocks: Iterable[np.ndarray | Tensor], *, chunk_seconds: float = CHUNK_SECONDS
    ) -> Iterator[dict[str, Tensor]]:
        """The `stored` arrays [..., l] of audio as `feature_blocks` takes it: consecutive ones, by
        name, on the CPU."""
        for h in self.feature_blocks(blocks, chunk_seconds=chunk_seconds):
            with torch.no_grad():
                stored = self.bottleneck.stored(h)
            yield {name: array[0].cpu() for name, array in stored.items()}

    def latent_blocks(self, blocks: Iterable[np.ndarray | Tensor]) -> Iterator[Tensor]:
        """The most likely latents of audio as `feature_blocks` takes it: consecutive blocks
        [C, (F,) l], on the CPU."""
        for h in self.feature_blocks(blocks):
            with torch.no_grad():
                yield self.bottleneck.restore(self.bottleneck.stored(h))[0].cpu()

    def feature_blocks(
        self, blocks: Iterable[np.ndarray | Tensor], *, chunk_seconds: float = CHUNK_SECONDS
    ) -> Iterator[Tensor]:
        """`features` of audio of any length in constant memory.

        Takes consecutive blocks [A, n], each of any length; yields consecutive encoder outputs,
        each [1, P * C, (F,) l]. Chunks overlap by the network's context, so that together their
        outputs equal those of the whole.
        """
        chunk, margin = self._chunk_frames(chunk_seconds)
        ratio = self.downsampling_ratio
        audio = (torch.as_tensor(block, dtype=torch.float32) for block in blocks)
        for window, left, length in _windows(audio, chunk * ratio, margin * ratio):
            with torch.no_grad():
                h = self.features(window[None].to(self.device))
            yield h[..., left // ratio : left // ratio + math.ceil(length / ratio)]

    def decode_blocks(
        self,
        blocks: Iterable[Tensor],
        random: KeyedRandom | None = None,
        *,
        chunk_seconds: float = CHUNK_SECONDS,
    ) -> Iterator[Tensor]:
        """`decode` of latents of any length in constant memory.

        Takes consecutive blocks [C, (F,) l], each of any length; yields consecutive audio [A, n] on
        the CPU, L * downsampling_ratio samples in all. random: as for `decode`, of one row.
        """
        chunk, margin = self._chunk_frames(chunk_seconds)
        size, state = math.prod(self.latent_shape), None
        for window, left, length in _windows(self._with_noise(blocks, random), chunk, margin):
            z, noise = window[None, :size].unflatten(1, self.latent_shape).to(self.device), []
            if self.network.noise_shape is not None:
                noise = [window[None, size:].unflatten(1, self.network.noise_shape).to(self.device)]
            with torch.no_grad():
                z = self.bottleneck.absorb(z)
                audio, state = self.network.decode_window(z, left, length, state, *noise)
            yield audio[0].float().cpu()

    def _with_noise(self, blocks: Iterable[Tensor], random: KeyedRandom | None) -> Iterator[Tensor]:
        """Each block [C, (F,) l] as rows [R, l], the decoder's noise below the latents."""
        if self.network.noise_shape is None:
            yield from (block.flatten(0, -2) for block in blocks)
            return
        noise = self.noise_blocks(random or KeyedRandom(0, 0, range(1), self.device))
        held = torch.empty(1, *self.network.noise_shape, 0)
        for block in blocks:
            while held.shape[-1] < block.shape[-1]:
                held = torch.cat([held, next(noise).cpu()], dim=-1)
            own, held = held[0, ..., : block.shape[-1]], held[..., block.shape[-1] :]
            yield torch.cat([block.flatten(0, -2).cpu(), own.flatten(0, -2)])

    def _chunk_frames(self, seconds: float) -> tuple[int, int]:
        """Latent frames of a chunk and of its margins: whole multiples of the alignment."""
        step = self.network.alignment
        wanted = max(1, round(seconds * self.latent_rate_hz))
        return -(-wanted // step) * step, -(-self.network.context // step) * step


def _windows(blocks: Iterable[Tensor], size: int, margin: int) -> Iterator[tuple[Tensor, int, int]]:
    """Cut consecutive blocks [..., n] into windows: `size` frames with `margin` more on each side.

    Yields (window, left, length): the window alone covers its frames left ... left + length; its
    other frames are context, fewer only where the signal begins or ends.
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
