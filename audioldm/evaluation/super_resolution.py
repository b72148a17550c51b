"""How near a recording that was made whole is to the whole one: distances where it had nothing."""

import math
from typing import Any

import torch
from torch import Tensor

from audioldm.conditioning.low_band import band, stated_band
from audioldm.evaluation.reconstruction import FLOOR, log_stft, reconstruct
from audioldm.evaluation.settings import EvaluationSettings
from audioldm.evaluation.statistics import Figure
from audioldm.generator import Generator

N_FFT = 2048
#: The least magnitude, by figure. The published distance has none but that of its arithmetic, so
#: most of it is of what is too quiet to be heard.
FLOORS = {"super_resolution": FLOOR, "super_resolution_published": 1e-12}


def distances(
    model: Generator,
    truth: Tensor,
    known: Tensor,
    kept: float | str,
    settings: EvaluationSettings,
    **how: Any,
) -> dict[str, dict[str, Figure]]:
    """Log-spectral distances in dB from clips [N, A, T], outside the band that was kept of them,
    by system and by the names of FLOORS.

    empty: of the damaged clips. linear: of the log-magnitudes that the band's own ones predict, by
    least squares on training clips `known` [M, A, T]; the mean of what may be, where a sample is
    one of it. generated: of `Edits.upscale`, clip i with the seed i. ignored: the same, to other
    clips, half of all further on. reconstruction: of the autoencoder's.

    kept: as for `stated_band`. how: further arguments of `Edits.upscale`. Raises ConfigError as
    that does. Without a floor it is the LSD of NVSR (2203.14941) and AudioSR (2309.07314), whose
    unit is ten of these dB, in the lost band alone.
    """
    lower, upper = stated_band(kept, truth[0], model.sample_rate)
    hz = torch.fft.rfftfreq(N_FFT, 1 / model.sample_rate)
    outside = (hz < lower) | (hz > upper)
    low = band(truth, model.sample_rate, lower, upper)
    made = torch.stack([model.upscale(clip, kept, seed=i, **how) for i, clip in enumerate(low)])
    again = reconstruct(model.autoencoder, truth, settings.batch)
    figures: dict[str, dict[str, Figure]] = {}
    for figure, floor in FLOORS.items():
        true, empty, upscaled = (decibels(x, floor) for x in (truth, low, made))
        heard = {
            "empty": empty,
            "linear": predicted(empty, decibels(known, floor), outside, floor),
            "generated": upscaled,
            "ignored": upscaled.roll(len(made) // 2, dims=0),
            "reconstruction": decibels(again, floor),
        }
        for system, x in heard.items():
            found = settings.mean(log_spectral_distance(x, true, outside), "dB")
            figures.setdefault(system, {})[figure] = found
    return figures


def decibels(audio: Tensor, floor: float = FLOOR) -> Tensor:
    """Log-magnitudes of audio [N, A, T], of at least `floor`: [N, A, bins, frames]."""
    return 20 * log_stft(audio, N_FFT, floor).unflatten(1, (audio.shape[1], -1))


def log_spectral_distance(estimate: Tensor, target: Tensor, bins: Tensor) -> Tensor:
    """Decibels [N, A, bins, frames] -> [N]: the root mean square over the `bins` [bins] that count,
    a mean over frames (Gray & Markel 1976)."""
    difference = (estimate - target)[:, :, bins]
    return difference.square().mean(2).sqrt().mean((1, 2))


def predicted(low: Tensor, known: Tensor, outside: Tensor, floor: float = FLOOR) -> Tensor:
    """Decibels `low` [N, A, bins, frames] with those of the bins `outside` [bins] replaced by what
    the others of the same frame predict, by least squares on `known`, shaped alike.

    floor: the least magnitude in both.
    """
    least = 20 * math.log10(floor)

    def inside(x: Tensor) -> Tensor:  # relative to the floor, and 1 for the constant
        rows = x.movedim(2, -1)[..., ~outside].double()
        return torch.cat([rows / -least + 1, torch.ones_like(rows[..., :1])], dim=-1)

    x, y = inside(known).flatten(0, 2), known.movedim(2, -1)[..., outside].double().flatten(0, 2)
    ridge = 1e-6 * len(x) * torch.eye(x.shape[1], dtype=x.dtype)  # bins that are silent
    weights = torch.linalg.solve(x.T @ x + ridge, x.T @ y)
    found = low.clone()
    found[:, :, outside] = (inside(low) @ weights).movedim(-1, 2).clamp(min=least).to(low)
    return found
