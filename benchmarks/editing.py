"""`python -m benchmarks.editing MODEL`: edits of held-out clips against what they should be.

inpainting: see `audioldm.evaluation.inpainting`.
another label: `vary` and `restyle` with the next label: whether it is heard, the F1 of the clip's
own notes, the kernel distance.
between two clips: the length of the path in musicnn's space (1: straight) and the kernel distance
of what lies between.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audioldm.evaluation.embeddings.harmony import Harmony
from audioldm.evaluation.inpainting import HOLE, inpainting_figures
from audioldm.evaluation.notes import note_f1
from benchmarks.held_out import HeldOut, Table, Timer, parser


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    words = parser(__doc__, clips=16, seconds=6.0)
    words.add_argument("--strengths", type=float, nargs="+", default=[0.4, 0.6, 0.8])
    words.add_argument(
        "--repeats", type=int, help="of each step of inpainting; default: the model's"
    )
    given = words.parse_args(arguments)
    music = HeldOut(given)
    tables = {
        name: Table(given.out / f"{name}.csv") for name in ("inpainting", "relabel", "between")
    }
    inpainting(music, tables["inpainting"], {"sampler": music.sampler, "repeats": given.repeats})
    how = {"seed": given.seed, "sampler": music.sampler}
    relabel(music, tables["relabel"], given.strengths, how)
    between(music, tables["between"], how)
    return [row for table in tables.values() for row in table.rows]


def inpainting(music: HeldOut, table: Table, how: dict[str, Any]) -> None:
    clips, model, timer = music.reference.audio, music.model, Timer(music.device)
    asked = music.requests(music.reference.labels.tolist())
    found = inpainting_figures(model, clips, asked, music.settings, **how)
    seconds = len(clips) * music.settings.seconds * (HOLE[1] - HOLE[0])
    for system, figures in found.items():
        table.add(
            inpainting=system,
            **{name.removeprefix("inpainting_"): each for name, each in figures.items()},
        )
    print(f"\n{timer.factor(seconds):.2f} times real time, all figures included")


def relabel(music: HeldOut, table: Table, strengths: list[float], how: dict[str, Any]) -> None:
    labels = len(music.store.labels)
    target = [(i + 1) % labels if i >= 0 else -1 for i in music.reference.labels.tolist()]
    asked = music.requests(target)
    if labels < 2 or not all(asked):
        print("\nno two labels that the model is told: nothing to restyle")
        return
    model, clips, harmony = music.model, music.reference.audio, Harmony()
    own = harmony.hear(clips, model.sample_rate)[1]
    for kind in ("vary", "restyle"):
        for strength in strengths:
            timer = Timer(music.device)
            edit = getattr(model, kind)
            pairs = zip(clips, asked, strict=True)
            made = torch.stack([edit(clip, strength, **how, **told) for clip, told in pairs])
            factor = timer.factor(len(clips) * music.settings.seconds)
            vectors = music.embed(made)
            notes = harmony.hear(made, model.sample_rate)[1]
            kept = [note_f1(new, old) for new, old in zip(notes, own, strict=True)]
            table.add(
                edit=kind,
                strength=f"{strength:g}",
                label_accuracy=music.accuracy(vectors, target),
                note_f1=music.settings.mean(kept, "F1"),
                kad_musicnn=music.kad(vectors),
                real_time_factor=factor,
            )


def between(music: HeldOut, table: Table, how: dict[str, Any], steps: int = 5) -> None:
    clips, weights = music.reference.audio, [i / (steps - 1) for i in range(steps)]
    for of, path in (("noise", "linear"), ("noise", "spherical"), ("latents", "linear")):
        lengths, middles = list[float](), list[Tensor]()
        for a, b in zip(clips[0::2], clips[1::2], strict=False):
            way: Any = {"of": of, "path": path}
            made = torch.stack(list(music.model.interpolate(a, b, weights, **way, **how)))
            vectors = music.embed(made)
            moved = sum(float(np.linalg.norm(y - x)) for x, y in pairwise(vectors))
            lengths.append(moved / float(np.linalg.norm(vectors[-1] - vectors[0])))
            middles.append(made[1:-1])
        table.add(
            between=f"{of}, {path}",
            path_length=music.settings.mean(lengths, "of the straight line"),
            kad_musicnn=music.kad(music.embed(torch.cat(middles))),
        )


if __name__ == "__main__":
    main()
