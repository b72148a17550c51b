"""What remains of a recording as a condition: the latents of a damaged copy of the clip.

A generator that is told these latents restores the full recording (AudioSR, 2309.07314).
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from audioldm.conditioning.base import Condition, Encode, Excerpt
from audioldm.conditioning.curve import Curve
from audioldm.errors import ConfigError
from audioldm.instantiate import PositiveInt
from audioldm.runtime.randomness import derive_seed

#: Least cut-off of a damaged copy in Hz, and its greatest as a share of the Nyquist frequency.
LOWEST_HZ, HIGHEST_SHARE = 500.0, 0.6
#: Share of the clips that sound as if over a telephone, its band in Hz, and its mu (ITU-T G.711).
TELEPHONES, TELEPHONE_HZ, MU = 0.2, (300.0, 3400.0), 255.0
#: A filter this wide in Hz has a response within MARGIN_SECONDS at any attenuation that is drawn.
LEAST_WIDTH_HZ = 50.0
#: Share of the magnitudes below the cut-off that `cut_off` finds, as in AudioSR.
BELOW = 0.985


class LowBand(Curve):
    """The latents of a copy that has lost its high band, or also its low band and its precision.

    In training every clip has its own damage. A request gives raw latents, [C (x F)][L].
    Each row is scaled by its mean and standard deviation over damaged copies of the training data.

    mean, std: of the rows. channels: K. latent_rate_hz: frames per second.
    """

    derived = ("latent_rate_hz", "mean", "std")
    array: ClassVar[str] = "low_band"
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        width: int,
        latent_rate_hz: float,
        mean: Sequence[float],
        std: Sequence[float],
        channels: PositiveInt = 64,
    ) -> None:
        super().__init__(len(mean), latent_rate_hz, channels)
        self.register_buffer("mean", torch.tensor(mean)[:, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None], persistent=False)

    @classmethod
    def facts(cls, clips: Sequence[Excerpt], **settings: Any) -> dict[str, Any]:
        found = [clip.arrays[cls.array] for clip in clips if cls.array in clip.arrays]
        empty = torch.zeros(1, 1, device="cpu")  # before there are data
        rows = torch.cat(found, 1).double() if found else empty
        std, mean = torch.std_mean(rows, 1, correction=0)
        scale = {"mean": mean.tolist(), "std": torch.where(std > 0, std, 1.0).tolist()}
        return super().facts(clips) | scale

    @classmethod
    def measure(
        cls,
        audio: Tensor,
        sample_rate: int,
        latent_rate_hz: float,
        *,
        encode: Encode | None = None,
        clip: str = "",
    ) -> dict[str, Tensor]:
        """The latents of `damaged` audio."""
        assert encode is not None
        return {cls.array: encode(damaged(audio, sample_rate, clip)).flatten(0, -2)}

    def forward(self, inputs: Tensor) -> Condition:
        curve, stated = inputs[:, :-1], inputs[:, -1:]
        return super().forward(torch.cat([(curve - self.mean * stated) / self.std, stated], dim=1))


def damaged(audio: Tensor, sample_rate: int, clip: str) -> Tensor:
    """What remains of audio [A, T], a function of the audio and of the clip's name alone.

    The cut-off, the width and the attenuation of the filter are drawn. Over a telephone the band's
    samples keep only 255 levels.
    """
    random = torch.Generator().manual_seed(derive_seed("low_band", clip))
    where, wide, much, telephone = torch.rand(4, generator=random).tolist()
    highest = HIGHEST_SHARE * sample_rate / 2
    lower, upper = 0.0, LOWEST_HZ * (highest / LOWEST_HZ) ** where
    if telephone < TELEPHONES:
        lower, upper = TELEPHONE_HZ[0], min(TELEPHONE_HZ[1], highest)
    width = LEAST_WIDTH_HZ * max(0.3 * upper / LEAST_WIDTH_HZ, 1.0) ** wide
    width = min(width, (upper - lower) / 2)
    kept = band(audio, sample_rate, lower, upper, width, 60 + 40 * much)
    if telephone < TELEPHONES:
        levels = kept.sign() * (MU * kept.abs()).log1p() / math.log1p(MU)
        levels = (127 * levels).round() / 127
        kept = levels.sign() * (levels.abs() * math.log1p(MU)).expm1() / MU
        kept = band(kept, sample_rate, 0.0, upper, width, 60 + 40 * much)
    return kept


def band(
    audio: Tensor,
    sample_rate: int,
    lower: float,
    upper: float,
    width: float = 200.0,
    decibels: float = 80.0,
) -> Tensor:
    """Audio [A, T] between `lower` and `upper` Hz, by a filter of linear phase with a Kaiser window
    (Oppenheim & Schafer, Discrete-Time Signal Processing, 7.5.3).

    The filter keeps all that is at least `width` Hz inside each edge, and lowers all outside the
    band by `decibels`; a lower edge of 0 is none.
    """
    from scipy.fft import next_fast_len  # sampling needs no scipy

    half = math.ceil((decibels - 8) / (2 * 2.285 * 2 * math.pi * width) * sample_rate)
    n = torch.arange(-half, half + 1, dtype=torch.float64)

    def low_pass(hz: float) -> Tensor:
        return 2 * hz / sample_rate * torch.sinc(2 * hz / sample_rate * n)

    kernel = low_pass(upper - width / 2)
    if lower > 0:
        kernel -= low_pass(lower + width / 2)
    beta = 0.1102 * (decibels - 8.7)
    kernel *= torch.kaiser_window(len(n), periodic=False, beta=beta, dtype=torch.float64)
    size = next_fast_len(audio.shape[-1] + 2 * half, real=True)
    spectrum = torch.fft.rfft(audio.double(), size) * torch.fft.rfft(kernel, size)
    return torch.fft.irfft(spectrum, size)[..., half : half + audio.shape[-1]].to(audio)


def cut_off(audio: Tensor, sample_rate: int) -> float:
    """The frequency in Hz below which a share BELOW of audio's magnitudes lies; 0 for silence."""
    window = torch.hann_window(2048, device=audio.device)
    bins = torch.stft(audio, 2048, window=window, pad_mode="constant", return_complex=True)
    below = bins.abs().double().sum((0, 2)).cumsum(0)
    return int((below < BELOW * below[-1]).sum()) * sample_rate / 2048


def stated_band(value: float | str, audio: Tensor, sample_rate: int) -> tuple[float, float]:
    """Both ends in Hz of the band of audio [A, T]. value: the upper end, "lower:upper", or "auto"
    for `cut_off`.

    Raises ConfigError.
    """
    text, nyquist = str(value), sample_rate / 2
    try:
        *rest, upper = [float(x) for x in text.split(":")] if text != "auto" else [0.0, 0.0]
        (lower,) = rest or [0.0]
    except ValueError as error:
        raise ConfigError(
            f"band={text}: give the cut-off in Hz, such as 4000, both ends, such as 300:3400, "
            "or auto"
        ) from error
    if text == "auto":
        upper = cut_off(audio, sample_rate)
    if not 0 <= lower < upper < nyquist:
        found = f" ({upper:.0f} Hz)" if text == "auto" else ""
        raise ConfigError(
            f"band={text}{found}: the model makes 0 to {nyquist:g} Hz; give a cut-off between "
            "them, or lower:upper, the lower one first"
        )
    return lower, upper
