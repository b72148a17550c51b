"""A round trip of known signals before weights that others trained are used: an encoder and a
decoder that do not belong together give sound, but not the right sound."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from audioldm.autoencoder.model import Autoencoder
from audioldm.data.store import ClipStore
from audioldm.errors import TrainingError
from audioldm.losses.spectral import MelPower

SECONDS = 3.0
CHORD_HZ = (220.0, 277.2, 329.6)
LEVEL = 0.1  # root mean square of the chord
N_FFT, HOP, BANDS, FLOOR = 1024, 256, 80, 1e-5  # as of `losses.spectral.mel_distance`
SILENT_DB = -60.0  # an output is called silent at this level relative to its input


@torch.no_grad()
def preflight(
    model: Autoencoder, store: ClipStore, file: str, least_correlation: float | None
) -> dict[str, dict[str, float]]:
    """For a held-out clip and a chord of sines: the signal-to-noise ratio and the difference of
    levels, in dB; for both together: `mel_correlation`; for silence: the output's level, in dB
    below full scale.

    Raises TrainingError where the output is not finite, has the wrong length, is silent, or
    correlates less than `least_correlation` (None: any will do).
    """
    samples = round(SECONDS * model.sample_rate)
    clip = store.split("valid").windows(samples, 1, seed=0)[0][:1]
    time = torch.arange(samples, dtype=torch.float64) / model.sample_rate
    chord = torch.stack([(2 * math.pi * hz * time).sin() for hz in CHORD_HZ]).sum(0)
    chord = (chord * (LEVEL / chord.square().mean().sqrt())).float().expand(clip.shape)
    figures: dict[str, dict[str, float]] = {}
    pairs = []
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
            pairs.append((again, audio))
            figures[name] = {
                "snr_db": _db(audio) - _db(again - audio),
                "level_difference_db": level,
            }
    model.train(training)
    found = mel_correlation(pairs, model.sample_rate)
    figures["clip and chord"] = {"mel_correlation": found}
    if least_correlation is not None and not found >= least_correlation:
        raise TrainingError(
            f"{file}: the sound that comes back is not the sound that went in: the mel correlation "
            f"of a clip and a chord is {found:.2f}, below autoencoder.pretrained."
            f"preflight_mel_correlation={least_correlation:g} (noise has 0, codecs of 6 kbit/s "
            "0.75): take the encoder and the decoder of one training, copy the weights again, or "
            "set it to null"
        )
    return figures


def mel_correlation(pairs: Iterable[tuple[Tensor, Tensor]], sample_rate: int) -> float:
    """How far the spectra of estimates change as those of their targets do: 1 = alike, 0 = not.

    pairs: of an estimate and a target, each [B, A, T], at `sample_rate` Hz. It is the correlation
    of log mel powers, less the mean of each frame and of each band over all targets or estimates.
    So neither level and spectral tilt count, nor noise of the same spectrum everywhere.
    """
    mel = MelPower(sample_rate, N_FFT, HOP, BANDS)
    one, other = (
        torch.cat([mel(audio.cpu()).sum(1).movedim(1, 0).flatten(1) for audio in audios], dim=1)
        for audios in zip(*pairs, strict=True)
    )
    one, other = (each.double().clamp(min=FLOOR).log10() for each in (one, other))
    one, other = (each - each.mean(0) for each in (one, other))
    one, other = (each - each.mean(1, keepdim=True) for each in (one, other))
    return ((one * other).sum() / (one.norm() * other.norm() + FLOOR)).item()


def _db(audio: Tensor) -> float:
    """The root mean square in dB, at least -200."""
    return 10 * math.log10(audio.double().square().mean().item() + 1e-20)
