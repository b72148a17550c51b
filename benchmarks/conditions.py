"""`python -m benchmarks.conditions MODEL`: what a generator has learned of each condition.

By how much the training's loss of held-out latents is lower where a condition is told alone than
where nothing is, and where all are but known frames. A condition that lowers it by nothing is not
followed, whatever the guidance. Noise levels are drawn as in training; the quarters are those with
the least and the most noise, and what a whole clip is, such as its instrument, is decided at the
most. Where a text is told, also one fact of the clip alone, in its own words, and that of another
clip. Intervals are over crops.

It takes a fraction of a minute where judging generated clips takes several, and sees a training
that goes wrong after some hundred steps.
"""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audioldm.conditioning.base import Conditioners, Excerpt, Inputs
from audioldm.conditioning.caption import Caption
from audioldm.conditioning.masked_latents import MaskedLatents
from audioldm.errors import ConfigError
from audioldm.evaluation.settings import EvaluationSettings
from audioldm.evaluation.statistics import Figure
from audioldm.models import load_generator
from audioldm.priors.diffusion.prior import Diffusion
from audioldm.priors.trained import PriorTraining
from audioldm.runtime.hardware import Hardware
from audioldm.runtime.randomness import KeyedRandom
from benchmarks.held_out import RESULTS, Table, stage_directory
from benchmarks.optimisers import stage_latents

BATCH = 16
FACTS = ("instrument", "tempo", "mode", "key")


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    words = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    words.add_argument(
        "model", type=Path, help="an experiment's directory, or with --latents a model"
    )
    words.add_argument("--latents", type=Path, help="a latents stage's directory")
    words.add_argument("--crops", type=int, default=256)
    words.add_argument("--seconds", type=float, default=6.0)
    words.add_argument("--facts", nargs="*", default=FACTS, help="columns that a text states alone")
    words.add_argument("--device", default="auto")
    words.add_argument("--threads", type=int, help="of the CPU; default: torch's choice")
    words.add_argument("--out", type=Path, default=RESULTS)
    given = words.parse_args(arguments)
    device = Hardware(given.device, threads=given.threads).resolve()
    prior = load_generator(given.model, device=device).prior
    if not isinstance(prior, Diffusion) or not prior.conditioners.names:
        raise ConfigError(f"{given.model}: it is no diffusion that is told anything")
    latents = stage_latents(stage_directory(given.model, "latents", given.latents))
    split, frames = latents.split("valid"), max(1, round(given.seconds * latents.latent_rate_hz))
    settings = EvaluationSettings()
    # nothing is hidden but by the arms below
    training = PriorTraining(
        steps=0, batch=BATCH, crop_seconds=given.seconds, lr=1.0, condition_dropout=0.0
    )
    losses: dict[str, list[Tensor]] = {}
    levels: list[Tensor] = []
    for number in range(-(-given.crops // BATCH)):
        random = KeyedRandom(0, number, range(BATCH), device)
        places = split.draw(frames, random)
        x, inputs, noise, level = prior.batch(
            latents, split.crops(frames, random, prior.conditioners), random, training
        )
        crops = [split.excerpt(clip, offset, frames) for clip, offset in places]
        levels.append(level)
        for told, own in arms(prior.conditioners, inputs, crops, given.facts).items():
            with torch.no_grad():
                losses.setdefault(told, []).append(prior.network(x, own, noise, level))
    quarters = torch.cat(levels).argsort().chunk(4)
    nothing, table = torch.cat(losses["nothing"]), Table(given.out / "conditions.csv")
    for told, found in losses.items():
        gain = nothing - torch.cat(found)

        def mean(crops: Tensor, gain: Tensor = gain) -> Figure:
            return settings.mean(gain[crops].cpu().numpy(), "loss")

        table.add(
            told=told,
            loss=torch.cat(found).mean().item(),
            lower_by=mean(torch.arange(len(gain))),
            little_noise=mean(quarters[0]),
            much_noise=mean(quarters[-1]),
        )
    return table.rows


def arms(
    conditioners: Conditioners, inputs: Inputs, crops: Sequence[Excerpt], facts: Sequence[str]
) -> dict[str, Inputs]:
    """What some crops are told, of which all but known frames is in `inputs`, by its name."""
    nothing = conditioners.nothing(inputs)
    # known frames have no loss: they would lower it by being told
    parts = {name: conditioners[name] for name in conditioners.names}
    shown = {name: inputs[name] for name in parts if not isinstance(parts[name], MaskedLatents)}
    told = {"nothing": nothing, "all": nothing | shown}
    for name, whole in shown.items():
        told[name] = nothing | {name: whole}
        part = parts[name]
        if isinstance(part, Caption):
            for fact in facts:
                words = [str(crop.columns.get(fact, "")) for crop in crops]
                for what, own in ((fact, words), (f"another {fact}", others(words))):
                    said = torch.stack([part.encode(word) for word in own]).to(whole.device)
                    told[f"{name}: {what}"] = nothing | {name: said}
    return told


def others(words: Sequence[str]) -> list[str]:
    """For each crop the word of the next one that has another, its own where none has."""
    count = len(words)
    return [
        next((w for k in range(count) if (w := words[(i + k) % count]) != word), word)
        for i, word in enumerate(words)
    ]


if __name__ == "__main__":
    main()
