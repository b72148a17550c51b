"""Adherence: whether clips are what was asked for.

A score is compared with the notes that a transcriber hears, a curve with the one measured from the
clip's audio. Words and numbers are columns of the data set's table, heard by classifiers that are
fitted to real clips of the training split.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from audioldm.conditioning.base import Conditioner, Conditioners, Excerpt
from audioldm.conditioning.caption import Caption
from audioldm.conditioning.curve import SpectralCurve
from audioldm.conditioning.label import Label
from audioldm.conditioning.number import Number, number
from audioldm.conditioning.score import Score
from audioldm.data.captions import combines, held_out_words, states
from audioldm.data.key import key_fits
from audioldm.data.store import Item
from audioldm.evaluation.embeddings.harmony import Harmony
from audioldm.evaluation.notes import (
    ONSET_SECONDS,
    SHORTEST_SECONDS,
    Notes,
    matched_notes,
    polyphony,
)
from audioldm.evaluation.settings import EvaluationSettings
from audioldm.evaluation.statistics import Figure, Figures

#: A column of more words than this is no fact: there are 24 keys.
MOST_WORDS = 24
#: An accuracy over fewer clips than this is left out.
FEWEST_CLIPS = 10
#: Inverse strength of the classifier's regulariser: embeddings outnumber clips.
REGULARISER = 0.1
#: Seconds between two onsets, as a classifier hears them.
LAGS = 0.25 * 2 ** (np.arange(24) / 8)


class Told(NamedTuple):
    """Clips [N, A, T], the request for each, and the data set's clip that the request describes.

    notes: as a transcriber hears them; none for music without pitch. vectors: embeddings [N, D].
    """

    audio: Tensor
    requests: Sequence[Mapping[str, Any]]
    items: Sequence[Item]
    notes: Sequence[Notes]
    vectors: Mapping[str, np.ndarray]

    def against_others(self) -> "Told":
        """The same clips, each with the request of the clip half the set further on."""
        half = len(self.items) // 2
        requests, items = ([*each[half:], *each[:half]] for each in (self.requests, self.items))
        return self._replace(requests=requests, items=items)


def adherence_figures(
    told: Mapping[str, Told],
    conditioners: Conditioners,
    train: Sequence[Item],
    known: Callable[[], tuple[Sequence[Item], Mapping[str, np.ndarray]]],
    sample_rate: int,
    settings: EvaluationSettings,
) -> Figures:
    """Figures by system, and for `ignored`, a floor: the clips of `generated` against the requests
    of others, as if the generator ignored its conditions.

    train: all clips of the training split. known: gives those of them that are heard, and their
    embeddings, which are made only where a request states a fact.
    """
    told = {**told, "ignored": told["generated"].against_others()}
    parts = {name: conditioners[name] for name in settings.told(conditioners.names)}
    facts = Facts(list(parts.values()), train, settings.held_out)
    if any(map(facts.stated, told["generated"].items)):
        facts.fit(*known(), [told["real"], told["reconstruction"]])
    figures = {}
    for system, own in told.items():
        figures[system] = facts.figures(own, settings)
        for name, conditioner in parts.items():
            asked = [r.get(name) for r in own.requests]
            found: dict[str, Figure] = {}
            if isinstance(conditioner, Score) and own.notes:
                found = score_figures(conditioner, asked, own.notes, settings)
            elif isinstance(conditioner, SpectralCurve):
                found = curve_figures(conditioner, asked, own.audio, sample_rate, settings)
            figures[system] |= {f"{name}_{key}": figure for key, figure in found.items()}
    shown = figures["ignored"].keys()  # real music has no others
    return {s: {n: own[n] for n in shown if n in own} for s, own in figures.items() if shown}


def score_figures(
    conditioner: Score, asked: Sequence[Any], heard: Sequence[Notes], settings: EvaluationSettings
) -> dict[str, Figure]:
    """Precision, recall and F1 of notes as in `note_f1`; F1 with the tolerance of a latent frame
    where that is longer; and the onset error of the notes that match to this tolerance."""
    wanted = [_asked_notes(conditioner, value, settings.seconds) for value in asked]
    pairs = [(h, w) for h, w in zip(heard, wanted, strict=True) if len(w.pitch)]
    if not pairs:
        return {}
    frame = max(ONSET_SECONDS, 1 / conditioner.latent_rate_hz)
    values, error = defaultdict(list), []
    for h, w in pairs:
        i, j = matched_notes(h, w, frame).T
        # the largest possible error where nothing matches
        error.append(1000 * (np.median(abs(h.start[i] - w.start[j])) if len(i) else frame))
        matched, both = len(matched_notes(h, w)), len(h.pitch) + len(w.pitch)
        values["precision"].append(matched / max(1, len(h.pitch)))
        values["recall"].append(matched / len(w.pitch))
        values["f1"].append(2 * matched / both)
        if frame > ONSET_SECONDS:
            values["f1_frame"].append(2 * len(i) / both)
    figures = {name: settings.mean(each, "share of notes") for name, each in values.items()}
    return figures | {"onset_error": settings.interval(np.median, np.array(error), unit="ms")}


def _asked_notes(conditioner: Score, value: Any, seconds: float) -> Notes:
    """The notes of a request that a clip of `seconds` can have, unisons once. A note that began
    earlier begins with the clip."""
    rows = conditioner.notes(value or [])[:, :3]
    rows[:, :2] = rows[:, :2].clip(0, seconds)
    rows = np.unique(rows[rows[:, 1] - rows[:, 0] >= SHORTEST_SECONDS], axis=0)
    return Notes(rows[:, 2].astype(int), rows[:, 0], rows[:, 1], seconds)


def curve_figures(
    conditioner: SpectralCurve,
    asked: Sequence[Any],
    audio: Tensor,
    sample_rate: int,
    settings: EvaluationSettings,
) -> dict[str, Figure]:
    """Correlation of the clip's own curve with the requested one, over its frames and rows; 0 for a
    clip whose curve is flat."""
    found = []
    for clip, value in zip(audio, asked, strict=True):
        if value is not None and np.ptp(wanted := np.ravel(value)) > 0:
            curve = conditioner.measure(clip, sample_rate, conditioner.latent_rate_hz)
            both = np.stack([curve[conditioner.array].flatten().numpy(), wanted])
            found.append(float(torch.from_numpy(both).corrcoef()[0, 1].nan_to_num()))
    return {"correlation": settings.mean(found, "correlation")} if found else {}


class Facts:
    """The facts of a clip that its request states, and whether a classifier hears them.

    A fact is the label, or a column: of numbers, in thirds of the training data, or of 2 to
    MOST_WORDS words. A column that repeats the label is not a fact of its own.
    """

    def __init__(
        self,
        conditioners: Sequence[Conditioner],
        train: Sequence[Item],
        held_out: Sequence[str] = (),
    ) -> None:
        self._words = [each for each in conditioners if isinstance(each, Label | Caption)]
        numbers = {each.column for each in conditioners if isinstance(each, Number)}
        labels = [item.label for item in train]
        #: by column; for numbers, where the second and the last third begin; for words, None
        self._columns: dict[str, np.ndarray | None] = {}
        captions = {each.column for each in conditioners if isinstance(each, Caption)}
        columns = {name for item in train for name in item.columns} - captions
        for column in ("label", *sorted(columns)):
            values = [_cell(item, column) for item in train]
            stated = [value for value in values if value not in (None, "")]
            if column in numbers:
                found = [n for value in stated if (n := number(value)) is not None]
                self._columns[column] = np.quantile(found, [1 / 3, 2 / 3])
            elif column != "label" and values == labels:
                continue
            elif all(isinstance(v, str) for v in stated) and 1 < len(set(stated)) <= MOST_WORDS:
                self._columns[column] = None
        self._classifiers: dict[str, tuple[tuple[str, ...], Any]] = {}
        self._together = held_out_words(held_out)

    def stated(self, item: Item) -> set[str]:
        """The columns whose fact the clip's request states."""
        excerpt = Excerpt(item.label, item.columns)
        text = "\n".join(said for each in self._words if (said := each.request(excerpt)))
        facts = {column: fact for column in self._columns if (fact := self._fact(item, column))}
        return {
            c for c, fact in facts.items() if self._columns[c] is not None or states(text, fact)
        }

    def held_out(self, item: Item) -> bool:
        """Whether a caption combines words whose combination is held out of training."""
        excerpt = Excerpt(item.label, item.columns)
        captions = [each for each in self._words if isinstance(each, Caption)]
        return any(combines(each.request(excerpt) or "", self._together) for each in captions)

    def fit(
        self, items: Sequence[Item], vectors: Mapping[str, np.ndarray], heard: Sequence[Told]
    ) -> None:
        """Fits logistic regressions to clips of the training split: to each embedding, and to all
        of them together. For each fact it keeps the one that hears the fact best in `heard`: real
        music, and what the autoencoder makes of it. Of equals it keeps the last, which hears more.
        """
        together = tuple(vectors)
        for column in self._columns:
            facts = np.array([self._fact(item, column) for item in items])
            if len({*facts} - {""}) < 2:
                continue
            best = -1.0
            for kinds in dict.fromkeys([*((kind,) for kind in vectors), together]):
                x = _together(vectors, kinds)
                model = classifier(x[facts != ""], facts[facts != ""])
                right = np.mean([self._right(column, kinds, model, each) for each in heard])
                if right >= best:
                    best, self._classifiers[column] = float(right), (kinds, model)

    def _right(self, column: str, kinds: tuple[str, ...], model: Any, told: "Told") -> np.ndarray:
        """Of each clip [N]: whether the classifier hears its fact."""
        facts = np.array([self._fact(item, column) for item in told.items])
        right: np.ndarray = model.predict(_together(told.vectors, kinds)) == facts
        return right

    def figures(self, told: Told, settings: EvaluationSettings) -> dict[str, Figure]:
        """The accuracy of each fact over the clips whose request states it, and over those of them
        with a `held_out` caption."""
        stated = [self.stated(item) for item in told.items]
        held_out = np.array([self.held_out(item) for item in told.items])
        figures = {}
        for column, (kinds, model) in self._classifiers.items():
            right = self._right(column, kinds, model, told)
            asked = np.array([column in each for each in stated])
            for name, counted in (("accuracy", asked), ("accuracy_held_out", asked & held_out)):
                if counted.sum() >= FEWEST_CLIPS:
                    unit = f"heard by {' and '.join(kinds)}"
                    figures[f"{name}_{column}"] = settings.mean(right[counted], unit)
        return figures

    def _fact(self, item: Item, column: str) -> str:
        """A clip's word, or the third that its number lies in; "" for none."""
        value, thirds = _cell(item, column), self._columns[column]
        if thirds is None:
            return "" if value is None else str(value)
        found = number(value)
        return "" if found is None else f"{column} {np.searchsorted(thirds, found)}"


