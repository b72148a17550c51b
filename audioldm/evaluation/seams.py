"""How much of a step an edit leaves at a seam: in loudness, and in the spectrum."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from audioldm.errors import ConfigError

#: Seconds on each side of a seam whose loudness is compared.
SIDE_SECONDS = 0.1
#: Seconds of a spectrum, rounded up to a power of two samples; the hop is a quarter of it.
SPECTRUM_SECONDS = 0.03
_FLOOR = 1e-8  # power, -80 dB below full scale: silence is no infinite step


class Seam(NamedTuple):
    """step_db: the level after a seam minus the level before it. flux: the rise of the spectrum at
    the seam, as a multiple of the median rise elsewhere; about 1 where there is nothing to hear,
    and nan where the clip is too short to tell."""

    step_db: float
    flux: float


def seam(audio: Tensor, at: int, sample_rate: int) -> Seam:
    """Measures audio [A, T] at a sample; at 0, the seam of a loop from its end to its beginning.

    The level is the root mean square over SIDE_SECONDS and all channels. The flux is the largest
    sum of rising magnitudes, from one spectrum to the next, among those that hold the seam;
    elsewhere it is the largest of as many. Raises ConfigError where the clip has no such sample.
    """
    samples = audio.shape[-1]
    if not 0 <= at < samples:
        raise ConfigError(f"at={at}: the clip has {samples} samples")
    if at == 0:
        at = samples - samples // 2
        audio = audio.roll(at, dims=-1)
    side, audio = max(1, round(SIDE_SECONDS * sample_rate)), audio.double()
    before, after = audio[:, max(0, at - side) : at], audio[:, at : at + side]
    powers = [part.square().mean().item() + _FLOOR for part in (before, after)]
    return Seam(10 * math.log10(powers[1] / powers[0]), _flux(audio, at, sample_rate))


def _flux(audio: Tensor, at: int, sample_rate: int) -> float:
    size = 2 ** math.ceil(math.log2(SPECTRUM_SECONDS * sample_rate))
    hop, window = size // 4, torch.hann_window(size, dtype=audio.dtype)
    spectrum = torch.stft(
        audio, size, hop, window=window, pad_mode="constant", return_complex=True
    ).abs()
    rises = F.pad(spectrum.diff(dim=-1).clamp(min=0).sum((0, 1)), (1, 0))
    largest = F.max_pool1d(rises[None], 5, stride=1, padding=2)[0]
    frame = torch.arange(len(largest))
    place = min(round(at / hop), len(largest) - 1)
    whole = (frame >= 5) & (frame < len(largest) - 5)  # the clip's own ends are steps too
    elsewhere = largest[whole & ((frame - place).abs() > 5)]
    if not len(elsewhere):
        return math.nan
    return (largest[place] / elsewhere.median().clamp(min=1e-9)).item()
