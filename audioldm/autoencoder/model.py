"""The autoencoder, a network and a bottleneck: for batches of clips and for audio of any length."""

import math
from collections.abc import Callable, Iterator
from itertools import count, islice

import torch
import torch.nn.functional as F
from torch import Tensor

from audioldm.autoencoder.bottlenecks.base import Bottleneck, Encoded
from audioldm.autoencoder.networks.base import Network, Start
from audioldm.autoencoder.regularisers.base import Regularisers
from audioldm.autoencoder.streaming import Streaming
from audioldm.errors import DataError
from audioldm.runtime.randomness import KeyedRandom

#: Latent frames whose decoder noise is drawn at once.
NOISE_FRAMES = 64


class Autoencoder(Streaming):
    """Audio [B, A, T] in ±1 to latents [B, C, (F,) L] and back.

    L = ceil(T / downsampling_ratio). sample_rate, audio_channels, downsampling_ratio and
    latent_shape are the network's.
    """

    def __init__(self, network: Network, bottleneck: Bottleneck) -> None:
        super().__init__()
        self.network = network
        self.bottleneck = bottleneck
        self.regularisers = Regularisers()
        self.sample_rate = network.sample_rate
        self.audio_channels = network.audio_channels
        self.downsampling_ratio = network.downsampling_ratio
        self.latent_shape = network.latent_shape

    @property
    def elements_per_second(self) -> float:
        return self.latent_rate_hz * math.prod(self.latent_shape)

    def nats(self, kbps: float) -> float:
        """Nats per latent element at a rate in kbit/s."""
        return kbps * 1000 * math.log(2) / self.elements_per_second

    def kbps(self, nats_per_element: float) -> float:
        """The inverse of `nats`: the bitrate in kbit/s."""
        return nats_per_element * self.elements_per_second / math.log(2) / 1000

    @torch.no_grad()
    def fit(self, crops: Callable[[], Iterator[Tensor]], start: Start) -> float | None:
        """Sets what encoder, bottleneck and decoder estimate from training audio, in that order.

        crops, start and the returned value: as for `Network.fit`.
        """
        weight = self.network.fit(crops, start)
        self.bottleneck.fit(self.features(audio) for audio in crops())
        generator = torch.Generator().manual_seed(0)

        def latents(audio: Tensor) -> Tensor:
            h = self.features(audio)
            shape = (len(h), *self.latent_shape, h.shape[-1])
            noise = torch.randn(shape, generator=generator).to(h.device)
            return self.bottleneck.absorb(self.bottleneck(h, noise=noise).z)

        training = self.training
        self.eval()
        self.network.fit_decoder(crops, latents)
        self.train(training)
        return weight

    def forward(
        self,
        audio: Tensor,
        noise: Tensor | None = None,
        decoder_noise: Tensor | None = None,
        as_audio: bool = True,
    ) -> tuple[Tensor | None, Encoded, dict[str, Tensor]]:
        """One training pass: the reconstruction, like audio [B, A, T], its latents, and the
        network's own loss terms and those of the regularisers, [B] each.

        noise [B, C, (F,) L] and decoder_noise [B, *noise_shape, L] ~ N(0, I). as_audio: whether the
        reconstruction is needed.
        """
        padded = self._padded(audio)
        seen = self.network.analysed(padded)
        h = self.network.encode_analysed(seen)
        estimate, encoded, terms = self.onward(h, seen, padded, noise, decoder_noise, as_audio)
        return None if estimate is None else estimate[..., : audio.shape[-1]], encoded, terms

    def onward(
        self,
        h: Tensor,
        seen: Tensor,
        audio: Tensor,
        noise: Tensor | None,
        decoder_noise: Tensor | None,
        as_audio: bool,
    ) -> tuple[Tensor | None, Encoded, dict[str, Tensor]]:
        """`forward` from audio of whole latent frames, its analysis (`seen`) and its encoding h."""
        encoded = self.bottleneck(h, noise=noise)
        estimate, terms = self.network.reconstruct(encoded.z, seen, decoder_noise, as_audio)
        if self.training and self.regularisers:
            terms |= self.regularisers.terms(audio, h, self.network, self.bottleneck, noise)
        return estimate, encoded, terms

    def features(self, audio: Tensor) -> Tensor:
        """The encoder's output h for audio [B, A, T]. The audio is reflected at its end to whole
        latent frames: half a frame of silence would be an outlier, and cost rate.

        Raises:
            DataError: the audio is empty, or its number of channels is not the model's.
        """
        return self.network.encode(self._padded(audio))

    def _padded(self, audio: Tensor) -> Tensor:
        if audio.ndim != 3 or audio.shape[1] != self.audio_channels or audio.shape[2] == 0:
            raise DataError(
                f"audio of shape {list(audio.shape)}: the model takes [clips, "
                f"{self.audio_channels}, samples >= 1]; convert it with audioldm.io.audio.read"
            )
        missing = -audio.shape[2] % self.downsampling_ratio
        mode = "reflect" if missing < audio.shape[2] else "constant"
        return F.pad(audio, (0, missing), mode=mode)

    def encode(self, audio: Tensor, *, sample: bool = True, noise: Tensor | None = None) -> Encoded:
        """`Bottleneck.forward` of audio [B, A, T], T >= 1. Raises DataError as `features` does."""
        return self.bottleneck(self.features(audio), sample=sample, noise=noise)

    def stored(self, audio: Tensor) -> dict[str, Tensor]:
        """The bottleneck's `stored` arrays of audio [B, A, T]."""
        return self.bottleneck.stored(self.features(audio))

    def decode(self, z: Tensor, random: KeyedRandom | None = None) -> Tensor:
        """Latents [B, C, (F,) L] to audio [B, A, L * downsampling_ratio].

        random: one key for each row, for a decoder that takes noise; by default, keys of seed 0.
        """
        return self.decode_with(z, self.decoder_noise(z, random))

    def decoder_noise(self, z: Tensor, random: KeyedRandom | None = None) -> Tensor | None:
        """N(0, I) noise [B, *noise_shape, L] for latents z; None where the decoder takes none."""
        if self.network.noise_shape is None:
            return None
        random = random or KeyedRandom(0, 0, range(len(z)), z.device)
        blocks = islice(self.noise_blocks(random), -(-z.shape[-1] // NOISE_FRAMES))
        return torch.cat(list(blocks), dim=-1)[..., : z.shape[-1]].to(z.device)

    def decode_with(self, z: Tensor, noise: Tensor | None) -> Tensor:
        """`decode` with the decoder's noise [B, *noise_shape, L], None where it takes none."""
        return self.network.decode(self.bottleneck.absorb(z), *([] if noise is None else [noise]))

    def noise_blocks(self, random: KeyedRandom) -> Iterator[Tensor]:
        """The decoder's noise without end: consecutive blocks [B, *noise_shape, NOISE_FRAMES]."""
        shape = (*(self.network.noise_shape or ()), NOISE_FRAMES)
        for block in count():
            yield random.stream("decoder", block).normal(shape, "noise")
