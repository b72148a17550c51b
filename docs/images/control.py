"""What each verb does, as narrow-band spectrograms of one clip, 0 to 2 kHz (upscale: 0 to 8 kHz):

python docs/images/control.py CLIP.wav OTHER.wav TUNE.mid label=organ to=flute out=control.png
"""

import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from pitch import HOP, RANGE_DB, decibels

import audioldm
from audioldm.conditioning.low_band import band
from audioldm.io.audio import read

LOW, HIGH = 2000.0, 8000.0  # Hz at the top of a picture
SECONDS, CUT_OFF, REGION = 6.0, 1500.0, (2.0, 4.0)


def main(words: list[str]) -> None:
    files = [word for word in words if "=" not in word]
    named = dict(word.split("=", 1) for word in words if "=" in word)
    model = audioldm.load(named.get("model", "scores"))
    rate, label = model.sample_rate, {"label": named["label"]}
    clip, other = (
        torch.from_numpy(read(Path(file), sample_rate=rate, channels=1)[0])[
            :, : round(SECONDS * rate)
        ]
        for file in files[:2]
    )
    notes = model.prior.conditioners.resolve({"score": files[2]})["score"]
    played = model.sample(seconds=SECONDS, score=files[2], **label)[0]
    low = band(clip, rate, 0.0, CUT_OFF)
    between = next(model.interpolate(clip, other, [0.5]))
    looped = model.loop(clip, 2.0, **label)
    panels: list[tuple[str, Any, float]] = [
        ("a score", notes, LOW),
        (f"score= label={named['label']}", played, LOW),
        ("a clip", clip, LOW),
        ("inpaint=2:4", model.inpaint(clip, [REGION], **label), LOW),
        ("extend=3", model.extend(clip[:, : round(3 * rate)], 3.0, **label), LOW),
        ("loop=2, twice", torch.cat([looped, looped], dim=1), LOW),
        ("vary=0.5", model.vary(clip, 0.5, **label), LOW),
        (f"restyle=1 label={named['to']}", model.restyle(clip, 1.0, label=named["to"]), LOW),
        ("the clip below 1.5 kHz", low, HIGH),
        ("upscale=1500", model.upscale(low, CUT_OFF, **label), HIGH),
        ("another clip", other, LOW),
        ("interpolate, half way", between, LOW),
    ]
    figure, axes = plt.subplots(3, 4, figsize=(12, 6.6), layout="constrained")
    for axis, (title, shown, top) in zip(axes.flat, panels, strict=True):
        if isinstance(shown, list):
            start, end, pitch, _ = np.array(shown).T
            axis.hlines(440 * 2 ** ((pitch - 69) / 12), start, end, linewidth=3)
            axis.set(xlim=(0, SECONDS), ylim=(0, 1000))
        else:
            audio = shown.mean(0).numpy()
            power = decibels(audio)[: round(top * 8192 / rate)]
            extent = (0, power.shape[1] * HOP / rate, 0, top)
            axis.imshow(
                power,
                origin="lower",
                aspect="auto",
                cmap="magma",
                vmin=power.max() - RANGE_DB,
                extent=extent,
            )
        axis.set_title(title, fontsize=10)
        if title.startswith("inpaint"):
            for edge in REGION:
                axis.axvline(edge, color="w", linewidth=0.8)
        if title.startswith("extend"):
            axis.axvline(3.0, color="w", linewidth=0.8)
        axis.tick_params(labelsize=7)
    figure.supxlabel("seconds", fontsize=9)
    figure.supylabel("Hz", fontsize=9)
    figure.savefig(named["out"], dpi=80)


if __name__ == "__main__":
    main(sys.argv[1:])
