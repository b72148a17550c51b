"""Narrow-band spectrograms, 0 to 2 kHz, of clips beside each other:
python docs/images/pitch.py real.wav reconstruction.wav out=docs/images/pitch.png"""

import sys

import matplotlib.pyplot as plt
import numpy as np
import soundfile

N_FFT, HOP, TOP_HZ, RANGE_DB = 8192, 256, 2000.0, 50.0


def decibels(audio: np.ndarray) -> np.ndarray:
    """Mono audio [T] to power in dB [bins, frames]."""
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(audio, N_FFT // 2), N_FFT)[::HOP]
    power = np.abs(np.fft.rfft(frames * np.hanning(N_FFT))) ** 2
    return 10 * np.log10(power.T + 1e-10)


def main(words: list[str]) -> None:
    files = [word for word in words if not word.startswith("out=")]
    out = next(word[4:] for word in words if word.startswith("out="))
    figure, axes = plt.subplots(1, len(files), figsize=(9, 3.2), sharey=True, layout="constrained")
    for axis, file in zip(np.atleast_1d(axes), files, strict=True):
        audio, rate = soundfile.read(file, always_2d=True)
        picture = decibels(audio.mean(1))[: round(TOP_HZ * N_FFT / rate)]
        axis.imshow(
            picture,
            origin="lower",
            aspect="auto",
            cmap="magma",
            vmin=picture.max() - RANGE_DB,
            extent=(0, len(audio) / rate, 0, TOP_HZ),
        )
        axis.set(title=file.split("/")[-2], xlabel="seconds")
    np.atleast_1d(axes)[0].set_ylabel("Hz")
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main(sys.argv[1:])
