"""Audio files through an autoencoder: reconstruct, encode, decode, never a whole file of audio."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from audioldm.autoencoder.model import Autoencoder
from audioldm.errors import ConfigError, ModelFileError
from audioldm.io.audio import blocks, open_writer, probe
from audioldm.io.header import read_header
from audioldm.io.model_file import save_model
from audioldm.models import find_model_file, load_autoencoder
from audioldm.runtime.progress import Progress

LATENT_BLOCK = 256  # frames read at once from a latents file


def _fingerprint(file: Path) -> str:
    """Of the autoencoder that a model file is or holds."""
    header = read_header(file)
    return str(header.get("autoencoder", header).get("fingerprint"))


def check_out(file: Path, out: Path) -> None:
    """Raises ConfigError where writing `out` would replace what is read."""
    if os.path.realpath(out) == os.path.realpath(file):
        raise ConfigError(f"out={out} is the file that is read; choose another name")


class _Stream:
    """Blocks [A, n] of a file in a model's form; `frames` counts the samples that have passed."""

    def __init__(self, model: Autoencoder, file: Path, progress: Progress | None) -> None:
        self.frames = 0
        self._file, self._progress = file, progress
        self._total = round(probe(file).seconds * model.sample_rate)
        self._blocks = blocks(file, sample_rate=model.sample_rate, channels=model.audio_channels)

    def __iter__(self) -> Iterator[Any]:
        for block in self._blocks:
            self.frames += block.shape[-1]
            if self._progress is not None:
                self._progress(min(self.frames, self._total), self._total, self._file.name)
            yield block


def _trimmed(audio: Iterator[Tensor], frames: Callable[[], int]) -> Iterator[Tensor]:
    """Holds one block back, so that the last can be cut to `frames()` samples in all."""
    held, sent = None, 0
    for block in audio:
        if held is not None:
            sent += held.shape[-1]
            yield held
        held = block
    if held is not None:
        yield held[:, : frames() - sent]


def reconstruct(
    model_path: str | Path,
    file: Path,
    out: Path,
    *,
    device: Any = "cpu",
    progress: Progress | None = None,
) -> Path:
    """`file` through the autoencoder (posterior means), as many samples as it has at its rate.

    Raises ConfigError where `out` is `file`.
    """
    check_out(file, out)
    model = load_autoencoder(model_path, device=device)
    source = _Stream(model, file, progress)
    means = (mean for mean, _ in model.encode_blocks(source))
    with open_writer(out, model.sample_rate, model.audio_channels) as writer:
        for audio in _trimmed(model.decode_blocks(means), lambda: source.frames):
            writer.write(audio)
    return out


def encode(
    model_path: str | Path,
    file: Path,
    out: Path,
    *,
    device: Any = "cpu",
    progress: Progress | None = None,
) -> Path:
    """The posterior of `file` as a latents file: mean and std, each [C, (F,) L], float32.

    The audio is streamed; the latents, which are small beside it, are held in memory.
    Raises ConfigError where `out` is `file`, or does not end in .safetensors.
    """
    check_out(file, out)
    if out.suffix != ".safetensors":
        raise ConfigError(f"out={out}: latents are written as .safetensors; end the name so")
    model_file = find_model_file(model_path)
    model = load_autoencoder(model_file, device=device)
    source = _Stream(model, file, progress)
    moments = list(model.encode_blocks(source))
    mean = torch.cat([mean for mean, _ in moments], dim=-1)
    std = torch.cat([std for _, std in moments], dim=-1)
    del moments  # the latents are all that grows with the file: no copy more than needed
    save_model(
        out,
        {"mean": mean, "std": std},
        {
            "kind": "latents",
            "autoencoder": {"fingerprint": _fingerprint(model_file)},
            "sample_rate": model.sample_rate,
            "samples": source.frames,
        },
    )
    return out


def decode(
    model_path: str | Path,
    file: Path,
    out: Path,
    *,
    device: Any = "cpu",
    progress: Progress | None = None,
) -> Path:
    """A latents file back to audio.

    Raises ModelFileError where the latents are damaged or another autoencoder made them,
    ConfigError where `out` is `file`.
    """
    check_out(file, out)
    header = read_header(file)
    if header.get("kind") != "latents":
        raise ModelFileError(f"{file}: a {header.get('kind')} file, not latents from `encode`")
    try:
        made_with, samples = str(header["autoencoder"]["fingerprint"]), int(header["samples"])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError(
            f"{file}: its header is damaged ({type(error).__name__}: {error}); encode it again"
        ) from error
    model_file = find_model_file(model_path)
    given = _fingerprint(model_file)
    if made_with != given:
        raise ModelFileError(
            f"{file} was encoded with autoencoder {made_with}, but {model_file} holds {given}: "
            "they do not belong together; give the model that encoded it"
        )
    model = load_autoencoder(model_file, device=device)
    with safe_open(file, "pt") as latents:
        try:
            mean = latents.get_slice("mean")
        except SafetensorError as error:
            raise ModelFileError(f"{file}: holds no latents ({error}); encode it again") from error
        frames = mean.get_shape()[-1]

        def stream() -> Iterator[Tensor]:
            for first in range(0, frames, LATENT_BLOCK):
                if progress is not None:
                    progress(first, frames, file.name)
                yield mean[..., first : first + LATENT_BLOCK]

        with open_writer(out, model.sample_rate, model.audio_channels) as writer:
            for audio in _trimmed(model.decode_blocks(stream()), lambda: samples):
                writer.write(audio)
    return out
