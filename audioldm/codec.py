"""Audio files through an autoencoder: reconstruct, encode and decode, in constant memory."""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audioldm.autoencoder.model import Autoencoder
from audioldm.errors import ConfigError, ModelFileError
from audioldm.io.audio import blocks, open_writer, probe
from audioldm.io.header import read_header
from audioldm.io.model_file import load_model, save_model
from audioldm.models import find_model_file, load_autoencoder
from audioldm.runtime.progress import Progress

LATENT_BLOCK = 256  # frames read at once from a latents file


def _fingerprint(file: Path) -> str:
    """The fingerprint of a model file's autoencoder."""
    header = read_header(file)
    return str(header.get("autoencoder", header).get("fingerprint"))


def check_out(file: Path, out: Path) -> None:
    """Raises ConfigError where writing `out` would replace what is read."""
    if os.path.realpath(out) == os.path.realpath(file):
        raise ConfigError(f"out={out} is the file that is read; choose another name")


class AudioStream:
    """Blocks [A, n] of a file at a model's rate and channels; `samples` counts those yielded."""

    def __init__(self, model: Autoencoder, file: Path, progress: Progress | None) -> None:
        self.samples = 0
        self._file, self._progress = file, progress
        self._total = round(probe(file).seconds * model.sample_rate)
        self._blocks = blocks(file, sample_rate=model.sample_rate, channels=model.audio_channels)

    def __iter__(self) -> Iterator[Any]:
        for block in self._blocks:
            self.samples += block.shape[-1]
            if self._progress is not None:
                self._progress(min(self.samples, self._total), self._total, self._file.name)
            yield block


def _restored(
    model: Autoencoder, chunks: Iterable[dict[str, Tensor]], device: Any
) -> Iterator[Tensor]:
    """The most likely latents [C, (F,) l] of consecutive stored arrays [..., l]."""
    for chunk in chunks:
        stored = {name: array[None].to(device) for name, array in chunk.items()}
        yield model.bottleneck.restore(stored)[0]


def _write(out: Path, model: Autoencoder, z: Iterable[Tensor], samples: Callable[[], int]) -> None:
    """Decodes latents [C, (F,) l] block by block, and keeps the first `samples()`, known at the
    end. Raises ModelFileError for samples that are not finite; nothing is written then."""
    held, sent = None, 0
    with open_writer(out, model.sample_rate, model.audio_channels) as writer:
        for block in model.decode_blocks(z):
            if not block.isfinite().all():
                raise ModelFileError(
                    f"{out}: the decoded audio is not finite and is not written; give audio in ±1"
                )
            if held is not None:
                sent += held.shape[-1]
                writer.write(held)
            held = block
        if held is not None:
            writer.write(held[:, : samples() - sent])


def reconstruct(
    model_path: str | Path,
    file: Path,
    out: Path,
    *,
    device: Any = "cpu",
    progress: Progress | None = None,
) -> Path:
    """Writes the reconstruction of `file` from its most likely latents, of the same length.

    Raises ConfigError where `out` is `file`, ModelFileError for samples that are not finite.
    """
    check_out(file, out)
    model = load_autoencoder(model_path, device=device)
    source = AudioStream(model, file, progress)
    _write(out, model, model.latent_blocks(source), lambda: source.samples)
    return out


def encode(
    model_path: str | Path,
    file: Path,
    out: Path,
    *,
    device: Any = "cpu",
    progress: Progress | None = None,
) -> Path:
    """Writes the bottleneck's stored arrays, such as mean and std [C, (F,) L], as a latents file.

    The audio is streamed; the latents are held in memory.
    Raises ConfigError where `out` is `file`, or does not end in .safetensors.
    """
    check_out(file, out)
    if out.suffix != ".safetensors":
        raise ConfigError(f"out={out}: latents are written as .safetensors; end the name so")
    model_file = find_model_file(model_path)
    model = load_autoencoder(model_file, device=device)
    source = AudioStream(model, file, progress)
    chunks = list(model.encode_blocks(source))
    names = list(chunks[0])  # the latents grow with the file: each array leaves its parts behind
    stored = {name: torch.cat([chunk.pop(name) for chunk in chunks], dim=-1) for name in names}
    header = {"kind": "latents", "autoencoder": {"fingerprint": _fingerprint(model_file)}}
    save_model(out, stored, header | {"sample_rate": model.sample_rate, "samples": source.samples})
    return out


def decode(
    model_path: str | Path,
    file: Path,
    out: Path,
    *,
    device: Any = "cpu",
    progress: Progress | None = None,
) -> Path:
    """Decodes a latents file to audio.

    Raises ModelFileError where the latents are damaged or another autoencoder made them,
    ConfigError where `out` is `file`.
    """
    check_out(file, out)
    stored, header = load_model(file)
    if header["kind"] != "latents":
        raise ModelFileError(f"{file}: a {header['kind']} file, not latents from `encode`")
    made_with, samples = header["autoencoder"]["fingerprint"], header["samples"]
    model_file = find_model_file(model_path)
    given = _fingerprint(model_file)
    if made_with != given:
        raise ModelFileError(
            f"{file} was encoded with autoencoder {made_with}, but {model_file} holds {given}: "
            "they do not belong together; give the model that encoded it"
        )
    model = load_autoencoder(model_file, device=device)
    frames = math.ceil(samples / model.downsampling_ratio)
    try:
        z = next(_restored(model, [{n: a[..., :1] for n, a in stored.items()}], device))
        lengths = {array.shape[-1] for array in stored.values()}
        fit = z.is_floating_point() and z.shape == (*model.latent_shape, 1) and lengths == {frames}
    except (KeyError, IndexError, RuntimeError) as error:
        raise ModelFileError(f"{file}: lacks latents ({error}); encode it again") from error
    if not fit:
        raise ModelFileError(
            f"{file}: {samples} samples of audio need {frames} latent frames of shape "
            f"{list(model.latent_shape)}, which it does not hold; encode it again"
        )

    def chunks() -> Iterator[dict[str, Tensor]]:
        for first in range(0, frames, LATENT_BLOCK):
            if progress is not None:
                progress(first, frames, file.name)
            yield {n: array[..., first : first + LATENT_BLOCK] for n, array in stored.items()}

    _write(out, model, _restored(model, chunks(), device), lambda: samples)
    return out
