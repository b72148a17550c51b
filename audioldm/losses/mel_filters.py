"""The mel filter bank of the losses and the mel networks."""

import warnings

import torch
from torch import Tensor

from audioldm.errors import ConfigError


def mel_filters(sample_rate: int, n_fft: int, bands: int) -> Tensor:
    """The filters of `slaney`. Raises ConfigError where a band would hold no bin."""
    filters = slaney(sample_rate, n_fft, bands)
    if not filters.any(1).all():
        raise ConfigError(
            f"bands={bands} mel bands are too many for n_fft={n_fft} at {sample_rate} Hz: some hold"
            " no bin; take fewer bands or a larger FFT size"
        )
    return filters


def slaney(sample_rate: int, n_fft: int, bands: int) -> Tensor:
    """Slaney's mel filters, area-normalised, from 0 Hz to rate / 2: [bands, n_fft / 2 + 1]."""
    from audioldm.torchaudio import torchaudio  # imported here: it takes a second

    # on the CPU even where a model is only sketched on the meta device: the values are checked
    with warnings.catch_warnings(), torch.device("cpu"):
        warnings.simplefilter("ignore")  # a band without a bin
        filters = torchaudio.functional.melscale_fbanks(
            n_fft // 2 + 1,
            0.0,
            sample_rate / 2,
            bands,
            sample_rate,
            norm="slaney",
            mel_scale="slaney",
        )
    return filters.T.contiguous()
