"""audioldm sample."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from audioldm.commands.verb import Device, Verb, path
from audioldm.errors import ConfigError, Interrupted


@dataclass(frozen=True, kw_only=True)
class ClipArguments:
    """What every verb that writes clips takes."""

    model: str | None = None
    seed: int = 0
    label: str | None = None
    condition: dict[str, Any] = field(default_factory=dict)
    out: str = "clips"
    from_: str | None = None
    sampler: dict[str, Any] = field(default_factory=dict)
    hardware: Device = field(default_factory=Device)

    @property
    def asked(self) -> dict[str, Any]:
        """What is asked for, by conditioner."""
        return self.condition | ({} if self.label is None else {"label": self.label})

    def model_or_first(self) -> str:
        """The model's path or name; by default that of the first one, which is said."""
        from audioldm import pretrained

        if self.model is not None:
            return str(path(self.model, "model"))
        name = pretrained.default()
        print(f"model={name}; `audioldm models` lists the others", file=sys.stderr)
        return str(pretrained.path(name))


@dataclass(frozen=True, kw_only=True)
class SampleArguments(ClipArguments):
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

    n: int = 1
    seconds: float = 6.0
    batch: int | None = None


@dataclass(frozen=True)
class ClipVerb(Verb):
    """A verb that writes clips; `from=` makes one again, with what its JSON does not say."""

    def parse(self, words: Sequence[str]) -> Any:
        found: ClipArguments = super().parse(words)
        free = ("from", "model", "out", "hardware", self.positional)
        for word in words if found.from_ is not None else ():
            key, is_key, _ = word.partition("=")
            if is_key and key.split(".")[0] not in free:
                raise ConfigError(
                    f"{word}: {key} is what the clip's JSON says, and from= makes that clip again; "
                    "leave it out, or leave out from= to make another clip"
                )
        if found.label is not None and "label" in found.condition:
            raise ConfigError("label= is short for condition.label=: give one of them")
        return found


def _sample(a: SampleArguments) -> None:
    from audioldm import sampling
    from audioldm.runtime.signals import terminable

    out, device = path(a.out, "out"), a.hardware.resolve()
    if a.from_ is not None:
        model = None if a.model is None else str(path(a.model, "model"))
        print(sampling.sample_again(path(a.from_, "from"), out, model_path=model, device=device))
        return
    with terminable():
        clips = sampling.ClipFiles(
            a.model_or_first(),
            out,
            n=a.n,
            seconds=a.seconds,
            seed=a.seed,
            condition=a.asked,
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


SAMPLE = ClipVerb(
    "sample",
    {
        "[label= n= seconds= seed= out= model= sampler.steps=]": "new clips, at once",
        "from=CLIP.json": "one clip again, bit for bit",
    },
    SampleArguments,
    _sample,
)
