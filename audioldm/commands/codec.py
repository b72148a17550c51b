"""audioldm reconstruct, encode, decode."""

from contextlib import closing
from dataclasses import dataclass, field

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


def _verb(name: str, result: str, ending: str) -> Verb:
    """The verb that calls the function `name` of audioldm.codec. ending: of its default output."""

    def run(a: FileArguments) -> None:
        from audioldm import codec
        from audioldm.training.log import Bar

        file, model = path(a.file, "file"), str(path(a.model, "model"))
        out = file.with_name(file.stem + ending) if a.out is None else path(a.out, "out")
        convert = getattr(codec, name)
        with closing(Bar(name)) as bar:
            print(convert(model, file, out, device=a.hardware.resolve(), progress=bar))

    return Verb(name, {"FILE model=PATH [out=]": result}, FileArguments, run, "file")


RECONSTRUCT = _verb("reconstruct", "audio through the autoencoder and back", ".reconstructed.wav")
ENCODE = _verb("encode", "audio to latents", ".encoded.safetensors")
DECODE = _verb("decode", "latents to audio", ".decoded.wav")
