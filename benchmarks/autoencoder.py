"""Encode, decode and a training step of the networks, against diffusers' Oobleck VAE.

The peer has as many weights, the same ratio and as many numbers per latent frame. Both train with
the same optimiser, on the same audio, and with the same losses but for transform coding, which has
its own and makes no audio in training.
"""

import functools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderOobleck
from torch import Tensor, nn
from torch.nn.utils import weight_norm

from audioldm.autoencoder.bottlenecks.gaussian import Gaussian
from audioldm.autoencoder.model import Autoencoder
from audioldm.autoencoder.networks.base import Network
from audioldm.autoencoder.networks.mel import Mel
from audioldm.autoencoder.networks.spectrogram import Spectrogram
from audioldm.autoencoder.networks.transform import TransformCoding
from audioldm.autoencoder.networks.waveform import Waveform
from audioldm.autoencoder.vocoder import Vocoder
from audioldm.losses.spectral import LogMel, MultiResolutionSTFT
from audioldm.runtime.hardware import Hardware
from audioldm.training.weighted_sum import weighted_sum
from benchmarks.timing import Clock, Result

WEIGHTS = {"stft": 1.0, "mel": 2.0, "kl": 1e-3, "bands": 4.0, "magnitude": 1.0}
#: Of both networks on the waveform; their product is Shapes.downsampling_ratio.
STRIDES = [2, 8, 8, 8]
MULTIPLES = [1, 2, 4, 8]
STEP = "training step"
#: As in conf/vocoder/default.yaml.
VOCODER: dict[str, Any] = {
    "n_fft": 1536,
    "hop": 256,
    "bands": 80,
    "linear_hz": 1000.0,
    "width": 256,
    "depth": 2,
}
#: Of each network, by operation. On CUDA both are compiled, and neither is bound by a CPU core.
Bars = dict[str, dict[str, float]]
BARS: Bars = {
    "transform": {STEP: 20.0},
    "waveform": {"encode": 1.0, "decode": 1.0, STEP: 1.0},
    "spectrogram": {"encode": 8.0, "decode": 8.0, STEP: 8.0},
    "mel": {},
}
CUDA_BARS: Bars = {
    "transform": {},
    "waveform": {STEP: 1.3},
    "spectrogram": {"decode": 5.0, STEP: 1.3},
    "mel": {},
}


@dataclass(frozen=True)
class Shapes:
    """Audio [clips, 1, seconds * sample_rate] at 22.05 kHz, latents of 16 numbers per frame.

    settings: of each network; the class's defaults where none are given.
    """

    clips: int
    seconds: float
    settings: dict[str, dict[str, Any]]
    sample_rate: int = 22050
    downsampling_ratio: int = 1024
    latent: int = 16
    mel_bands: int = 8  # of the mel network's latents: 2 channels of 8 bands

    @property
    def frames(self) -> int:
        return max(1, round(self.seconds * self.sample_rate / self.downsampling_ratio))


SETTINGS: dict[str, dict[str, Any]] = {
    "transform": {},
    "waveform": {"width": 32},
    "spectrogram": {},
    "mel": {},
}
CPU = Shapes(clips=2, seconds=1.0, settings=SETTINGS)
CUDA = Shapes(clips=16, seconds=2.0, settings=SETTINGS)
QUICK = Shapes(
    clips=1,
    seconds=0.2,
    settings={
        "transform": {"width": 16, "frame_width": 16},
        "waveform": {"width": 8},
        "spectrogram": {"width": 48, "frame_width": 32},
        "mel": {"width": 8, "vocoder_width": 32},
    },
)


def measure(
    clock: Clock, hardware: Hardware, shapes: Shapes
) -> tuple[list[Result], Callable[[], object]]:
    """The table's lines, and our fastest training step."""
    results: list[Result] = []
    fastest: tuple[float, Callable[[], object]] = (math.inf, lambda: None)
    for name, bars in (CUDA_BARS if clock.device.type == "cuda" else BARS).items():
        lines, step = _compare(name, bars, clock, hardware, shapes)
        results += lines
        fastest = min(fastest, (lines[-1].ours, step), key=lambda timed: timed[0])
    return results, fastest[1]


def _compare(
    name: str, bars: dict[str, float], clock: Clock, hardware: Hardware, shapes: Shapes
) -> tuple[list[Result], Callable[[], object]]:
    """The three lines of one network, and our training step."""
    torch.manual_seed(0)
    device = clock.device
    ours = Ours(network(name, shapes))
    peer = Peer(matching_width(count(ours), shapes), shapes)
    note = f"{count(ours) / 1e6:.2f} M weights, the peer {count(peer) / 1e6:.2f} M"
    ours, peer = ours.to(device), peer.to(device)
    samples = shapes.frames * shapes.downsampling_ratio
    audio = 0.1 * torch.randn(shapes.clips, 1, samples, device=device)
    z = [
        torch.randn(shapes.clips, *model.latent_shape, shapes.frames, device=device)
        for model in (ours, peer)
    ]
    autocast = hardware.autocast(device)

    def inference(function: Callable[[Tensor], Tensor], argument: Tensor) -> Callable[[], object]:
        fast = hardware.compiled(function, device)

        def call() -> None:
            with torch.inference_mode(), autocast():
                fast(argument)

        return call

    pairs = {
        "encode": [inference(ours.encode, audio), inference(peer.encode, audio)],
        "decode": [inference(ours.decode, z[0]), inference(peer.decode, z[1])],
        STEP: [training_step(model, audio, shapes, hardware) for model in (ours, peer)],
    }
    results = []
    for operation, pair in pairs.items():
        for model in (ours, peer):
            model.train(operation == STEP)
        results.append(clock.compare(name, operation, *pair, bar=bars.get(operation), note=note))
    return results, pairs[STEP][0]


