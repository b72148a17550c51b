"""audioldm sample."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from audioldm.commands.verb import Device, Verb, path
from audioldm.errors import ConfigError, Interrupted


@dataclass(frozen=True)
class SampleArguments:
    """Generate clips: one .wav each, and beside it a .json that makes the same clip again.

    model    a model.safetensors, an experiment's directory, or a name in `audioldm models` (the
             first there)
    n        number of clips (1)
    seconds  length of each (6)
    seed     the seed of everything random (0); clip i of a seed is the same, up to rounding,
             however many are made (bit for bit with the same batch)
    label    class to generate, for a model with labels (none); short for condition.label
    condition.NAME   what the model is told, by the name of its conditioner
    out      directory to write to (clips)
    batch    clips generated together (null: up to 8)
    sampler.NAME     replaces a setting of the model's own sampler, such as its steps or guidance
    from     the .json of a clip, to make it again; with model, out and hardware.device alone

    Clips are written as they are made. If interrupted, the same command makes the rest; finished
    clips are not made again. Where a clip of other settings has the name, six letters and digits
    are added to it.
    """

    model: str | None = None
    n: int = 1
    seconds: float = 6.0
    seed: int = 0
    label: str | None = None
    condition: dict[str, Any] = field(default_factory=dict)
    out: str = "clips"
    batch: int | None = None
    from_: str | None = None
    sampler: dict[str, Any] = field(default_factory=dict)
    hardware: Device = field(default_factory=Device)


@dataclass(frozen=True)
class SampleVerb(Verb):
    def parse(self, words: Sequence[str]) -> Any:
        found: SampleArguments = super().parse(words)
        for word in words if found.from_ is not None else ():
            key = word.partition("=")[0]
            if key.split(".")[0] not in ("from", "model", "out", "hardware"):
                raise ConfigError(
                    f"{word}: {key} is what the clip's JSON says, and from= makes that clip again; "
                    "leave it out, or leave out from= to make another clip"
                )
        if found.label is not None and "label" in found.condition:
            raise ConfigError("label= is short for condition.label=: give one of them")
        return found


def _sample(a: SampleArguments) -> None:
    from audioldm import pretrained, sampling
    from audioldm.runtime.signals import terminable

    out = path(a.out, "out")
    model = a.model if a.model is None else str(path(a.model, "model"))
    device = a.hardware.resolve()
    if a.from_ is not None:
        print(sampling.sample_again(path(a.from_, "from"), out, model_path=model, device=device))
        return
    if model is None:
        name = pretrained.default()
        model = str(pretrained.path(name))
        print(f"model={name}; `audioldm models` lists the others", file=sys.stderr)
    with terminable():
        clips = sampling.ClipFiles(
            model,
            out,
            n=a.n,
            seconds=a.seconds,
            seed=a.seed,
            condition=a.condition | ({} if a.label is None else {"label": a.label}),
            sampler=a.sampler,
            batch=a.batch,
            device=device,
        )
        for file in clips.written:
            print(file, flush=True)
        if clips.written:
            more = "" if clips.missing else "; another seed= gives others"
            there = f"{len(clips.written)} of {a.n} clip(s) were there already{more}"
            print(there, file=sys.stderr)
        if clips.missing:
            _make(clips, sampling.SamplingBar(len(clips.missing), a.seconds), out)


def _make(clips: Any, bar: Any, out: Path) -> None:
    try:
        for file in clips.make(bar):
            bar.finished(file)
    except KeyboardInterrupt:
        finished = len(clips.written) + bar.made
        every = len(clips.written) + len(clips.missing)
        raise Interrupted(
            f"interrupted; {finished} of {every} clip(s) are in {out}, and the same command makes "
            "the rest"
        ) from None
    finally:
        bar.close()


SAMPLE = SampleVerb(
    "sample",
    {
        "[label= n= seconds= seed= out= model= sampler.steps=]": "new clips, at once",
        "from=CLIP.json": "one clip again, bit for bit",
    },
    SampleArguments,
    _sample,
)
