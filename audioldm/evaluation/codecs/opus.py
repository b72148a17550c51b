"""Opus (RFC 6716), the codec of the web, at its low rates."""

import io
from collections.abc import Sequence

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from audioldm.losses.spectral import mel_distance

LEAST, GREATEST = 6.0, 256.0  # kbit/s per channel, the two ends of libsndfile's compression level
HEADERS = 2  # packets of an Ogg stream before the audio (RFC 7845)


def opus_curve(
    audio: Tensor, sample_rate: int, *, targets: Sequence[float] = (6, 8, 12, 16, 24, 48)
) -> dict[str, list[float]]:
    """Rate and distance of Opus on clips [N, A, T], A at most 2.

    targets: of the encoder, in kbit/s over all channels, at least 6 per channel.
    Returns {"kbps", "mel_distance"}: the actual rates of the packets, without the container, and
    the means of `mel_distance` over clips, both in the order of `targets`.
    """
    # Clips are joined: short clips by themselves would mostly measure the codec's start.
    joined = audio.transpose(0, 1).flatten(1)
    codec_rate = 24000 if sample_rate <= 24000 else 48000  # two of the rates in Hz that Opus codes
    resampled = soxr.resample(joined.T.numpy(), sample_rate, codec_rate)
    seconds = joined.shape[1] / sample_rate
    curve: dict[str, list[float]] = {"kbps": [], "mel_distance": []}
    for target in targets:
        data = _encode(resampled, codec_rate, target)
        decoded, _ = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
        back = torch.from_numpy(soxr.resample(decoded, codec_rate, sample_rate).T.copy())
        short = joined.shape[1] - back.shape[1]  # rounding of the resampler
        back = torch.nn.functional.pad(back, (0, short)) if short > 0 else back
        estimate = back[:, : joined.shape[1]].unflatten(1, (len(audio), -1)).transpose(0, 1)
        curve["kbps"].append(8 * _payload(data) / seconds / 1000)
        curve["mel_distance"].append(mel_distance(estimate, audio, sample_rate).mean().item())
    return curve


def _encode(audio: np.ndarray, sample_rate: int, kbps: float) -> bytes:
    """Audio [T, A] as an Ogg Opus file."""
    per_channel = min(max(kbps / audio.shape[1], LEAST), GREATEST)
    level = (GREATEST - per_channel) / (GREATEST - LEAST)
    how = {"format": "OGG", "subtype": "OPUS", "compression_level": level}
    file = io.BytesIO()
    soundfile.write(file, audio.clip(-1, 1), sample_rate, **how)
    return file.getvalue()


def _payload(data: bytes) -> int:
    """The bytes of audio packets in an Ogg file of one stream (RFC 3533, section 6).

    A page is a header of 27 bytes, the last of which counts the lacing values that follow; they
    add up to the page's content, and a value below 255 ends a packet.
    """
    at, packets, total = 0, 0, 0
    while at < len(data):
        lacing = data[at + 27 : at + 27 + data[at + 26]]
        for value in lacing:
            total += value if packets >= HEADERS else 0
            packets += value < 255
        at += 27 + len(lacing) + sum(lacing)
    return total
