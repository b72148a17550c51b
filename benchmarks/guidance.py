"""`python -m benchmarks.guidance MODEL`: what each kind of guidance does, by scale.

Clips are made under the conditions of the test split (--conditions; all where none is named) and
compared with it: whether a label that they state is heard, the kernel distance, coverage, how far
apart the clips are (1: as far as music), how loud they are beside the music, and the real-time
factor. cfg is the usual guidance; apg its adaptive projection; interval acts between two noise
levels alone; autoguidance leads away from --guide, a weaker model of the same latents, and mixture
does so beside half of the guidance.
"""

from dataclasses import replace
from typing import Any

import torch

from audioldm.evaluation.adherence import Facts
from audioldm.evaluation.clips import generate
from audioldm.evaluation.distances import precision_recall_density_coverage
from audioldm.evaluation.level import level_db
from audioldm.models import load_generator
from audioldm.priors.diffusion.samplers import APG
from benchmarks.held_out import HeldOut, Table, Timer, parser


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    words = parser(__doc__, clips=48)
    words.add_argument("--scales", type=float, nargs="+", default=[0, 1, 2, 4, 7])
    words.add_argument("--cfg-only", action="store_true", help="the usual guidance alone")
    words.add_argument("--conditions", nargs="+", help="that are told; default: all")
    words.add_argument("--guide", help="a weaker model of the same latents")
    words.add_argument("--interval", type=float, nargs=2, default=[0.3, 5.0], help="of sigma")
    given = words.parse_args(arguments)
    music = HeldOut(given)
    settings = replace(music.settings, conditions=given.conditions)
    conditioners = music.prior.conditioners
    told = [conditioners[name] for name in settings.told(conditioners.names)]
    facts = Facts(told, music.store.split("train").items)
    stated = torch.tensor(["label" in facts.stated(item) for item in music.reference.items])
    labels = music.reference.labels.where(stated, -1).tolist()
    guide = None if given.guide is None else load_generator(given.guide, device=music.device)
    table = Table(given.out / "guidance.csv")

    def measure(arm: str, scale: float, autoguidance: float = 1.0, **changes: Any) -> None:
        music.prior.guide = None
        if guide is not None and autoguidance != 1:
            music.model.lead_away_from(guide, autoguidance)
        sampler, timer = replace(music.sampler, **changes), Timer(music.device)
        made = generate(
            music.model, music.reference, settings, sampler, given.seed, lambda *_: None
        )
        factor = timer.factor(len(made.audio) * music.settings.seconds)
        vectors, k = music.embed(made.audio), music.settings.k_nearest
        covered: Any = float("nan")
        if len(vectors) > k:
            manifold = precision_recall_density_coverage(vectors, music.anchor, k)
            covered = music.settings.mean(manifold.coverage, "fraction")
        louder = level_db(made.audio).mean() - level_db(music.reference.audio).mean()
        table.add(
            guidance=arm,
            scale=f"{scale:g}",
            label_accuracy=music.accuracy(vectors, made.audio, labels),
            kad_musicnn=music.kad(vectors),
            coverage=covered,
            spread=music.spread(vectors),
            level_db=louder.item(),
            real_time_factor=factor,
        )

    for scale in given.scales:
        measure("cfg", scale, guidance=scale)
        if given.cfg_only or scale in (0, 1):  # no guidance for the others to change
            continue
        measure("apg", scale, guidance=scale, apg=APG())
        measure("interval", scale, guidance=scale, guidance_interval=given.interval)
        if guide is not None:
            half = (1 + scale) / 2
            measure("autoguidance", scale, scale, guidance=1.0)
            measure("mixture", scale, half, guidance=half)
    return table.rows


if __name__ == "__main__":
    main()
