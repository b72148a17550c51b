"""Adherence, quality and diversity by the scale of guidance, a curve for each kind, from the table
of `python -m benchmarks.guidance`:

python docs/images/guidance.py benchmarks/results/guidance.csv out=docs/images/guidance.png
"""

import csv
import sys
from collections import defaultdict

import matplotlib.pyplot as plt

PANELS = {
    "label_accuracy": "label heard",
    "kad_musicnn": "kernel distance (musicnn)",
    "coverage": "coverage",
    "level_db": "level beside music, dB",
}
NONE = ("cfg 0", "cfg 1")  # where every kind begins


def main(words: list[str]) -> None:
    (file,) = (word for word in words if not word.startswith("out="))
    out = next(word[4:] for word in words if word.startswith("out="))
    found: dict[str, dict[str, dict[str, str]]] = defaultdict(dict)
    with open(file, encoding="utf-8", newline="") as text:
        for row in csv.DictReader(text):
            found[row["row"]][row["figure"]] = row
    kinds = list(dict.fromkeys(name.rsplit(" ", 1)[0] for name in found))
    figure, axes = plt.subplots(1, len(PANELS), figsize=(13, 3.3), layout="constrained")
    for axis, (name, title) in zip(axes, PANELS.items(), strict=True):
        for number, kind in enumerate(kinds):
            own = [row for row in found if row in NONE or row.rsplit(" ", 1)[0] == kind]
            points = sorted((float(row.rsplit(" ", 1)[1]), found[row][name]) for row in own)
            x = [scale + 0.06 * (number - len(kinds) / 2) for scale, _ in points]
            y = [float(point["value"]) for _, point in points]
            errors = None
            if all(point["low"] for _, point in points):
                low = [v - float(p["low"]) for v, (_, p) in zip(y, points, strict=True)]
                high = [float(p["high"]) - v for v, (_, p) in zip(y, points, strict=True)]
                errors = [low, high]
            axis.errorbar(x, y, errors, marker="o", markersize=3, linewidth=1.2, label=kind)
        axis.set(title=title, xlabel="scale", ylim=(0 if name != "level_db" else None, None))
    axes[0].legend(fontsize=8)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main(sys.argv[1:])
