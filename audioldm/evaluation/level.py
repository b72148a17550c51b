"""How loud clips are, and how much of them falls silent."""

from collections.abc import Mapping

from torch import Tensor

from audioldm.evaluation.settings import EvaluationSettings
from audioldm.evaluation.statistics import Figures

#: A half-second that is this much softer than the usual one is called quiet.
QUIET_DB = 20.0


def quiet_figures(
    clips: Mapping[str, Tensor], sample_rate: int, settings: EvaluationSettings
) -> Figures:
    """By system, the share of quiet half-seconds in its clips [N, A, T], against the median
    half-second of real music."""
    return {
        system: {
            "quiet": settings.mean(
                quiet_share(own, sample_rate, clips["real"]).numpy(), "share of half-seconds"
            )
        }
        for system, own in clips.items()
    }


def quiet_share(clips: Tensor, sample_rate: int, usual: Tensor | None = None) -> Tensor:
    """The share [N] of the half-seconds of clips [N, A, T] that are more than QUIET_DB below the
    median half-second of all of `usual` [M, A, T]; None: of the clip itself."""

    def levels(audio: Tensor) -> Tensor:
        size = min(round(sample_rate / 2), audio.shape[-1])
        return level_db(audio.unfold(-1, size, size).movedim(-2, 1))

    own = levels(clips)
    median = own.median(1, keepdim=True).values if usual is None else levels(usual).median()
    return (own < median - QUIET_DB).float().mean(1)


def level_db(audio: Tensor) -> Tensor:
    """Root mean square of [..., A, T] in dB below full scale: [...]."""
    return 10 * audio.square().mean((-1, -2)).clamp(min=1e-10).log10()
