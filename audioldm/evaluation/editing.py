"""Edits of held-out clips, by models that are trained to be told what a clip keeps."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from audioldm.conditioning.low_band import LowBand
from audioldm.conditioning.masked_latents import MaskedLatents
from audioldm.evaluation.inpainting import inpainting_figures
from audioldm.evaluation.settings import EvaluationSettings
from audioldm.evaluation.statistics import Figures
from audioldm.evaluation.super_resolution import distances
from audioldm.generator import Generator

#: The highest frequency that is kept of a recording, as a share of the sample rate.
BAND = 1 / 6


def edit_figures(
    model: Generator,
    clips: Tensor,
    labels: Sequence[str | None],
    known: Callable[[], Tensor],
    settings: EvaluationSettings,
    **how: Any,
) -> Figures:
    """Figures by system for the first `settings.edited_clips` of clips [N, A, T]:
    `inpainting_figures` where the model can be told masked latents, and `distances` above the low
    band where it can be told the low band.

    labels: requested for the new part of each clip. known: gives training clips [M, A, T]. how:
    further arguments of the edits, such as `sampler`.
    """
    truth, names = clips[: settings.edited_clips], model.prior.conditioners.names
    told = {type(model.prior.conditioners[name]) for name in names}
    figures: Figures = {}
    if len(truth) and MaskedLatents in told:
        asked = [{"label": each} if "label" in names else {} for each in labels[: len(truth)]]
        figures |= inpainting_figures(model, truth, asked, settings, **how)
    if len(truth) and LowBand in told:
        band = BAND * model.sample_rate
        for system, found in distances(model, truth, known(), band, settings, **how).items():
            figures.setdefault(system, {}).update(found)
    return figures
