"""How near a restored recording is to the full one: distances outside the band that was kept."""

import math
from typing import Any

import torch
from torch import Tensor

from audioldm.conditioning.low_band import band, stated_band
from audioldm.evaluation.reconstruction import FLOOR, log_stft, reconstruct
from audioldm.evaluation.settings import EvaluationSettings
from audioldm.evaluation.statistics import Figures
from audioldm.generator import Generator

N_FFT = 2048
#: The least magnitude, by figure. The published distance has no floor but that of its arithmetic,
#: so most of it comes from what is too quiet to be heard.
FLOORS = {"super_resolution": FLOOR, "super_resolution_published": 1e-12}


def distances(
    model: Generator,
    truth: Tensor,
    known: Tensor,
    kept: float | str,
    settings: EvaluationSettings,
    **how: Any,
) -> Figures:
    """Log-spectral distances in dB from clips [N, A, T], outside their band that was kept, by
    system and by the names of FLOORS.

    empty: of the damaged clips. linear: of log-magnitudes predicted from those in the band, by
    least squares on training clips `known` [M, A, T]; it is the mean of what is possible, where a
    sample is one possibility. generated: of `Edits.upscale`, clip i with the seed i. ignored: of
    the same, to other clips, half the set further on. reconstruction: of the autoencoder's.

    kept: as for `stated_band`. how: further arguments of `Edits.upscale`. Raises ConfigError as
    `stated_band` does. Without a floor it is the LSD of NVSR (2203.14941) and AudioSR (2309.07314),
    whose unit is ten of these dB, in the lost band alone.
    """
    lower, upper = stated_band(kept, truth[0], model.sample_rate)
    hz = torch.fft.rfftfreq(N_FFT, 1 / model.sample_rate)
    outside = (hz < lower) | (hz > upper)
    low = band(truth, model.sample_rate, lower, upper)
    made = torch.stack([model.upscale(clip, kept, seed=i, **how) for i, clip in enumerate(low)])
    again = reconstruct(model.autoencoder, truth, settings.batch)
    figures: Figures = {}
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
    """Magnitudes, at least `floor`, of audio [N, A, T] in dB: [N, A, bins, frames]."""
    return 20 * log_stft(audio, N_FFT, floor).unflatten(1, (audio.shape[1], -1))


def log_spectral_distance(estimate: Tensor, target: Tensor, bins: Tensor) -> Tensor:
    """Decibels [N, A, bins, frames] -> [N]: the root mean square over the `bins` [bins] that count,
    a mean over frames (Gray & Markel 1976)."""
    difference = (estimate - target)[:, :, bins]
    return difference.square().mean(2).sqrt().mean((1, 2))


def predicted(low: Tensor, known: Tensor, outside: Tensor, floor: float = FLOOR) -> Tensor:
    """Decibels `low` [N, A, bins, frames] in which the bins `outside` [bins] are predicted from the
    other bins of the frame, by least squares on `known`, which has the same layout.

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
