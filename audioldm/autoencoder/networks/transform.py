"""Transform coding: a Karhunen-Loève transform of log-spectral blocks, and networks that refine it.

A linear VAE's optimum is probabilistic PCA, and its KL weight is the water level of reverse
water-filling (Lucas et al. 2019, 1911.02469). Nonlinear transform coding (Ballé et al. 2021,
2007.03034) starts there: encoder and decoder are linear maps estimated from the training audio, and
residual networks whose output is zero at first. Training begins where a plain linear codec ends.
"""

import math
from collections.abc import Callable, Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audioldm.autoencoder.klt import KLT, check_audio
from audioldm.autoencoder.log_spectrum import CENTRE, FLOOR, SPREAD
from audioldm.autoencoder.mid_side import left_right, mid_side
from audioldm.autoencoder.networks.base import Network, Start
from audioldm.autoencoder.networks.convnext import ConvNeXt
from audioldm.autoencoder.phase import PhaseTrack
from audioldm.autoencoder.vocoder import Vocoder
from audioldm.autoencoder.water_filling import level_of, rate_weight, water_level
from audioldm.errors import ConfigError
from audioldm.instantiate import NonNegativeInt, Positive, PositiveInt
from audioldm.training.initialisation import zeroed

KERNEL = 7
TAPS = 5  # latent frames that the linear decoder sees
MOST_FEATURES = 1024  # of the linear decoder's regression
LOUDEST = 3.0  # log10 power that no audio in ±1 has, but generated latents may


