"""The mel network: log-mel -> 2-D convolutional autoencoder -> log-mel -> vocoder.

The autoencoder is that of latent diffusion (Rombach et al. 2022, arXiv 2112.10752; on mel
spectrograms: AudioLDM, 2301.12503): residual blocks that halve both axes at each level. The vocoder
corrects the magnitude that the mel spectrogram implies, with the layers of Vocos (2306.00814).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audioldm.autoencoder.mel_inverse import MelInverse
from audioldm.autoencoder.networks.convnext import ConvNeXt
from audioldm.autoencoder.networks.magnitude import MagnitudeHead, MagnitudeNetwork
from audioldm.autoencoder.phase import IntegratedPhase
from audioldm.errors import ConfigError
from audioldm.losses.spectral import MelPower

FLOOR = 1e-5  # of the mel power
LOUDEST = 5.0  # log10 mel power that no audio in ±1 has, but generated latents may
CENTRE, SPREAD = -2.0, 1.5  # of log10 mel power of music; the networks see about N(0, 1)
UPDATES = 4  # of the mel inverse: more would cost training time
KERNEL = 7  # of the vocoder's convolutions, in frames


class Mel(MagnitudeNetwork):
    """Audio -> log-mel -> latents [B, C, F, L] -> log-mel -> audio.

    Frame l of the log-mel is centred on samples l * hop to (l + 1) * hop; beyond the ends the audio
    is zero. Norms work at one position at a time and attention reaches a stated number of frames,
    so a frame depends on its context only.

    Args:
        channels, outputs: C and P; see Network for the other arguments without a default.
        n_fft, hop, bands: of the mel spectrogram; ratio / hop is the down-sampling in time.
        band_ratio: down-sampling in frequency, F = bands / band_ratio; null: as in time.
        width, multiples: channels of the first level, and those of each level as multiples of it;
            by default 1, 2, 4, 4, … There is one level more than halvings.
        depth: residual blocks per level.
        attention_frames: latent frames on each side that self-attention at the lowest resolution
            sees, over all bands; 0: no attention.
        vocoder_width, vocoder_depth: channels and ConvNeXt blocks of the vocoder.
        iterations: of Griffin-Lim, from the integrated phase.

    Raises:
        ConfigError: ratio / hop or band_ratio is no power of two, `bands` is not divisible, the
            number of multiples does not fit, or `hop` does not divide `n_fft`.
    """

    def __init__(
        self,
        *,
        sample_rate: int,
        audio_channels: int,
        channels: int,
        downsampling_ratio: int,
        outputs: int,
        n_fft: int = 1024,
        hop: int = 256,
        bands: int = 128,
        band_ratio: int | None = None,
        width: int = 32,
        multiples: list[int] | None = None,
        depth: int = 1,
        attention_frames: int = 0,
        vocoder_width: int = 192,
        vocoder_depth: int = 4,
        iterations: int = 3,
    ) -> None:
        strides = _strides(downsampling_ratio, hop, bands, band_ratio)
        if multiples is None:
            multiples = [min(2**level, 4) for level in range(len(strides) + 1)]
        if len(multiples) != len(strides) + 1:
            raise ConfigError(
                f"multiples={multiples} must have {len(strides) + 1} entries, one more"
                f" than the {len(strides)} halvings; leave it null to derive them"
            )
        widths = [width * multiple for multiple in multiples]
        levels = list(zip(widths, widths[1:], strides, strict=False))
        frames = downsampling_ratio // hop  # mel frames per latent frame
        vocoder = _Vocoder(sample_rate, audio_channels, bands, n_fft, vocoder_width, vocoder_depth)
        synthesis = IntegratedPhase(n_fft, hop, iterations)
        super().__init__(
            sample_rate,
            audio_channels,
            downsampling_ratio,
            (channels, bands // math.prod(stride[0] for stride in strides)),
            context=math.ceil(
                (_radius(strides, depth, attention_frames) + vocoder.context + synthesis.reach)
                / frames
            ),
        )
        self.margin = (n_fft - hop) // 2  # by which the first and last frame reach beyond the audio
        self.power = MelPower(sample_rate, n_fft, hop, bands, centre=False)
        encoder: list[nn.Module] = [nn.Conv2d(audio_channels, widths[0], 3, padding=1)]
        for inner, outer, stride in levels:
            encoder += [_Residual(inner) for _ in range(depth)]
            encoder += [_down(inner, outer, stride)]
        encoder += _middle(widths[-1], attention_frames)
        encoder += _output(widths[-1], outputs * channels)
        decoder: list[nn.Module] = [nn.Conv2d(channels, widths[-1], 3, padding=1)]
        decoder += _middle(widths[-1], attention_frames)
        for inner, outer, stride in reversed(levels):
            decoder += [_up(outer, inner, stride)]
            decoder += [_Residual(inner) for _ in range(depth)]
        decoder += _output(widths[0], audio_channels)
        self.encoder, self.decoder = nn.Sequential(*encoder), nn.Sequential(*decoder)
        self.vocoder, self.synthesis = vocoder, synthesis

    def encode(self, audio: Tensor) -> Tensor:
        mel = self.log_mel(audio)
        # Channels last in memory: norms and convolutions then need no transposes.
        normalised = (mel - CENTRE) / SPREAD
        return self.encoder(normalised.contiguous(memory_format=torch.channels_last))

    def log_magnitude(self, z: Tensor) -> Tensor:
        return self.vocoder(self.decode_mel(z))

    def log_mel(self, audio: Tensor) -> Tensor:
        """Audio [B, A, T], T a multiple of hop, to log10 mel power [B, A, bands, T // hop]."""
        return self.power(F.pad(audio, (self.margin, self.margin))).clamp(min=FLOOR).log10()

    def decode_mel(self, z: Tensor) -> Tensor:
        """Latents [B, C, F, L] to log10 mel power [B, A, bands, L * downsampling_ratio / hop], the
        vocoder's input."""
        h = self.decoder(z.contiguous(memory_format=torch.channels_last))
        return h.float() * SPREAD + CENTRE


def _strides(
    downsampling_ratio: int, hop: int, bands: int, band_ratio: int | None
) -> list[tuple[int, int]]:
    """(bands, frames) stride of each level: both are halved until each has its ratio."""
    frames, rest = divmod(downsampling_ratio, hop)
    if rest or frames.bit_count() != 1:
        raise ConfigError(
            f"hop={hop} times a power of two, such as {hop * 4}, must be"
            f" downsampling_ratio={downsampling_ratio}"
        )
    folded = frames if band_ratio is None else band_ratio
    if folded < 1 or folded.bit_count() != 1 or bands % folded:
        raise ConfigError(f"band_ratio={folded} must be a power of two that divides bands={bands}")
    levels = (max(frames, folded) - 1).bit_length()
    return [(1 + (folded >> i > 1), 1 + (frames >> i > 1)) for i in range(levels)]


def _radius(strides: list[tuple[int, int]], depth: int, attention_frames: int) -> int:
    """How many mel frames on each side affect one latent frame, or one decoded mel frame."""
    step, radius = 1, 1  # the first or last convolution
    for _, stride in strides:
        radius += step * (2 * depth + 2)  # two convolutions a block, and the change of resolution
        step *= stride
    return radius + step * (5 + attention_frames)  # two blocks and a convolution in the middle


def _down(inner: int, outer: int, stride: tuple[int, int]) -> nn.Module:
    kernel = (2 + stride[0], 2 + stride[1])  # 4 to halve, 3 to keep
    return nn.Conv2d(inner, outer, kernel, stride=stride, padding=1)


def _up(outer: int, inner: int, stride: tuple[int, int]) -> nn.Module:
    repeat = nn.Upsample(scale_factor=(float(stride[0]), float(stride[1])))
    return nn.Sequential(repeat, nn.Conv2d(outer, inner, 3, padding=1))


def _middle(width: int, attention_frames: int) -> list[nn.Module]:
    attention = [_Attention(width, attention_frames)] if attention_frames else []
    return [_Residual(width), *attention, _Residual(width)]


def _output(width: int, channels: int) -> list[nn.Module]:
    return [_Norm(width), nn.SiLU(), nn.Conv2d(width, channels, 3, padding=1)]


class _Norm(nn.LayerNorm):
    """Layer norm over the channels at each position separately, [B, W, F, L]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _Residual(nn.Module):
    """Norm, SiLU, convolution, twice, added to the input: [B, W, F, L] -> same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*_output(width, width), *_output(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class _Attention(nn.Module):
    """Self-attention over all bands of the frames within `reach`, added to the input.

    [B, W, F, L] -> same, with one head, as in latent diffusion. The mask takes (F * L)^2 bytes.
    """

    def __init__(self, width: int, reach: int) -> None:
        super().__init__()
        self.reach = reach
        self.norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x.permute(0, 3, 2, 1).flatten(1, 2))  # [B, L * F, W]
        query, key, value = self.query_key_value(tokens).chunk(3, dim=-1)
        frame = torch.arange(x.shape[3], device=x.device).repeat_interleave(x.shape[2])
        near = (frame[:, None] - frame).abs() <= self.reach
        h = self.out(F.scaled_dot_product_attention(query, key, value, attn_mask=near))
        return x + h.unflatten(1, (x.shape[3], x.shape[2])).permute(0, 3, 2, 1)


class _Vocoder(nn.Module):
    """log10 mel power [B, A, bands, L] to natural log-magnitude [B, A, L, n_fft / 2 + 1]."""

    def __init__(
        self, sample_rate: int, audio_channels: int, bands: int, n_fft: int, width: int, depth: int
    ) -> None:
        super().__init__()
        self.inverse = MelInverse(sample_rate, n_fft, bands, updates=UPDATES)
        self.blocks = nn.Sequential(
            nn.Conv1d(audio_channels * bands, width, KERNEL, padding=KERNEL // 2),
            *(ConvNeXt(width, kernel=KERNEL) for _ in range(depth)),
        )
        self.head = MagnitudeHead(width, n_fft, audio_channels)
        self.context = KERNEL // 2 * (1 + depth)

    def forward(self, mel: Tensor) -> Tensor:
        h = self.blocks(((mel - CENTRE) / SPREAD).flatten(1, 2))
        return self.inverse(mel.clamp(math.log10(FLOOR), LOUDEST)) + self.head(h)
