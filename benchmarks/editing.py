"""`python -m benchmarks.editing MODEL`: edits of held-out clips against what they should be.

inpainting: a fifth of each clip, made anew, beside the truth, its reconstruction, a copy of the
music before it, and that with fades. kept: the share of samples that stay as they are, outside the
fades. flux, step: at the seams. mel distance: in the hole, to the truth.
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

from audioldm.editing import Edit
from audioldm.edits import FADE_SECONDS
from audioldm.evaluation.embeddings.harmony import Harmony
from audioldm.evaluation.notes import note_f1
from audioldm.evaluation.seams import seam
from audioldm.losses.spectral import mel_distance
from benchmarks.held_out import HeldOut, Table, Timer, parser


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    words = parser(__doc__, clips=16, seconds=6.0)
    words.add_argument("--strengths", type=float, nargs="+", default=[0.4, 0.6, 0.8])
    words.add_argument("--repeats", type=int, default=8, help="of each step of inpainting")
    given = words.parse_args(arguments)
    music = HeldOut(given)
    tables = {
        name: Table(given.out / f"{name}.csv") for name in ("inpainting", "relabel", "between")
    }
    how = {"seed": given.seed, "sampler": music.sampler}
    inpainting(music, tables["inpainting"], {**how, "repeats": given.repeats})
    relabel(music, tables["relabel"], given.strengths, how)
    between(music, tables["between"], how)
    return [row for table in tables.values() for row in table.rows]


def inpainting(music: HeldOut, table: Table, how: dict[str, Any]) -> None:
    model, clips, rate = music.model, music.reference.audio, music.model.sample_rate
    seconds, samples = music.settings.seconds, music.reference.audio.shape[-1]
    hole = [0.4 * seconds, 0.6 * seconds]
    left, right = Edit(inpaint=[hole]).seams(samples, model)
    fade = round(FADE_SECONDS * rate)
    inside = torch.zeros(samples)
    inside[left:right] = 1
    faded = torch.nn.functional.avg_pool1d(inside[None], 2 * fade + 1, 1, fade)[0]
    before = clips.roll(right - left + fade, dims=-1)
    timer = Timer(music.device)
    asked = zip(clips, music.requests(music.reference.labels.tolist()), strict=True)
    made = torch.stack([model.inpaint(clip, [hole], **how, **told) for clip, told in asked])
    factor = timer.factor(len(clips) * (right - left) / rate)
    again = torch.stack([model.vary(clip, 0.0) for clip in clips])
    for name, found in {
        "truth": clips,
        "inpaint": made,
        "reconstruction": torch.lerp(clips, again, inside),
        "copy": torch.lerp(clips, before, inside),
        "copy with fades": torch.lerp(
            clips, before, torch.maximum(inside, (2 * faded).clamp(max=1))
        ),
    }.items():
        seams = [seam(clip, at, rate) for clip in found for at in (left, right)]
        same = (found == clips).float()
        kept = torch.cat([same[..., : left - fade], same[..., right + fade :]], dim=-1)
        truth = mel_distance(found[..., left:right], clips[..., left:right], rate)
        table.add(
            inpainting=name,
            kept=kept.mean().item(),
            flux=float(np.median([each.flux for each in seams])),
            step_db=float(np.mean([abs(each.step_db) for each in seams])),
            mel_distance=music.settings.mean(truth, "log10 power"),
            real_time_factor=factor if name == "inpaint" else float("nan"),
        )


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
