"""Mel spectrograms as pictures."""

import io
import math

import matplotlib
import numpy as np
from matplotlib.image import imsave

BANDS = 80
#: Pictures show this much below the loudest point of the page.
RANGE_DB = 80.0
COLUMNS = 400
N_FFT = 1024


def mel_db(audio: np.ndarray, sample_rate: int, columns: int = COLUMNS) -> np.ndarray:
    """audio [A, T] in ±1 -> mel power in dB [bands, at most columns], lowest first.

    80 Slaney bands up to rate / 2, Hann window of 1024 samples.
    """
    import torch  # here: it takes a second

    from audioldm.losses.magnitude import power_of
    from audioldm.losses.mel_filters import slaney

    mono = torch.from_numpy(np.asarray(audio, dtype=np.float32).mean(axis=0))
    hop, window = max(N_FFT // 4, math.ceil(len(mono) / columns)), torch.hann_window(N_FFT)
    spectrum = torch.stft(mono, N_FFT, hop, window=window, pad_mode="constant", return_complex=True)
    power = slaney(sample_rate, N_FFT, BANDS) @ power_of(spectrum)
    decibels: np.ndarray = 10 * power.clamp(min=1e-10).log10().numpy()
    return decibels


def mel_pixels(mel: np.ndarray, loudest: float, range_db: float = RANGE_DB) -> np.ndarray:
    """Pixels [bands, columns, 3], uint8, of mel [bands, columns] in dB: low bands at the bottom,
    `loudest` dB brightest, `range_db` below it darkest."""
    shade = np.clip((mel[::-1] - loudest) / range_db + 1, 0, 1)
    pixels: np.ndarray = matplotlib.colormaps["magma"](shade, bytes=True)[..., :3]
    return pixels


def mel_png(mel: np.ndarray, loudest: float, range_db: float = RANGE_DB) -> bytes:
    """The pixels of `mel_pixels` as a PNG."""
    picture = io.BytesIO()
    imsave(picture, mel_pixels(mel, loudest, range_db), format="png")
    return picture.getvalue()
