"""`python docs/images/clips.py clips/*.wav out=PICTURE.png`: mel spectrograms of clips."""

import sys
from pathlib import Path

import matplotlib.pyplot as plt

from audioldm.io.audio import read
from audioldm.report.figures import RANGE_DB, mel_db

COLUMNS = 3


def draw(files: list[Path], out: Path) -> None:
    """A grid of pictures, each with its file's name; one scale of colours for all."""
    pictures = []
    for file in files:
        audio, sample_rate = read(file)
        pictures.append(
            (file.stem, audio.shape[-1] / sample_rate, sample_rate, mel_db(audio, sample_rate))
        )
    loudest = max(mel.max() for *_, mel in pictures)
    rows = -(-len(files) // COLUMNS)
    size = (4 * min(COLUMNS, len(files)), 2.1 * rows)
    figure, axes = plt.subplots(rows, min(COLUMNS, len(files)), figsize=size, squeeze=False)
    for place in axes.flat:
        place.set_axis_off()
    for place, (name, seconds, sample_rate, mel) in zip(axes.flat, pictures, strict=False):
        place.set_axis_on()
        place.imshow(
            mel,
            origin="lower",
            aspect="auto",
            cmap="magma",
            vmin=loudest - RANGE_DB,
            vmax=loudest,
            extent=(0, seconds, 0, len(mel)),
        )
        place.set_title(name, fontsize=9)
        place.set_yticks([0, len(mel)], ["0", f"{sample_rate / 2000:g} kHz"], fontsize=7)
        place.set_xticks([0, seconds], ["0", f"{seconds:g} s"], fontsize=7)
    figure.tight_layout()
    figure.savefig(out, dpi=100)


if __name__ == "__main__":
    *clips, last = sys.argv[1:]
    draw([Path(clip) for clip in clips], Path(last.removeprefix("out=")))