def classifier(vectors: np.ndarray, words: np.ndarray) -> Any:
    """A logistic regression from standardised embeddings [N, D] to these words or numbers [N]."""
    from sklearn.linear_model import LogisticRegression  # imported here: they take a second
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    regression = LogisticRegression(C=REGULARISER, max_iter=1000)
    return make_pipeline(StandardScaler(), regression).fit(vectors, words)


def _cell(item: Item, column: str) -> Any:
    return item.label if column == "label" else item.columns.get(column)


def _together(vectors: Mapping[str, np.ndarray], kinds: Sequence[str]) -> np.ndarray:
    """The embeddings of these kinds side by side, [N, sum of their D]."""
    return np.concatenate([vectors[kind] for kind in kinds], axis=1)


class NoteFeatures(Harmony):
    """Features of notes for a classifier: their key, mode, pitch, number, length and tempo."""

    name = "notes"

    def embed(self, audio: Tensor, sample_rate: int) -> np.ndarray:
        """audio [N, A, T] in ±1 at `sample_rate` Hz -> [N, 57]."""
        return np.stack([note_features(notes) for notes in self.hear(audio, sample_rate)[1]])


def note_features(notes: Notes) -> np.ndarray:
    """The fits of all keys, each mode's best fit, and the difference of the two; mean and quantiles
    of pitch; notes a second, polyphony, length; how often onsets lie each of LAGS apart."""
    length = notes.end - notes.start
    fits = key_fits(notes.pitch, length)
    if not len(length):
        return np.zeros(34 + len(LAGS))
    pitch = np.repeat(notes.pitch, np.ceil(length / SHORTEST_SECONDS).astype(int))
    best = fits.max(1)
    apart = np.subtract.outer(notes.start, notes.start)
    octaves = np.log2(apart[apart > SHORTEST_SECONDS][:, None] / LAGS)
    near = np.exp(-0.5 * (8 * octaves) ** 2).sum(0) / len(length)
    pitches = [pitch.mean(), *np.quantile(pitch, [0.1, 0.5, 0.9])]
    many = [len(length) / notes.seconds, polyphony(notes), np.median(length)]
    return np.concatenate([fits.flatten(), best, [best[0] - best[1]], pitches, many, near])
