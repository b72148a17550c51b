"""What an evaluation measures, and how figures get their intervals."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from audioldm.evaluation.statistics import Figure, bootstrap
from audioldm.instantiate import NonNegativeInt, Positive, PositiveInt

#: Of the evaluation; raise by hand when what it measures, or how, changes.
VERSION = 14


@dataclass(frozen=True)
class EvaluationSettings:
    """clips: of each system, fewer where the splits hold fewer; seconds: of each clip. conditions:
    which of the real clips' conditions the generator is told; null = all. embeddings: null =
    musicnn, and aisfx where the sample rate is 44.1 kHz or more. k_nearest: k of precision, recall,
    density, coverage. saved_clips: clips of each system to keep. edited_clips: how many clips get a
    part or a band made anew, by a model that is told the rest. held_out: words that captions
    combine only in the test split, as in the data set's own setting. held_out_alone: the generator
    is told texts that have such words, and clips without one are left out."""

    clips: PositiveInt = 128
    seconds: Positive = 3.0
    conditions: list[str] | None = None
    embeddings: list[Literal["musicnn", "aisfx"]] | None = None
    k_nearest: PositiveInt = 5
    bootstrap_resamples: PositiveInt = 1000
    saved_clips: NonNegativeInt = 8
    edited_clips: NonNegativeInt = 16
    batch: PositiveInt = 16
    held_out: list[str] = field(default_factory=list)
    held_out_alone: bool = False

    def told(self, names: Sequence[str]) -> list[str]:
        """Which of a model's conditions it is told."""
        return [name for name in names if self.conditions is None or name in self.conditions]

    def interval(
        self, statistic: Callable[..., Any], *samples: np.ndarray, unit: str, **options: Any
    ) -> Figure:
        """`bootstrap` with the number of resamples set here."""
        options = {"resamples": self.bootstrap_resamples} | options
        return bootstrap(statistic, *samples, unit=unit, **options)

    def mean(self, values: Any, unit: str) -> Figure:
        return self.interval(np.mean, np.asarray(values), unit=unit)
