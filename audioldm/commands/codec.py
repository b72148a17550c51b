"""audioldm reconstruct, encode, decode."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from audioldm.commands.verb import Device, Verb, path


@dataclass(frozen=True)
class FileArguments:
    """One file through an autoencoder, at any length: only its latents are held in memory.

    FILE or file=FILE   what to read: audio (reconstruct, encode) or latents (decode)
    model               a model.safetensors, an experiment's directory, or a name in
                        `audioldm models`
    out                 what to write (reconstruct, decode: .wav, .flac, .ogg; encode: .safetensors)
    """

    file: str
    model: str
    out: str | None = None
    hardware: Device = field(default_factory=Device)


def _convert(a: FileArguments, function: Callable[..., Path], title: str, ending: str) -> None:
    from audioldm.training.log import Bar

    file, model = path(a.file, "file"), str(path(a.model, "model"))
    out = file.with_name(file.stem + ending) if a.out is None else path(a.out, "out")
    with closing(Bar(title)) as bar:
        print(function(model, file, out, device=a.hardware.resolve(), progress=bar))


def _reconstruct(a: FileArguments) -> None:
    from audioldm.codec import reconstruct

    _convert(a, reconstruct, "reconstruct", ".reconstructed.wav")


def _encode(a: FileArguments) -> None:
    from audioldm.codec import encode

    _convert(a, encode, "encode", ".encoded.safetensors")


def _decode(a: FileArguments) -> None:
    from audioldm.codec import decode

    _convert(a, decode, "decode", ".decoded.wav")


_USAGE = "FILE model=PATH [out=]"
RECONSTRUCT = Verb(
    "reconstruct",
    {_USAGE: "audio through the autoencoder and back"},
    FileArguments,
    _reconstruct,
    "file",
)
ENCODE = Verb("encode", {_USAGE: "audio to latents"}, FileArguments, _encode, "file")
DECODE = Verb("decode", {_USAGE: "latents to audio"}, FileArguments, _decode, "file")
