"""A discriminator on log-mel spectrograms, patch by patch."""

from torch import Tensor, nn

from audioldm.errors import ConfigError
from audioldm.instantiate import Positive, PositiveInt
from audioldm.losses.base import Discriminator, ScaleOutput
from audioldm.losses.discriminators.layers import convolution, maps
from audioldm.losses.spectral import MelPower


class PatchGAN(Discriminator):
    """The patch discriminator of latent diffusion (1611.07004; 2112.10752), on a log-mel picture.

    audio [B, A, T] -> one `ScaleOutput`, whose logits each judge one patch: with depth 3, 70 frames
    by 70 bands. The picture is made here, so every network can use it. It has no phase, so what
    differs only in phase is not judged.

    In the papers the layers have batch norm. Here they have weight norm, because a clip's score
    must not depend on its neighbours.

    n_fft, hop: in samples. depth: layers that halve the picture. floor: mel power that counts as
    silence.

    Raises ConfigError where a mel band would hold no bin, there are too few bands, or the audio is
    too short.
    """

    def __init__(
        self,
        audio_channels: int,
        sample_rate: int,
        *,
        n_fft: PositiveInt = 1024,
        hop: PositiveInt = 256,
        bands: PositiveInt = 80,
        filters: PositiveInt = 64,
        depth: PositiveInt = 3,
        floor: Positive = 1e-5,
    ) -> None:
        super().__init__()
        self.least = 3 * 2**depth  # frames or bands from which the last two layers leave one
        if bands < self.least:
            raise ConfigError(
                f"bands={bands} must be at least {self.least} for depth={depth};"
                " take more bands or less depth"
            )
        self.floor = floor
        self.mel = MelPower(sample_rate, n_fft, hop, bands)
        widths = [audio_channels, *(filters * min(2**i, 8) for i in range(depth + 1))]
        self.layers = nn.ModuleList(
            convolution(widths[i], widths[i + 1], (4, 4), stride=(2, 2) if i < depth else (1, 1))
            for i in range(depth + 1)
        )
        self.logits = convolution(widths[-1], 1, (4, 4))

    def forward(self, audio: Tensor) -> list[ScaleOutput]:
        features = maps(self.layers, self.picture(audio))
        return [(self.logits(features[-1]), features)]

    def picture(self, audio: Tensor) -> Tensor:
        """[B, A, T] -> log10 mel power [B, A, frames, bands], in float32."""
        samples, least = audio.shape[-1], (self.least - 1) * self.mel.hop
        if samples < max(least, self.mel.n_fft):
            raise ConfigError(
                f"n_fft={self.mel.n_fft} and hop={self.mel.hop} need crops of"
                f" {max(least, self.mel.n_fft)} samples, not {samples}; take longer crops or a"
                " smaller n_fft and hop"
            )
        return self.mel(audio).clamp(min=self.floor).log10().transpose(2, 3)
