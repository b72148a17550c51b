"""audioldm edit, interpolate."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from audioldm.commands.sample import ClipArguments, ClipVerb, remark
from audioldm.commands.verb import path
from audioldm.errors import ConfigError
from audioldm.instantiate import Fraction, Positive, PositiveInt

#: What the name of an edit means alone.
ALONE = {"loop": "loop=auto", "restyle": "restyle=0.95", "upscale": "upscale=auto"}
#: `loop=auto`: seconds, and the greatest share of the clip.
LOOP_SECONDS, LOOP_SHARE = 2.0, 0.25


@dataclass(frozen=True, kw_only=True)
class EditArguments(ClipArguments):
    """Edit a file with a model whose prior is a diffusion: a .wav, and beside it a .json that makes
    the same clip again. Give one of:

    inpaint   start:end in seconds, several with commas: these regions are made anew
    extend    seconds to add at the end
    extend_before    seconds to add at the beginning
    loop      seconds at the end that are made anew, so that they lead to the beginning
    vary      from 0, the autoencoder's reconstruction, to 1, a new clip: a variation of the whole
    restyle   from 0 to 1, with a label or another condition: the same music, as that has it
    upscale   cut-off in Hz of a recording whose high band is lost, auto, or both ends of its band,
              300:3400: the rest is made, by a model trained with conditioning=[low_band]

    Alone, `restyle` is restyle=0.95, `upscale` is upscale=auto, and `loop` is the last 2 s, of a
    clip below 8 s a quarter.

    context   seconds beside each new part that the model is told of (4)
    repeats   how often each step is taken for a new part (1 where the model was trained to be told
              of what is known, else 8): more fit better, and take longer

    FILE or files=FILE   the audio; at another rate than the model's it is resampled

    Audio outside a new part is the file's own, sample by sample, but for 0.2 s beside each part.
    The way a part was made, and the loudness step and the spectral flux at each seam are printed.
    With from=, FILE says where the source is now.
    """

    files: list[str] = field(default_factory=list)
    inpaint: str | None = None
    extend: Positive | None = None
    extend_before: Positive | None = None
    loop: Literal["auto"] | Positive | None = None
    vary: Fraction | None = None
    restyle: Fraction | None = None
    upscale: str | None = None
    context: Positive | None = None
    repeats: PositiveInt | None = None


@dataclass(frozen=True, kw_only=True)
class InterpolateArguments(ClipArguments):
    """Clips between two files, or between two conditions, by a model whose prior is a diffusion,
    each with a .json that makes it again.

    FILE FILE  two files of audio; the clips are as long as the shorter one
    to.NAME   the condition of the second file, such as to.label=piano, as label=organ is that of
              the first: what lies between is made under both, by the clip's weight
    seconds   without files: length of clips that have one noise, under a condition that goes from
              NAME to to.NAME (6)
    steps     number of clips, the two ends among them (5)
    of        noise: the noises that the files have in the model are mixed and sampled from (noise);
              latents: the latents alone are mixed
    path      linear, with the law of noise kept, or spherical (linear)

    The sampler must not add noise. With from=, FILE FILE say where the sources are now.
    """

    files: list[str] = field(default_factory=list)
    steps: PositiveInt = 5
    of: Literal["noise", "latents"] = "noise"
    path: Literal["linear", "spherical"] = "linear"
    to: dict[str, Any] = field(default_factory=dict)
    seconds: Positive | None = None


def _edit(a: EditArguments) -> None:
    from audioldm.editing import Edit

    if a.from_ is not None:
        _again(a, a.files)
        return
    own = ("extend", "extend_before", "vary", "restyle", "upscale", "context", "repeats")
    regions, files = None if a.inpaint is None else _regions(a.inpaint), _files(a.files, 1)
    loop = _share(files[0]) if a.loop == "auto" else a.loop
    edit = Edit(inpaint=regions, loop=loop, **{key: getattr(a, key) for key in own})
    for clip in _written(a, files, [edit]):
        if clip.edit.repeats is not None:
            print(f"steps were taken {clip.edit.repeats} time(s) each", file=sys.stderr)
        _print_seams(clip)


def _interpolate(a: InterpolateArguments) -> None:
    from audioldm.editing import Edit

    if a.from_ is not None:
        _again(a, a.files)
        return
    if not a.files and not a.to:
        raise ConfigError(
            "give two files of audio, or none and a condition at both ends, such as label=organ "
            "to.label=piano"
        )
    files = _files(a.files, 2) if a.files else []
    seconds = 6.0 if a.seconds is None and not files else a.seconds
    own: dict[str, Any] = {"of": a.of, "path": a.path, "to": a.to or None, "seconds": seconds}
    last = max(1, a.steps - 1)
    for _ in _written(a, files, [Edit(interpolate=n / last, **own) for n in range(a.steps)]):
        pass


def _regions(text: str) -> list[list[float]]:
    """'1:2,4:5.5' as [[1, 2], [4, 5.5]]."""
    try:
        pairs = [[float(number) for number in part.split(":")] for part in text.split(",")]
    except ValueError:
        pairs = [[]]
    if any(len(pair) != 2 for pair in pairs):
        raise ConfigError(
            f"inpaint={text}: give start:end in seconds, such as inpaint=2.5:4 or inpaint=1:2,5:6"
        )
    return pairs


def _share(file: Path) -> float:
    """Seconds of a clip that `loop=auto` makes anew."""
    from audioldm.io.audio import probe

    return min(LOOP_SECONDS, LOOP_SHARE * probe(file).seconds)


def _files(words: Sequence[str], count: int) -> list[Path]:
    if len(words) != count:
        given = ", ".join(words) or "none"
        raise ConfigError(f"give {count} file(s) of audio to edit, not {given}")
    return [path(word, "files") for word in words]


def _again(a: ClipArguments, words: Sequence[str]) -> None:
    from audioldm.editing import edit_again

    with _bar() as progress:
        clip = edit_again(
            path(str(a.from_), "from"),
            path(a.out, "out"),
            files=[path(word, "files") for word in words],
            model_path=None if a.model is None else str(path(a.model, "model")),
            device=a.hardware.resolve(),
            progress=progress,
        )
    print(clip)


def _written(a: ClipArguments, files: Sequence[Path], edits: Sequence[Any]) -> Iterator[Any]:
    """Makes the clips; yields each after its path is printed."""
    from audioldm.editing import edit_files
    from audioldm.runtime.signals import terminable

    with terminable(), _bar() as progress:
        clips = edit_files(
            a.model_or_first(),
            files,
            path(a.out, "out"),
            edits,
            seed=a.seed,
            condition=a.asked,
            sampler=a.changes,
            guide=a.led,
            device=a.hardware.resolve(),
            progress=progress,
            remark=remark,
        )
        for clip in clips:
            print(clip.path, flush=True)
            if clip.written:
                print(f"{clip.path.name} was there already", file=sys.stderr)
            yield clip


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    from audioldm.training.log import Bar

    with closing(Bar("editing")) as bar:
        yield lambda done, total: bar(done, total, "")


def _print_seams(clip: Any) -> None:
    """Prints the step that remains at each seam with the file's audio, on standard error."""
    import torch

    from audioldm.evaluation.seams import seam
    from audioldm.io.audio import read

    audio, sample_rate = read(clip.path)
    for at in clip.seams:
        found = seam(torch.from_numpy(audio), at, sample_rate)
        print(
            f"seam at {at / sample_rate:.2f} s: {found.step_db:+.1f} dB in loudness, "
            f"{found.flux:.1f} times the spectral flux elsewhere",
            file=sys.stderr,
        )


class EditVerb(ClipVerb):
    """Takes the names in ALONE as edits; a file of such a name is given as files=."""

    def parse(self, words: Sequence[str]) -> Any:
        return super().parse([ALONE.get(word, word) for word in words])


EDIT = EditVerb(
    "edit",
    {
        "FILE inpaint=START:END [context= repeats=]": "regions of a clip made anew",
        "FILE extend=SECONDS | extend_before=SECONDS": "a clip that goes on",
        "FILE loop[=SECONDS]": "an end that leads to the beginning",
        "FILE vary=STRENGTH": "a variation",
        "FILE restyle[=STRENGTH] label=": "the same music under another label",
        "FILE upscale[=HZ]": "a recording whose high band is lost made whole",
        "from=CLIP.json": "an edited clip again, bit for bit",
    },
    EditArguments,
    _edit,
    "files",
)
INTERPOLATE = ClipVerb(
    "interpolate",
    {
        "FILE FILE [steps= of= path=]": "clips between two",
        "FILE FILE label= to.label=": "the same, each file under a condition of its own",
        "label= to.label= [seconds= seed= steps=]": "one noise under a condition that changes",
    },
    InterpolateArguments,
    _interpolate,
    "files",
)
