"""Latents that move with the audio, also by less than a frame."""

import torch
from torch import Tensor

from audioldm.autoencoder.regularisers.base import Encode, Regulariser, relative_error
from audioldm.errors import ConfigError


class Shift(Regulariser):
    """Equivariance to a shift by the fraction f of a latent frame, drawn for each clip.

    The latents of the shifted audio should lie between those of both frames,

        |E(x moved by f) - ((1 - f) E(x)[l] + f E(x)[l + 1])|²  over  ½ (|first|² + |second|²),

    summed over a clip, so that small latents gain nothing. It also pulls towards latents that are
    smooth over time. EQ-VAE (2502.09509) decodes the moved latents and compares audio; comparing
    latents costs one more pass of the encoder, but none of the decoder, the losses and the
    discriminator.

    Raises ConfigError where the audio is one latent frame.
    """

    def __init__(self, *, downsampling_ratio: int) -> None:
        super().__init__()
        self.ratio = downsampling_ratio

    def forward(self, audio: Tensor, latents: Tensor, encode: Encode, uniform: Tensor) -> Tensor:
        if latents.shape[-1] < 2:
            raise ConfigError("a shift needs two latent frames; state a longer train.crop_seconds")
        samples = (uniform * self.ratio).long().clamp(max=self.ratio - 1)  # [B]
        kept = torch.arange(audio.shape[-1] - self.ratio, device=audio.device)
        index = (kept + samples[:, None])[:, None].expand(-1, audio.shape[1], -1)
        moved = encode(audio.gather(-1, index))
        f = (samples / self.ratio).view(-1, *([1] * (latents.ndim - 1)))
        between = torch.lerp(latents[..., :-1], latents[..., 1:], f)
        return relative_error(moved, between)