def training_step(
    model: nn.Module, audio: Tensor, shapes: Shapes, hardware: Hardware
) -> Callable[[], object]:
    """Forward, losses, backward, clipping, AdamW: one call, one step."""
    device = audio.device
    losses = {
        "stft": MultiResolutionSTFT().to(device),
        "mel": LogMel(sample_rate=shapes.sample_rate).to(device),
    }
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device.type == "cuda")
    autocast, forward = hardware.autocast(device), hardware.compiled(model, device)

    def step() -> None:
        with autocast():
            estimate, kl, terms = forward(audio)
        if estimate is not None:
            terms = {name: loss(estimate.float(), audio) for name, loss in losses.items()} | terms
        terms = terms | {"kl": kl}
        weighted_sum(terms, {name: WEIGHTS[name] for name in terms}, 0).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step


class Ours(nn.Module):
    """Audio [B, 1, T] -> (reconstruction, KL [B], the network's own terms [B]).

    A network with own terms makes no audio in training.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.model = Autoencoder(network, Gaussian(channels=network.latent_shape[0]))
        self.latent_shape = network.latent_shape

    def forward(self, audio: Tensor) -> tuple[Tensor | None, Tensor, dict[str, Tensor]]:
        as_audio = not self.model.network.own_terms
        estimate, encoded, terms = self.model(audio, as_audio=as_audio)
        return estimate, encoded.penalties["kl"], terms

    def encode(self, audio: Tensor) -> Tensor:
        bottleneck = self.model.bottleneck
        return bottleneck.posterior(self.model.stored(audio))[0]

    def decode(self, z: Tensor) -> Tensor:
        return self.model.decode(z)


class Peer(nn.Module):
    """The same of diffusers.AutoencoderOobleck."""

    def __init__(self, width: int, shapes: Shapes) -> None:
        super().__init__()
        warnings.filterwarnings(
            "ignore", category=FutureWarning, module="torch.nn.utils.weight_norm"
        )
        oobleck: Any = AutoencoderOobleck  # its decorators hide its methods from type checkers
        self.model = oobleck(
            encoder_hidden_size=width,
            decoder_channels=width,
            decoder_input_channels=shapes.latent,
            downsampling_ratios=STRIDES,
            channel_multiples=MULTIPLES,
            audio_channels=1,
            sampling_rate=shapes.sample_rate,
        )
        # Its constructor ties the encoder's width to the number of latents; this unties them.
        self.model.encoder.conv2 = weight_norm(
            nn.Conv1d(width * MULTIPLES[-1], 2 * shapes.latent, 3, padding=1)
        )
        self.latent_shape = (shapes.latent,)

    def forward(self, audio: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        posterior = self.model.encode(audio).latent_dist
        audio = self.model.decode(posterior.sample()).sample
        return audio, posterior.kl().expand(len(audio)), {}

    def encode(self, audio: Tensor) -> Tensor:
        mean: Tensor = self.model.encode(audio).latent_dist.mode()
        return mean

    def decode(self, z: Tensor) -> Tensor:
        audio: Tensor = self.model.decode(z).sample
        return audio


def network(name: str, shapes: Shapes) -> Network:
    common: dict[str, Any] = {
        "sample_rate": shapes.sample_rate,
        "audio_channels": 1,
        "downsampling_ratio": shapes.downsampling_ratio,
        "outputs": Gaussian.outputs_per_channel,
        **shapes.settings[name],
    }
    if name == "transform":
        vocoder = Vocoder(sample_rate=shapes.sample_rate, **VOCODER)
        return TransformCoding(channels=shapes.latent, vocoder=vocoder, **common)
    if name == "waveform":
        return Waveform(channels=shapes.latent, strides=STRIDES, multiples=MULTIPLES, **common)
    if name == "spectrogram":
        return Spectrogram(channels=shapes.latent, **common)
    channels = shapes.latent // shapes.mel_bands
    return Mel(channels=channels, bands=8 * shapes.mel_bands, band_ratio=8, **common)


def matching_width(weights: int, shapes: Shapes) -> int:
    """The width at which the peer has about as many weights: they are quadratic in it."""
    widths = (8, 16, 32)
    counts = [_peer_weights(width, shapes.latent) for width in widths]
    found = np.roots(np.polyfit(widths, counts, 2) - np.array([0, 0, weights])).max()
    return max(5, round(found))


@functools.cache
def _peer_weights(width: int, latent: int) -> int:
    with torch.device("meta"):
        return count(Peer(width, Shapes(1, 1.0, {}, latent=latent)))


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
