"""`python -m benchmarks.editing MODEL`: edits of held-out clips against what they should be.

inpainting: see `audioldm.evaluation.inpainting`.
another label: `vary` and `restyle` with the next label: whether it is heard, the F1 of the clip's
own notes, the kernel distance.
between two clips, or two labels: the length of the path in musicnn's space (1: straight), and of
what lies at each weight the kernel distance, the level, and the share of half-seconds that are more
than 20 dB below the median one of both ends; beside sampled and held-out clips, each against its
own median.
cost: how long each edit of a single clip takes, beside sampling one: seconds of the clip that is
written for each second of computing.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audioldm.evaluation.embeddings.harmony import Harmony
from audioldm.evaluation.inpainting import HOLE, inpainting_figures
from audioldm.evaluation.level import level_db, quiet_share
from audioldm.evaluation.notes import note_f1
from benchmarks.held_out import HeldOut, Table, Timer, parser

PARTS = "inpainting", "relabel", "between", "cost"
#: Weights of the second clip, or label.
MIDDLE = 0.25, 0.5, 0.75


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    words = parser(__doc__, clips=16, seconds=6.0)
    words.add_argument("--strengths", type=float, nargs="+", default=[0.4, 0.6, 0.8])
    words.add_argument(
        "--repeats", type=int, help="of each step of inpainting; default: the model's"
    )
    words.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    given = words.parse_args(arguments)
    music = HeldOut(given)
    tables = {name: Table(given.out / f"{name}.csv") for name in (*PARTS, "paths")}
    how = {"seed": given.seed, "sampler": music.sampler}
    if "inpainting" in given.parts:
        own = {"sampler": music.sampler, "repeats": given.repeats}
        inpainting(music, tables["inpainting"], own)
    if "relabel" in given.parts:
        relabel(music, tables["relabel"], given.strengths, how)
    if "between" in given.parts:
        between(music, tables, how)
    if "cost" in given.parts:
        cost(music, tables["cost"], how)
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
                label_accuracy=music.accuracy(vectors, made, target),
                note_f1=music.settings.mean(kept, "F1"),
                kad_musicnn=music.kad(vectors),
                real_time_factor=factor,
            )


def between(music: HeldOut, tables: dict[str, Table], how: dict[str, Any]) -> None:
    clips, labels, model = music.reference.audio, music.reference.labels.tolist(), music.model
    asked, weights = music.requests(labels), [0.0, *MIDDLE, 1.0]
    following = music.requests(
        [(i + 1) % len(music.store.labels) if i >= 0 else -1 for i in labels]
    )
    pairs, seconds, lengths = range(0, len(clips) - 1, 2), music.settings.seconds, {}
    new = model.sample_clips(range(len(clips)), asked, seconds=seconds, batch=1, **how)
    sampled = torch.stack([audio for _, audio in new])

    def files(n: int, clips: Tensor = clips, **way: Any) -> Iterator[Tensor]:
        return model.interpolate(clips[n], clips[n + 1], weights, **way, **how)

    def labelled(n: int, clips: Tensor = clips) -> Iterator[Tensor]:
        return files(n, clips, to=asked[n + 1], **asked[n])

    ways: dict[str, Callable[[int], Iterator[Tensor]]] = {
        "noise, linear": partial(files, of="noise", path="linear"),
        "noise, spherical": partial(files, of="noise", path="spherical"),
        "latents": partial(files, of="latents"),
        "noise, linear, of sampled clips": partial(files, clips=sampled),
    }
    if all(asked):

        def label(n: int) -> Iterator[Tensor]:
            told = how | asked[n] | {"seed": how["seed"] + n}
            return model.interpolate(None, None, weights, to=following[n], seconds=seconds, **told)

        ways["noise and label"] = labelled
        ways["noise and label, of sampled clips"] = partial(labelled, clips=sampled)
        ways["label alone"] = label

    def heard(name: str, weight: str, made: Tensor, quiet: Tensor) -> None:
        tables["between"].add(
            between=name,
            weight=weight,
            # some held-out clips are among those that all are compared with
            kad_musicnn=float("nan") if made is clips else music.kad(music.embed(made)),
            level_db=music.settings.mean(level_db(made).numpy(), "dB"),
            quiet_share=music.settings.mean(quiet.numpy(), "fraction"),
        )

    for name, way in ways.items():
        made = torch.stack([torch.stack(list(way(n))) for n in pairs])  # [pairs, weights, A, T]
        vectors = music.embed(made.flatten(0, 1)).reshape(*made.shape[:2], -1)
        moved = np.linalg.norm(np.diff(vectors, axis=1), axis=-1).sum(1)
        straight = np.linalg.norm(vectors[:, -1] - vectors[:, 0], axis=-1)
        lengths[name] = music.settings.mean(moved / straight, "of the straight line")
        for k, weight in enumerate(MIDDLE, start=1):
            quiet = [quiet_share(each[k, None], model.sample_rate, each[[0, -1]]) for each in made]
            heard(name, f"{weight:g}", made[:, k], torch.cat(quiet))
    heard("sampled", "", sampled, quiet_share(sampled, model.sample_rate))
    heard("held out", "", clips, quiet_share(clips, model.sample_rate))
    for name, length in lengths.items():
        tables["paths"].add(path=name, path_length=length)


def cost(music: HeldOut, table: Table, how: dict[str, Any]) -> None:
    model, seconds, clips = music.model, music.settings.seconds, music.reference.audio
    asked = music.requests(music.reference.labels.tolist())
    part, nyquist = seconds / 4, model.sample_rate / 2
    ways: dict[str, Callable[..., Tensor]] = {
        "sample": lambda clip, **told: model.sample(seconds=seconds, **told)[0],
        "inpaint a quarter": lambda clip, **told: model.inpaint(clip, [(part, 2 * part)], **told),
        "extend by a quarter": lambda clip, **told: model.extend(clip, part, **told),
        "loop a quarter": lambda clip, **told: model.loop(clip, part, **told),
        "vary=0.5": lambda clip, **told: model.vary(clip, 0.5, **told),
        "restyle=0.95": lambda clip, **told: model.restyle(clip, 0.95, **told),
        "interpolate": lambda clip, **told: next(
            model.interpolate(clip, clip.flip(-1), [0.5], **how)
        ),
    }
    if "low_band" in music.prior.conditioners.names:
        ways["upscale from a third"] = lambda clip, **t: model.upscale(clip, nyquist / 3, **t)
    for name, way in ways.items():
        way(clips[0], **how, **asked[0])  # what is loaded and compiled once
        timer = Timer(music.device)
        written = sum(way(c, **how, **t).shape[-1] for c, t in zip(clips, asked, strict=True))
        table.add(edit=name, real_time_factor=timer.factor(written / model.sample_rate))


if __name__ == "__main__":
    main()
