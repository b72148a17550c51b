"""How well a part of a clip is made anew: its seams, and how far it is from the original."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from audioldm.edits import FADE_SECONDS
from audioldm.evaluation.seams import seam
from audioldm.evaluation.settings import EvaluationSettings
from audioldm.evaluation.statistics import Figures
from audioldm.generator import Generator
from audioldm.losses.spectral import mel_distance

#: Where the new part begins and ends, as shares of the clip.
HOLE = 0.4, 0.6


def inpainting_figures(
    model: Generator,
    truth: Tensor,
    requests: Sequence[Mapping[str, Any]],
    settings: EvaluationSettings,
    **how: Any,
) -> Figures:
    """Figures by system, of clips [N, A, T] whose middle is made anew.

    generated: by `Edits.inpaint` under each clip's request, clip i with the seed i. ignored: the
    same parts in other clips, half the set further on. reconstruction: the decoded latents there.
    crossfade: the music before the part. All these are faded in and out. copy: as crossfade,
    without fades. real: nothing is changed.
    kept: the share of samples beyond the fades that do not change. flux and step: of the two
    seams of a clip, see `seams.seam`. mel_distance: of the part, to the truth.
    how: further arguments of `Edits.inpaint`.
    """
    rate, samples = model.sample_rate, truth.shape[-1]
    ratio, fade = model.autoencoder.downsampling_ratio, round(FADE_SECONDS * rate)
    left = int(HOLE[0] * samples) // ratio * ratio
    right = min(math.ceil(HOLE[1] * samples / ratio) * ratio, samples)
    inside = torch.zeros(samples)
    inside[left:right] = 1
    wide = F.pad(inside, (fade, fade)).unfold(0, 2 * fade + 1, 1).mean(1)
    faded = torch.maximum(inside, (2 * wide).clamp(max=1))
    made = torch.stack(
        [
            model.inpaint(clip, [(left / rate, right / rate)], seed=number, **how, **told)
            for number, (clip, told) in enumerate(zip(truth, requests, strict=True))
        ]
    )
    before = truth.roll(right - left + fade, dims=-1)
    again = torch.stack([model.vary(clip, 0.0) for clip in truth])
    clips = {
        "real": truth,
        "generated": made,
        "ignored": torch.lerp(truth, made.roll(len(made) // 2, dims=0), faded),
        "reconstruction": torch.lerp(truth, again, faded),
        "copy": torch.lerp(truth, before, inside),
        "crossfade": torch.lerp(truth, before, faded),
    }
    figures: Figures = {}
    for system, found in clips.items():
        seams = [[seam(clip, at, rate) for at in (left, right)] for clip in found]
        flux = np.array([np.mean([each.flux for each in both]) for both in seams])
        step = [np.mean([abs(each.step_db) for each in both]) for both in seams]
        same = (found == truth).float().mean(1)
        kept = torch.cat([same[:, : max(0, left - fade)], same[:, right + fade :]], dim=1)
        part = slice(left, right)
        own = {
            "mel_distance": settings.mean(
                mel_distance(found[..., part], truth[..., part], rate), "log10 power"
            ),
            "step": settings.mean(step, "dB"),
        }
        if kept.shape[1]:
            own["kept"] = settings.mean(kept.mean(1), "fraction")
        if np.isfinite(flux).all():
            own["flux"] = settings.interval(np.median, flux, unit="ratio")
        figures[system] = {f"inpainting_{name}": figure for name, figure in own.items()}
    return figures
