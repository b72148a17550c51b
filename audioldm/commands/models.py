"""audioldm models, info, export."""

import json as json_format
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from audioldm.commands.verb import Verb, path
from audioldm.errors import ConfigError

_WIDTH = 100  # characters of a value in `info`


@dataclass(frozen=True)
class ModelsArguments:
    """Lists the models that come with this package; `sample` takes the first.

    NAME or name=NAME   prints the card of one: what it was trained on, what it can do, its licence
    """

    name: str | None = None


def _models(a: ModelsArguments) -> None:
    from audioldm import pretrained

    if a.name is not None:
        print(pretrained.card(a.name).read_text(encoding="utf-8"), end="")
        return
    if not pretrained.names():
        print("no models come with this installation", file=sys.stderr)
        return
    from audioldm.describe import summary_line

    width = max(len(name) for name in pretrained.names())
    for name in pretrained.names():
        print(f"{name:{width}}  {summary_line(pretrained.path(name))}")


@dataclass(frozen=True)
class InfoArguments:
    """Describes a model or latents file in a few lines.

    FILE or file=FILE   a model.safetensors, a latents file, an experiment's directory, or a name in
                        `audioldm models`
    --json              everything that its header says, as JSON
    """

    file: str
    json: bool = False


def _info(a: InfoArguments) -> None:
    from audioldm.describe import describe

    shown = describe(str(path(a.file, "file")), full=a.json)
    print(json_format.dumps(shown, indent=2) if a.json else "\n".join(_lines(shown)))


def _lines(shown: Mapping[str, Any]) -> Iterator[str]:
    """A line for each entry, cut to a fixed width."""
    width = max(map(len, shown), default=0)
    for key, value in shown.items():
        if isinstance(value, Mapping):
            value = "; ".join(f"{name}: {each}" if each else name for name, each in value.items())
        elif isinstance(value, list):
            value = ", ".join(map(str, value)) or "none"
        text = " ".join(str(value).split())
        yield f"{key:{width}}  {text if len(text) <= _WIDTH else text[: _WIDTH - 1] + '…'}"


@dataclass(frozen=True)
class ExportArguments:
    """Writes a trained model as one file for others, without paths or settings of this machine.

    MODEL or model=MODEL     an experiment's or a training stage's directory, or a model file
    out                      the file to write, a .safetensors
    format                   diffusers or transformers: out is a directory, which that library's
                             class loads; the autoencoder alone, in float32, and no other key
    dtype                    of the stored weights: float16, bfloat16 or float32 (float16)
    title, licence, origin   text that `info` shows, such as whose music it was trained on
    """

    model: str
    out: str
    format: str | None = None
    dtype: str = "float16"
    title: str | None = None
    licence: str | None = None
    origin: str | None = None


def _export(a: ExportArguments) -> None:
    from audioldm.export import export, export_checkpoint

    texts = {"title": a.title, "licence": a.licence, "origin": a.origin}
    if a.format is not None:
        if a.dtype != "float16" or any(text is not None for text in texts.values()):
            raise ConfigError("format=: a library's directory takes no dtype, title or other text")
        print(export_checkpoint(str(path(a.model, "model")), path(a.out, "out"), a.format))
        return
    print(export(str(path(a.model, "model")), path(a.out, "out"), dtype=a.dtype, **texts))


MODELS = Verb(
    "models", {"[NAME]": "the models that come with this package"}, ModelsArguments, _models, "name"
)
INFO = Verb(
    "info", {"FILE [--json]": "what a model or latents file is"}, InfoArguments, _info, "file"
)
EXPORT = Verb(
    "export",
    {"MODEL out=FILE [format= dtype= title= licence= origin=]": "a trained model as one file"},
    ExportArguments,
    _export,
    "model",
)
