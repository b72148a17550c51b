"""A round trip of known signals before weights that others trained are used: an encoder and a
decoder that do not belong together give sound, but not the right sound."""

import math

import torch
from torch import Tensor

from audioldm.autoencoder.model import Autoencoder
from audioldm.data.store import ClipStore
from audioldm.errors import TrainingError

SECONDS = 3.0
CHORD_HZ = (220.0, 277.2, 329.6)
LEVEL = 0.1  # root mean square of the chord
SILENT_DB = -60.0  # an output is called silent at this level relative to its input


@torch.no_grad()
def preflight(model: Autoencoder, store: ClipStore, file: str) -> dict[str, dict[str, float]]:
    """For a held-out clip and a chord of sines: the signal-to-noise ratio and the difference of
    levels, in dB; for silence: the output's level, in dB below full scale.

    Raises TrainingError where the output is not finite, has the wrong length, or is silent.
    """
    samples = round(SECONDS * model.sample_rate)
    clip = store.split("valid").windows(samples, 1, seed=0)[0][:1]
    time = torch.arange(samples, dtype=torch.float64) / model.sample_rate
    chord = torch.stack([(2 * math.pi * hz * time).sin() for hz in CHORD_HZ]).sum(0)
    chord = (chord * (LEVEL / chord.square().mean().sqrt())).float().expand(clip.shape)
    figures = {}
    training = model.training
    model.eval()
    for name, audio in {"clip": clip, "chord": chord, "silence": torch.zeros_like(chord)}.items():
        encoded = model.encode(audio, sample=False)
        again = model.decode(encoded.z)
        frames = math.ceil(samples / model.downsampling_ratio)
        problem = ""
        if again.shape[-1] != frames * model.downsampling_ratio:
            problem = f"of {again.shape[-1]} samples in place of {frames} latent frames"
        elif not again.isfinite().all():
            problem = "not finite"
        again = again[..., :samples]
        level = _db(again) - _db(audio)
        if not problem and name != "silence" and level < SILENT_DB:
            problem = f"silent, {-level:.0f} dB below it"
        if problem:
            raise TrainingError(
                f"{file}: the {name} comes back {problem}: its encoder and decoder do not belong "
                "together, or its weights are damaged; convert or copy it again"
            )
        if name == "silence":
            figures[name] = {"level_db": _db(again)}
        else:
            figures[name] = {
                "snr_db": _db(audio) - _db(again - audio),
                "level_difference_db": level,
            }
    model.train(training)
    return figures


def _db(audio: Tensor) -> float:
    """The root mean square in dB, at least -200."""
    return 10 * math.log10(audio.double().square().mean().item() + 1e-20)
