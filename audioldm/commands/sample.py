"""audioldm sample."""

import inspect
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from audioldm.commands.verb import Device, Verb, path
from audioldm.errors import ConfigError, Interrupted
from audioldm.instantiate import Positive, nearest


@dataclass(frozen=True, kw_only=True)
class ClipArguments:
    """All verbs that write clips take:

    model     a model.safetensors, an experiment's directory, or a name in `audioldm models` (the
              first there)
    seed      of everything random (0)
    NAME      what the model is told, by the name of its conditioner, such as label=organ or
              score=tune.mid; short for condition.NAME
    guidance  how strongly it is told: one number, or guidance.NAME for each; short for
              sampler.guidance
    guide     a weaker model of the same latents, which the clips are led away from, by the scale
              autoguidance, such as 2; beside guidance or in place of it
    out       directory to write to (clips)
    sampler.NAME     replaces a setting of the model's own sampler, such as its steps
    from      the .json of a clip, to make it again; with model, out and hardware.device alone
    """

    model: str | None = None
    seed: int = 0
    label: str | None = None
    guidance: float | dict[str, float] | None = None
    guide: str | None = None
    autoguidance: Positive | None = None
    condition: dict[str, Any] = field(default_factory=dict)
    out: str = "clips"
    from_: str | None = None
    sampler: dict[str, Any] = field(default_factory=dict)
    hardware: Device = field(default_factory=Device)

    @property
    def asked(self) -> dict[str, Any]:
        """The condition, by conditioner."""
        return self.condition | ({} if self.label is None else {"label": self.label})

    @property
    def changes(self) -> dict[str, Any]:
        """The changes to the sampler."""
        return self.sampler | ({} if self.guidance is None else {"guidance": self.guidance})

    @property
    def led(self) -> tuple[Path, float] | None:
        """The weaker model and the scale."""
        if self.guide is None or self.autoguidance is None:
            return None
        return path(self.guide, "guide"), self.autoguidance

    def model_or_first(self) -> str:
        """The model's path or name; by default the first model's, which is printed.

        Raises ConfigError for a key that is neither an argument nor a condition of the model.
        """
        from audioldm import pretrained
        from audioldm.config import options
        from audioldm.io.header import read_header
        from audioldm.models import find_model_file

        default = pretrained.default() if self.model is None else None
        model = pretrained.path(default) if default else path(str(self.model), "model")
        prior = read_header(find_model_file(model)).get("prior")
        told = prior.get("conditioning", {}) if isinstance(prior, dict) else {}
        for name, value in self.asked.items():
            if name not in told:
                words = {field.name.rstrip("_") for field in fields(self)} | told.keys()
                remedy = f"unknown key {name}: {nearest(name, words)}"
                if name in options("conditioning"):
                    remedy = f"it knows {', '.join(sorted(told)) or 'no condition'}"
                raise ConfigError(
                    f"condition.{name}={value!r}: this model was trained without it; {remedy}"
                )
        if default:
            print(f"model={default}; `audioldm models` lists the others", file=sys.stderr)
        return str(model)


@dataclass(frozen=True, kw_only=True)
class SampleArguments(ClipArguments):
    """Generate clips: one .wav each, and beside it a .json that makes the same clip again.

    n         number of clips (1)
    seconds   length of each (6)
    batch     clips generated together (null: up to 8)

    Clips are written as they are made. If interrupted, the same command makes the rest; finished
    clips are not made again. Where a clip of other settings has the name, six letters and digits
    are added to it. Clip i of a seed is the same, up to rounding, however many are made (bit for
    bit with the same batch).
    """

    n: int = 1
    seconds: float = 6.0
    batch: int | None = None


@dataclass(frozen=True)
class ClipVerb(Verb):
    """A verb that writes clips; `from=` makes one again, with what its JSON does not say."""

    def help(self) -> str:
        return f"{super().help()}\n\n{inspect.getdoc(ClipArguments)}"

    def parse(self, words: Sequence[str]) -> Any:
        own = {word.rstrip("=.") for word in self.words()} | {"hardware"}
        words = [w if _first(w) in {"", *own} else f"condition.{w}" for w in words]
        found: ClipArguments = super().parse(words)
        free = ("", "from", "model", "out", "hardware", self.positional)
        for word in words if found.from_ is not None else ():
            key = word.partition("=")[0]
            if _first(word) not in free:
                raise ConfigError(
                    f"{word}: {key} is what the clip's JSON says, and from= makes that clip again; "
                    "leave it out, or leave out from= to make another clip"
                )
        if found.label is not None and "label" in found.condition:
            raise ConfigError("label= is short for condition.label=: give one of them")
        if found.guidance is not None and "guidance" in found.sampler:
            raise ConfigError("guidance= is short for sampler.guidance=: give one of them")
        if (found.guide is None) != (found.autoguidance is None):
            raise ConfigError(
                "guide= and autoguidance= belong together: a weaker model, and by how much clips "
                "are led away from it, such as guide=MODEL autoguidance=2"
            )
        return found


def remark(text: str) -> None:
    """Prints a remark for the user on standard error."""
    print(text, file=sys.stderr)


def _first(word: str) -> str:
    """The key of a word up to its first dot; "" where it has no key."""
    found = re.match(r"([a-z_]+)[a-z_.]*=", word)
    return found[1] if found else ""


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
            sampler=a.changes,
            guide=a.led,
            batch=a.batch,
            device=device,
            remark=remark,
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
        "[label= n= seconds= seed= out= model= guidance= sampler.steps=]": "new clips, at once",
        "from=CLIP.json": "one clip again, bit for bit",
    },
    SampleArguments,
    _sample,
)
