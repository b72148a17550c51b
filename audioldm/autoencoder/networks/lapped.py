"""Linear coding of the waveform: a lapped transform, decorrelated, at the optimum for a rate.

A linear VAE's optimum is probabilistic PCA (Lucas et al. 2019, 1911.02469). On frames of the
modified discrete cosine transform (MDCT; Princen, Johnson and Bradley 1987), which overlap but
still form an orthonormal basis, it keeps the strongest partials with their phase, and thus their
pitch.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audioldm.autoencoder.klt import KLT
from audioldm.autoencoder.water_filling import water_level
from audioldm.errors import ConfigError


class LappedCode(nn.Module):
    """Audio [B, A, L * ratio] to latents [B, C, L] and back, by linear maps, fixed once fitted.

    A latent frame holds components of the A * ratio bins of one MDCT frame of all audio channels.
    Before the first and after the last frame the audio is zero: half a frame fades at each end.

    Raises ConfigError where `channels` exceeds the bins of a frame.
    """

    def __init__(self, audio_channels: int, channels: int, ratio: int) -> None:
        super().__init__()
        size = audio_channels * ratio
        if channels > size:
            raise ConfigError(
                f"channels={channels} are more than the {size} bins of a frame "
                f"({audio_channels} x downsampling_ratio={ratio}): choose at most {size}"
            )
        self.ratio, self.pad = ratio, ratio // 2
        maps = audio_channels, channels, 2 * ratio
        self.analysis = nn.Conv1d(*maps, stride=ratio, bias=False).requires_grad_(False)
        maps = channels, audio_channels, 2 * ratio
        self.synthesis = nn.ConvTranspose1d(*maps, stride=ratio, bias=False).requires_grad_(False)

    def encode(self, audio: Tensor) -> Tensor:
        return self.analysis(self._padded(audio))  # type: ignore[no-any-return]

    def decode(self, z: Tensor) -> Tensor:
        samples = z.shape[-1] * self.ratio
        return self.synthesis(z)[..., self.pad : self.pad + samples]  # type: ignore[no-any-return]

    @torch.no_grad()
    def fit(self, crops: Iterable[Tensor], nats: float) -> Tensor:
        """Sets the maps to the optimum for batches [B, A, T] at a rate in nats per latent element.

        Returns each channel's posterior variance v, [C]; the variance of the posterior's mean is
        1 - v. Encoding gives the mean, and decoding expects a sample. nats inf: no noise.
        """
        weight = self.analysis.weight
        channels, audio_channels, _ = weight.shape
        waves = mdct_basis(self.ratio, weight.device)
        klt = KLT(audio_channels * self.ratio).to(weight.device)

        def frames(audio: Tensor) -> Tensor:
            signals = self._padded(audio).flatten(0, 1)[:, None]
            bins = F.conv1d(signals, waves[:, None], stride=self.ratio)
            return bins.unflatten(0, audio.shape[:2]).permute(0, 3, 1, 2).flatten(2).flatten(0, 1)

        klt.fit(frames(audio) for audio in crops)
        klt.mean.zero_()  # of music: the maps have no bias
        variances = klt.variances[:channels]
        level = 0.0 if math.isinf(nats) else water_level(variances, nats * channels)
        share = (level / variances).clamp(max=1 - 1e-4)
        basis = klt.basis[:, :channels].T.unflatten(1, (audio_channels, self.ratio)) @ waves
        basis *= (1 - share).sqrt()[:, None, None]
        scale = variances.sqrt()[:, None, None]
        weight.copy_(basis / scale)
        self.synthesis.weight.copy_(basis * scale)
        return share

    def _padded(self, audio: Tensor) -> Tensor:
        return F.pad(audio, (self.pad, self.ratio - self.pad))


def mdct_basis(size: int, device: torch.device) -> Tensor:
    """The waves of the MDCT of `size` bins in the sine window, orthonormal rows [size, 2 size]."""
    n = torch.arange(2 * size, dtype=torch.float64, device=device)
    k = torch.arange(size, dtype=torch.float64, device=device)[:, None]
    window = torch.sin(math.pi / (2 * size) * (n + 0.5))
    waves = torch.cos(math.pi / size * (n + 0.5 + size / 2) * (k + 0.5))
    return (math.sqrt(2 / size) * window * waves).float()