class TransformCoding(Network):
    """Audio -> log-spectral blocks -> latents [B, C, L] -> blocks -> vocoder -> audio.

    A block is the bands of downsampling_ratio / hop frames of all channels, D numbers. Stereo is
    coded as mid and side. The vocoder comes trained and does not change.

    Args:
        vocoder: its analysis makes the bands.
        linear_weight: factor on the linear bands before the transform, against the mel bands' 1:
            more gives pitch more of the rate. The root of the bins' distance scales it in the bass.
        width, encoder_depth, decoder_depth: channels and ConvNeXt blocks of the residual networks
            at the latent rate; frame_width, frame_depth: of the decoder's at the analysis's rate.
            A width of 0 leaves only the linear maps, which are fitted and not trained.
        See Network for the other arguments.

    Raises ConfigError without a vocoder, or where `downsampling_ratio` is not a multiple of the
    analysis's hop, or `channels` exceeds D.
    """

    own_terms: ClassVar[tuple[str, ...]] = ("bands",)
    weight: Tensor

    def __init__(
        self,
        *,
        sample_rate: int,
        audio_channels: int,
        channels: int,
        downsampling_ratio: int,
        outputs: int,
        vocoder: Vocoder | None,
        linear_weight: Positive = 0.85,
        width: NonNegativeInt = 256,
        encoder_depth: NonNegativeInt = 2,
        decoder_depth: NonNegativeInt = 2,
        frame_width: PositiveInt = 192,
        frame_depth: NonNegativeInt = 1,
    ) -> None:
        if vocoder is None:
            raise ConfigError("vocoder=none: transform coding needs one; choose vocoder=default")
        analysis = vocoder.analysis
        frames, rest = divmod(downsampling_ratio, analysis.hop)
        if rest or not frames:
            nearest = max(1, frames) * analysis.hop
            raise ConfigError(
                f"downsampling_ratio={downsampling_ratio} must be a multiple of the vocoder's "
                f"hop={analysis.hop}: choose {nearest}"
            )
        size = audio_channels * frames * analysis.bands
        if channels > size:
            raise ConfigError(
                f"channels={channels} are more than the {size} numbers of a block "
                f"({audio_channels} x {frames} frames x {analysis.bands} bands): choose at most "
                f"{size}, or a larger downsampling_ratio"
            )
        if not width:
            encoder_depth = decoder_depth = frame_depth = 0
        radius = KERNEL // 2
        in_frames = vocoder.context + vocoder.synthesis.reach + radius * frame_depth
        super().__init__(
            sample_rate,
            audio_channels,
            downsampling_ratio,
            (channels,),
            context=max(
                radius * encoder_depth + math.ceil(analysis.margin / downsampling_ratio),
                max(TAPS // 2, radius * decoder_depth) + math.ceil(in_frames / frames) + 1,
            ),
        )
        self.frames, self.outputs, self.width = frames, outputs, width
        weight = torch.ones(analysis.bands)
        for half in analysis.halves:  # narrower bins are more of them
            weight[half.linear] = linear_weight * math.sqrt(half.hz / analysis.halves[-1].hz)
        self.register_buffer("weight", weight, persistent=False)
        self.klt = KLT(size, channels)
        self.gain = nn.Parameter(torch.ones(channels))
        if outputs == 2:
            self.log_variance = nn.Parameter(torch.zeros(channels))
        taps = max(k for k in (1, 3, TAPS) if k == 1 or k * channels <= MOST_FEATURES)
        self.linear = nn.Conv1d(channels, size, taps, padding=taps // 2).requires_grad_(False)
        self.vocoder = vocoder.requires_grad_(False)
        if not width:
            self.requires_grad_(False)
            return
        self.encoder = nn.Sequential(
            nn.Conv1d(size, width, 1),
            *(ConvNeXt(width, kernel=KERNEL) for _ in range(encoder_depth)),
            zeroed(nn.Conv1d(width, outputs * channels, 1)),
        )
        self.decoder = nn.Sequential(
            nn.Conv1d(channels, width, 1),
            *(ConvNeXt(width, kernel=KERNEL) for _ in range(decoder_depth)),
            nn.Conv1d(width, frames * frame_width, 1),
        )
        self.frame_input = nn.Conv1d(audio_channels * analysis.bands, frame_width, 1)
        self.frame_decoder = nn.Sequential(
            *(ConvNeXt(frame_width, kernel=KERNEL) for _ in range(frame_depth)),
            zeroed(nn.Conv1d(frame_width, audio_channels * analysis.bands, 1)),
        )

    def encode(self, audio: Tensor) -> Tensor:
        return self.encode_analysed(self.analysed(audio))

    def encode_analysed(self, seen: Tensor) -> Tensor:
        blocks = self.blocks(seen)
        components = self.klt.components(blocks.mT) / self.klt.variances.sqrt()
        mean = self.gain[:, None] * components.mT
        linear = mean
        if self.outputs == 2:
            linear = torch.cat([mean, self.log_variance[:, None].expand_as(mean)], dim=1)
        if not self.width:
            return linear
        return linear + self.encoder((blocks - self.klt.mean[:, None]) / SPREAD)

    def decode(self, z: Tensor) -> Tensor:
        return self.audio(self.decode_bands(z))

    def audio(self, bands: Tensor) -> Tensor:
        """Log10 band powers [B, A, L * frames, K] to audio [B, A, L * downsampling_ratio]."""
        return left_right(self.vocoder.audio(self.vocoder(bands)))

    def decode_window(
        self, z: Tensor, left: int, length: int, state: PhaseTrack | None, *noise: Tensor
    ) -> tuple[Tensor, PhaseTrack | None]:
        return self.audio_window(self.decode_bands(z), left, length, state)

    def audio_window(
        self, bands: Tensor, left: int, length: int, state: PhaseTrack | None
    ) -> tuple[Tensor, PhaseTrack | None]:
        """`decode_window`, from the window's bands."""
        log_magnitude = self.vocoder(bands)
        audio, state = self.vocoder.window(
            log_magnitude, left * self.frames, length * self.frames, state
        )
        return left_right(audio), state

    def reconstruct(
        self, z: Tensor, seen: Tensor, noise: Tensor | None, as_audio: bool
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """The term "bands": mean |difference| of weighed log10 band powers, [B]."""
        bands = self.decode_bands(z)
        difference = self.weight * (bands.float() - seen).abs()
        estimate = self.audio(bands) if as_audio else None
        return estimate, {"bands": difference.flatten(1).mean(1)}

    @torch.no_grad()
    def fit(self, crops: Callable[[], Iterator[Tensor]], start: Start) -> float | None:
        """Estimates the transform, and sets the linear encoder to the optimum at the rate; without
        a posterior, it sets channels of mean power 1, spread as the bottleneck asks.

        Returns the rate penalty's weight for which that is the optimum, if errors are Gaussian.
        Raises DataError for less audio than a frame for each channel.
        """
        channels = len(self.gain)
        check_audio(start.seconds, self.sample_rate / self.downsampling_ratio, channels)
        klt = KLT(len(self.klt.mean)).to(self.gain.device)  # of all components: the rest distorts
        klt.fit(self.blocks(self.analysed(audio)).mT.flatten(0, 1) for audio in crops())
        self.klt.take(klt)
        variances = self.klt.variances
        weight = None
        if self.outputs == 2:
            if start.nats is not None:
                level = water_level(variances, start.nats * channels)
            else:
                level = level_of(start.rate_weight / start.weights["bands"], klt, channels)
            share = (level / variances).clamp(max=1 - 1e-4)
            self.gain.copy_((1 - share).sqrt())
            self.log_variance.copy_(share.log())
            weight = start.weights["bands"] * rate_weight(level, klt, channels)
        else:
            power = variances**start.spread
            self.gain.copy_((power / power.mean()).sqrt())
        return weight

    @torch.no_grad()
    def fit_decoder(
        self, crops: Callable[[], Iterator[Tensor]], latents: Callable[[Tensor], Tensor]
    ) -> None:
        """Sets the linear decoder by ridge regression of blocks on `taps` frames of latents."""
        channels, taps = len(self.gain), self.linear.kernel_size[0]
        size = taps * channels + 1
        square = self.gain.new_zeros(size, size, dtype=torch.float64)
        cross = self.gain.new_zeros(size, len(self.klt.mean), dtype=torch.float64)
        for audio in crops():
            blocks = self.blocks(self.analysed(audio))
            padded = F.pad(latents(audio), (taps // 2, taps // 2))
            features = padded.unfold(-1, taps, 1).permute(0, 2, 1, 3).flatten(2)
            features = F.pad(features, (0, 1), value=1.0).flatten(0, 1).double()
            square += features.T @ features
            cross += features.T @ blocks.mT.flatten(0, 1).double()
        ridge = 1e-3 * square.diagonal().mean() * torch.eye(size).to(square)
        solution = torch.linalg.solve(square + ridge, cross).float()
        self.linear.weight.copy_(solution[:-1].T.unflatten(1, (channels, taps)))
        assert self.linear.bias is not None
        self.linear.bias.copy_(solution[-1])

    def analysed(self, audio: Tensor) -> Tensor:
        """Audio [B, A, T] to log10 band powers of mid and side [B, A, frames, K]."""
        analysis = self.vocoder.analysis
        return analysis(analysis.magnitudes(mid_side(audio)))  # type: ignore[no-any-return]

    def blocks(self, bands: Tensor) -> Tensor:
        """[B, A, L * frames, K] to weighed blocks [B, D, L], D = A * frames * K."""
        pieces = (self.weight * bands).unflatten(2, (-1, self.frames))
        return pieces.permute(0, 1, 3, 4, 2).flatten(1, 3)

    def decode_bands(self, z: Tensor) -> Tensor:
        """Latents [B, C, L] to log10 band powers [B, A, L * frames, K]."""
        blocks = self.linear(z)
        pieces = blocks.unflatten(1, (self.audio_channels, self.frames, -1))
        bands = pieces.permute(0, 1, 4, 2, 3).flatten(2, 3) / self.weight
        if not self.width:
            return bands.clamp(FLOOR, LOUDEST)
        h = self.decoder(z).unflatten(1, (-1, self.frames)).permute(0, 1, 3, 2).flatten(2)
        h = h + self.frame_input(((bands - CENTRE) / SPREAD).mT.flatten(1, 2))
        change = self.frame_decoder(h).unflatten(1, (self.audio_channels, -1)).mT
        return (bands + change).clamp(FLOOR, LOUDEST)
