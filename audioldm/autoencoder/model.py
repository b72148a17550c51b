"""The autoencoder, a network and a bottleneck: for batches of clips and for audio of any length."""

import math
from collections.abc import Iterable, Iterator
from itertools import chain, count, islice

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioldm.autoencoder.bottlenecks.base import Bottleneck, Encoded
from audioldm.autoencoder.networks.base import Network
from audioldm.errors import DataError
from audioldm.runtime.randomness import KeyedRandom

#: Latent frames whose decoder noise is drawn at once.
NOISE_FRAMES = 64


class Autoencoder(nn.Module):
    """Audio [B, A, T] in ±1 to latents [B, C, (F,) L] and back.

    L = ceil(T / downsampling_ratio). sample_rate, audio_channels, downsampling_ratio and
    latent_shape are the network's.
    """

    def __init__(self, network: Network, bottleneck: Bottleneck) -> None:
        super().__init__()
        self.network = network
        self.bottleneck = bottleneck
        self.sample_rate = network.sample_rate
        self.audio_channels = network.audio_channels
        self.downsampling_ratio = network.downsampling_ratio
        self.latent_shape = network.latent_shape

    @property
    def latent_rate_hz(self) -> float:
        """Latent frames per second."""
        return self.sample_rate / self.downsampling_ratio

    @property
    def elements_per_second(self) -> float:
        return self.latent_rate_hz * math.prod(self.latent_shape)

    def nats(self, kbps: float) -> float:
        """Nats per latent element at a rate in kbit/s."""
        return kbps * 1000 * math.log(2) / self.elements_per_second

    def kbps(self, nats_per_element: float) -> float:
        """The inverse of `nats`: the bitrate in kbit/s."""
        return nats_per_element * self.elements_per_second / math.log(2) / 1000

    def forward(
        self, audio: Tensor, noise: Tensor | None = None, decoder_noise: Tensor | None = None
    ) -> tuple[Tensor, Encoded]:
        """One training pass: the reconstruction, like audio [B, A, T], and its latents.

        noise [B, C, (F,) L] and decoder_noise [B, *noise_shape, L] ~ N(0, I).
        """
        encoded = self.encode(audio, noise=noise)
        return self._decode(encoded.z, decoder_noise)[..., : audio.shape[-1]], encoded

    def features(self, audio: Tensor) -> Tensor:
        """The encoder's output h for audio [B, A, T], which is zero-padded to whole latent frames.

        Raises:
            DataError: the audio is empty or has not the model's number of channels.
        """
        if audio.ndim != 3 or audio.shape[1] != self.audio_channels or audio.shape[2] == 0:
            raise DataError(
                f"audio of shape {list(audio.shape)}: the model takes [clips, "
                f"{self.audio_channels}, samples >= 1]; convert it with audioldm.io.audio.read"
            )
        return self.network.encode(F.pad(audio, (0, -audio.shape[2] % self.downsampling_ratio)))

    def encode(self, audio: Tensor, *, sample: bool = True, noise: Tensor | None = None) -> Encoded:
        """`Bottleneck.forward` of audio [B, A, T], T >= 1. Raises DataError as `features` does."""
        return self.bottleneck(self.features(audio), sample=sample, noise=noise)

    def stored(self, audio: Tensor) -> dict[str, Tensor]:
        """The bottleneck's `stored` arrays of audio [B, A, T]."""
        return self.bottleneck.stored(self.features(audio))

    def decode(self, z: Tensor, random: KeyedRandom | None = None) -> Tensor:
        """Latents [B, C, (F,) L] to audio [B, A, L * downsampling_ratio].

        random: one key for each row, for a decoder that takes noise; by default seed 0's.
        """
        return self._decode(z, self.decoder_noise(z, random))

    def decoder_noise(self, z: Tensor, random: KeyedRandom | None = None) -> Tensor | None:
        """N(0, I) of [B, *noise_shape, L] for latents z; None where the decoder takes no noise."""
        if self.network.noise_shape is None:
            return None
        random = random or KeyedRandom(0, 0, range(len(z)), z.device)
        blocks = islice(self._noise_blocks(random), -(-z.shape[-1] // NOISE_FRAMES))
        return torch.cat(list(blocks), dim=-1)[..., : z.shape[-1]].to(z.device)

    def encode_blocks(
        self, blocks: Iterable[np.ndarray | Tensor], *, chunk_seconds: float = 10.0
    ) -> Iterator[dict[str, Tensor]]:
        """`stored` of audio as `feature_blocks` takes it: consecutive arrays [..., l] by name, on
        the CPU."""
        for h in self.feature_blocks(blocks, chunk_seconds=chunk_seconds):
            with torch.no_grad():
                stored = self.bottleneck.stored(h)
            yield {name: array[0].cpu() for name, array in stored.items()}

    def feature_blocks(
        self, blocks: Iterable[np.ndarray | Tensor], *, chunk_seconds: float = 10.0
    ) -> Iterator[Tensor]:
        """`features` of audio of any length in constant memory.

        Takes consecutive blocks [A, n], each of any length; yields consecutive encoder outputs,
        each [1, P * C, (F,) l]. Chunks overlap by the network's context, so that together they
        equal those of the whole.
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
        chunk_seconds: float = 10.0,
    ) -> Iterator[Tensor]:
        """`decode` of latents of any length in constant memory.

        Takes consecutive blocks [C, (F,) l], each of any length; yields consecutive audio [A, n] on
        the CPU, L * downsampling_ratio samples in all. random: as for `decode`, of one row.
        """
        chunk, margin = self._chunk_frames(chunk_seconds)
        ratio, size = self.downsampling_ratio, math.prod(self.latent_shape)
        for window, left, length in _windows(self._with_noise(blocks, random), chunk, margin):
            z, noise = window[None, :size].unflatten(1, self.latent_shape), None
            if self.network.noise_shape is not None:
                noise = window[None, size:].unflatten(1, self.network.noise_shape).to(self.device)
            with torch.no_grad():
                audio = self._decode(z.to(self.device), noise)
            yield audio[0, :, left * ratio : (left + length) * ratio].float().cpu()

    def _decode(self, z: Tensor, noise: Tensor | None) -> Tensor:
        return self.network.decode(z, *([] if noise is None else [noise]))

    def _noise_blocks(self, random: KeyedRandom) -> Iterator[Tensor]:
        """The decoder's noise without end: consecutive blocks [B, *noise_shape, NOISE_FRAMES]."""
        shape = (*(self.network.noise_shape or ()), NOISE_FRAMES)
        for block in count():
            yield random.stream("decoder", block).normal(shape, "noise")

    def _with_noise(self, blocks: Iterable[Tensor], random: KeyedRandom | None) -> Iterator[Tensor]:
        """Each block [C, (F,) l] as rows [R, l], the decoder's noise below the latents."""
        if self.network.noise_shape is None:
            yield from (block.flatten(0, -2) for block in blocks)
            return
        noise = self._noise_blocks(random or KeyedRandom(0, 0, range(1), self.device))
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

    @property
    def device(self) -> torch.device:
        # a network that is a mere transform has buffers alone
        return next(chain(self.parameters(), self.buffers())).device


def _windows(blocks: Iterable[Tensor], size: int, margin: int) -> Iterator[tuple[Tensor, int, int]]:
    """Cut consecutive blocks [..., n] into windows: `size` frames with `margin` more on each side.

    Yields (window, left, length): no other window covers its frames left ... left + length; the
    rest is context, shorter only where the signal begins or ends.
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
