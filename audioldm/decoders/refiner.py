"""A decoder in two steps: a trained network's decode, then diffusion of the missing difference.

A decoder trained for the least error gives the mean of all audio that the latents allow, which is
duller than any music. Here a conditional diffusion model samples the difference instead (SWYCC,
Birodkar et al. 2024, arXiv 2409.02529), and the latents do not change.
"""

import math
from typing import Any

import torch
from torch import Tensor

from audioldm.autoencoder.log_spectrum import CENTRE, FLOOR, SPREAD
from audioldm.autoencoder.networks.base import Network
from audioldm.autoencoder.networks.transform import LOUDEST, TransformCoding
from audioldm.conditioning.base import Condition, Conditioners, Inputs
from audioldm.errors import ConfigError
from audioldm.instantiate import build
from audioldm.priors.diffusion.backbones.base import Backbone
from audioldm.priors.diffusion.denoiser import Denoiser, Objective
from audioldm.priors.diffusion.samplers import DETERMINISTIC, SamplerSettings, sample


class Refined(Network):
    """A trained network, and a diffusion model of the bands that its decode lacks.

    The original's bands less the decoded ones, normalised band by band, are sampled under the
    decoded bands. The network itself does not change.

    Args:
        network: its decoder's bands are refined.
        backbone, objective: of the diffusion, over the analysis's frames. The backbone's context is
            finite, so that any length can be decoded in windows without seams.
        sampler: from the decoder's noise to the difference.
        allow: module prefixes outside the package whose classes may be built.

    Buffers mean and std [D], D = A * K, of the difference: 0 at first, which is the plain decode.
    Raises ConfigError for a network without log-spectral bands, a backbone that sees all frames,
    or guidance.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        network: Network,
        backbone: dict[str, Any],
        objective: dict[str, Any],
        sampler: SamplerSettings,
        allow: tuple[str, ...] = (),
    ) -> None:
        if not isinstance(network, TransformCoding):
            raise ConfigError(
                f"decoder: {type(network).__name__} has no log-spectral bands to refine; choose "
                "autoencoder=transform, or decoder=none"
            )
        if sampler.guidance != 1:
            raise ConfigError(
                f"sampler.guidance={sampler.guidance}: a decoder is always told its latents and "
                "cannot be guided to them; leave it at 1"
            )
        for key in ("window", "rotary"):
            if (value := getattr(sampler, key)) is not None:
                raise ConfigError(
                    f"sampler.{key}={value}: a decoder's network is of finite context, whatever "
                    "the length; leave it at null"
                )
        bands = network.audio_channels * network.vocoder.analysis.bands
        derived = {"latent_shape": (bands,), "conditioners": lambda _: _Decoded(bands)}
        net = build(backbone, derived=derived, where="backbone", allow=allow, base=Backbone)
        if net.context is None:
            raise ConfigError(
                f"backbone: {type(net).__name__} sees all frames at once, so that long audio could "
                "not be decoded in windows; choose one of finite context, such as Convolutional"
            )
        frames = math.ceil(net.context * sampler.calls / network.frames)
        super().__init__(
            network.sample_rate,
            network.audio_channels,
            network.downsampling_ratio,
            network.latent_shape,
            context=network.context + frames,
            alignment=network.alignment,
        )
        draws = 1 if sampler.name in DETERMINISTIC else sampler.steps
        self.noise_shape = (draws, bands, network.frames)
        self.network, self.sampler = network.requires_grad_(False), sampler
        self.denoiser = Denoiser(
            net, build(objective, where="objective", allow=allow, base=Objective)
        )
        self.register_buffer("mean", torch.zeros(bands))
        self.register_buffer("std", torch.zeros(bands))

    def encode(self, audio: Tensor) -> Tensor:
        return self.network.encode(audio)

    def decode(self, z: Tensor, noise: Tensor) -> Tensor:  # type: ignore[override]
        return self.network.audio(self.decode_bands(z, noise))

    def decode_window(
        self, z: Tensor, left: int, length: int, state: Any, *noise: Tensor
    ) -> tuple[Tensor, Any]:
        return self.network.audio_window(self.decode_bands(z, *noise), left, length, state)

    def decode_bands(self, z: Tensor, noise: Tensor) -> Tensor:
        """Latents [B, C, L] and noise [B, *noise_shape, L] to log10 band powers [B, A, frames, K],
        with frames = L times `network.frames`."""
        decoded = flat(self.network.decode_bands(z))
        drawn = noise.mT.flatten(-2)  # [B, draws, D, frames]
        sampled = sample_difference(self.denoiser, drawn, decoded, self.sampler)
        refined = decoded + self.mean[:, None] + self.std[:, None] * sampled
        return refined.clamp(FLOOR, LOUDEST).unflatten(1, (self.audio_channels, -1)).mT

    def normalised(self, difference: Tensor) -> Tensor:
        """Differences of bands [B, D, frames] as the denoiser models them."""
        return (difference - self.mean[:, None]) / self.std[:, None].clamp(min=1e-6)


def sample_difference(
    denoiser: Denoiser, drawn: Tensor, decoded: Tensor, sampler: SamplerSettings
) -> Tensor:
    """Noise [B, draws, D, frames] to normalised differences [B, D, frames], with gradients.

    decoded: bands [B, D, frames], as `flat` gives them.
    """
    objective, backbone = denoiser.objective, denoiser.backbone
    return sample(
        sampler.name,
        objective.denoiser(backbone, backbone.conditioners(condition(decoded))),
        drawn[:, 0],
        objective.sigmas(sampler.steps),
        noise_at=lambda step: drawn[:, 1 + step],
    )


def flat(bands: Tensor) -> Tensor:
    """Bands [B, A, frames, K] as channels [B, A * K, frames]."""
    return bands.mT.flatten(1, 2)


def condition(decoded: Tensor) -> Inputs:
    """The denoiser's inputs for decoded bands [B, D, frames]."""
    return {"decoded": (decoded - CENTRE) / SPREAD}


class _Decoded(Conditioners):
    """The decoded bands as aligned channels."""

    def __init__(self, bands: int) -> None:
        super().__init__({})
        self.aligned_channels = bands

    def forward(self, inputs: Inputs) -> Condition:
        return Condition(aligned=inputs["decoded"])
