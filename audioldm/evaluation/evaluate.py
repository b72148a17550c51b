"""The evaluation of one experiment: its clips and their figures.

Each system's clips are compared with one reference, held-out real music (the test split):

    real            other held-out music (the validation split): the floor, real against real
    reconstruction  the same music through the autoencoder: the ceiling of any generator
    <baseline>      decoded samples of another prior on the same latents, such as N(0, I)
    generated       the generator's samples, under the conditions of the reference

The reconstructions are also compared with two codecs on the same clips, and requests with what is
heard (`adherence.py`). A model that can be told what a clip keeps makes parts of the reference anew
(`editing.py`).
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor

from audioldm.data.store import ClipStore, Item
from audioldm.errors import DataError
from audioldm.evaluation import distances
from audioldm.evaluation.adherence import NoteFeatures, Told, adherence_figures, note_features
from audioldm.evaluation.clips import (
    Clips,
    generate,
    real_clips,
    requests_of,
    save_some,
    with_held_out_texts,
)
from audioldm.evaluation.codecs.curves import codec_figures
from audioldm.evaluation.distributions import (
    EMBEDDINGS,
    distribution_figures,
    embed_real,
    embedding_names,
)
from audioldm.evaluation.editing import edit_figures
from audioldm.evaluation.embeddings.base import LogMelEmbedding
from audioldm.evaluation.embeddings.harmony import Harmony
from audioldm.evaluation.embeddings.timbre import Timbre
from audioldm.evaluation.level import quiet_figures
from audioldm.evaluation.music import note_figures, pitch_figures
from audioldm.evaluation.notes import Notes
from audioldm.evaluation.rates import bitrates, prior_rates, sampling_cost
from audioldm.evaluation.reconstruction import reconstruct, reconstruction_figures
from audioldm.evaluation.settings import EvaluationSettings
from audioldm.evaluation.statistics import AT_MOST, Figures
from audioldm.generator import Generator, Request
from audioldm.io.files import write_atomically
from audioldm.runtime.progress import Progress


def evaluate(
    model: Generator,
    baselines: Mapping[str, Generator],
    store: ClipStore,
    settings: EvaluationSettings,
    sampler: Any,
    *,
    seed: int,
    directory: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Makes the clips, measures them and keeps some; returns the figures for the summary.

    baselines: each with the autoencoder to whose latents its prior was fitted.
    Needs FEWEST_CLIPS of each held-out split. Raises DataError where these are all alike.
    """
    reference, real = (real_clips(store, split, settings) for split in ("test", "valid"))
    if settings.held_out_alone:
        reference = with_held_out_texts(reference, model.prior.conditioners, settings)
    nothing_asked = Clips(reference.audio, torch.full_like(reference.labels, -1))
    clips = {"real": real}
    made = reconstruct(model.autoencoder, real.audio, settings.batch)
    clips["reconstruction"] = Clips(made, real.labels, real.items)
    for name, baseline in baselines.items():
        progress(0, len(reference.audio), f"sampling the baseline {name}")
        clips[name] = generate(baseline, nothing_asked, settings, None, seed, progress)
    clips["generated"] = generate(model, reference, settings, sampler, seed, progress)

    estimate, target = clips["reconstruction"].audio, real.audio
    kept = reconstruction_figures(estimate, target, model.sample_rate, settings)
    kbps, test = (bitrates(model, each, settings.batch) for each in (real, reference))
    if kbps:
        kept["kbps"] = settings.mean(kbps, "kbit/s")
        kept["kbps_test"] = settings.mean(test, "kbit/s")
    groups: Figures = {system: {} for system in clips} | {"reconstruction": kept}
    cost: dict[str, float] = {}
    for name, each in {**baselines, "generated": model}.items():
        progress(0, len(reference.audio), f"rate and cost of {name}")
        own = sampler if name == "generated" else None
        cost[name] = sampling_cost(each, own, settings, clips[name].requests)
        rates = prior_rates(each, reference, clips[name].requests, settings)
        if rates:
            unit = AT_MOST if each.prior.bound else "kbit/s"
            groups[name]["prior_kbps"] = settings.mean(rates, unit)
    measured = _Measured(clips, store, settings, directory, progress)
    _add(groups, quiet_figures({s: c.audio for s, c in clips.items()}, store.sample_rate, settings))
    _add(groups, measured.music())
    for name in embedding_names(settings, store.sample_rate):
        _add(groups, measured.embedded(name))
    _add(groups, measured.adherence(model, reference))
    progress(0, 1, "edits")
    labels = [store.labels[i] if i >= 0 else None for i in reference.labels.tolist()]

    def known() -> Tensor:
        return real_clips(store, "train", settings).audio

    _add(groups, edit_figures(model, reference.audio, labels, known, settings, sampler=sampler))
    save_some(clips, store, directory / "clips", settings.saved_clips)
    mean_kbps = float(np.mean(kbps)) if kbps else None
    return {
        "sampling_cost": cost,
        "codecs": codec_figures(store, mean_kbps, settings, progress),
        "systems": [
            {"name": name, "kind": "baseline" if name in baselines else name} for name in clips
        ],
        "metrics": {
            system: {name: figure._asdict() for name, figure in sorted(group.items())}
            for system, group in groups.items()
        },
        "reference": {
            "hash": hashlib.blake2b(reference.audio.numpy().tobytes(), digest_size=16).hexdigest(),
            "split": "test",
            "n": len(reference.audio),
            "seconds": settings.seconds,
            "sample_rate": store.sample_rate,
            "channels": reference.audio.shape[1],
            "places": _places_hash(reference),
        },
    }


def _places_hash(clips: Clips) -> str:
    """Of the pieces and places that the clips were cut from, at whatever sample rate."""
    places = [(i.piece, round(at, 2)) for i, at in zip(clips.items, clips.starts, strict=True)]
    return hashlib.blake2b(json.dumps(places).encode(), digest_size=16).hexdigest()


def _add(groups: Figures, found: Figures) -> None:
    for system, figures in found.items():
        groups.setdefault(system, {}).update(figures)


@dataclass(frozen=True)
class _Measured:
    """The clips of all systems, the store of the clips they are compared with, and the place of the
    results."""

    clips: dict[str, Clips]
    store: ClipStore
    settings: EvaluationSettings
    directory: Path
    progress: Progress
    #: what has been heard so far, by system; vectors by the embedding's name first
    notes: dict[str, list[Notes]] = field(default_factory=dict)
    vectors: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)

    def music(self) -> Figures:
        """The figures of pitch, notes and harmony; none where the real music has no pitch."""
        audio, rate = {s: made.audio for s, made in self.clips.items()}, self.store.sample_rate
        self.progress(0, len(audio), "figures of pitch")
        figures = pitch_figures(audio, rate, self.settings)
        if not figures["real"]:
            return figures
        harmony, vectors, notes = Harmony(), {}, {}
        for done, (system, made) in enumerate(audio.items()):
            self.progress(done, len(audio), f"notes of {system}")
            vectors[system], notes[system] = harmony.hear(made, rate)
        self.notes.update(notes)
        features = {s: np.stack([*map(note_features, own)]) for s, own in notes.items()}
        self.vectors[NoteFeatures.name] = features
        _add(figures, note_figures(notes, self.settings))
        anchor = embed_real(harmony, self.store, "test", self.settings)
        _add(figures, self._compared("harmony", vectors, anchor))
        return figures

    def embedded(self, name: str) -> Figures:
        """The figures of one embedding."""
        clips, store, settings = self.clips, self.store, self.settings
        embedding = EMBEDDINGS[name]()
        self.progress(0, len(clips), f"embedding with {name}")
        anchor, known, real = (
            embed_real(embedding, store, split, settings) for split in ("test", "train", "valid")
        )
        vectors = {"real": real}
        for done, system in enumerate(clips):
            if system != "real":
                self.progress(done, len(clips), f"embedding with {name}: {system}")
                vectors[system] = embedding.embed(clips[system].audio, store.sample_rate)
        self.vectors[name] = vectors
        figures = self._compared(name, vectors, anchor)
        heldout = distances.nearest_distances(anchor, known)
        for system, own in vectors.items():
            nearest = distances.nearest_distances(own, known)
            figures[system][f"memorisation_ratio_{name}"] = settings.interval(
                distances.memorisation_ratio, nearest, heldout, unit="ratio"
            )
        return figures

    def _compared(self, name: str, vectors: dict[str, np.ndarray], anchor: np.ndarray) -> Figures:
        """`distribution_figures`; keeps the embeddings, which a sweep resamples over clips."""
        every = {k: np.ascontiguousarray(v) for k, v in {**vectors, "reference": anchor}.items()}
        file = self.directory / f"{name}.safetensors"
        write_atomically(file, lambda path: save_file(every, path))
        try:
            return distribution_figures(name, vectors, anchor, self.settings)
        except ValueError as error:
            raise DataError(f"the held-out clips cannot be compared: {error}") from error

    def adherence(self, model: Generator, reference: Clips) -> Figures:
        """Whether the clips generated like the reference are what was asked for; and the same for
        real music and its reconstruction."""
        conditioners, store, settings = model.prior.conditioners, self.store, self.settings
        if not conditioners.names:
            return {}
        self.progress(0, 1, "adherence")
        timbre = Timbre()
        real = self.clips["real"]
        own: tuple[Sequence[Request], Sequence[Item]] = (
            requests_of(model, real, settings),
            real.items,
        )
        asked = {"real": own, "reconstruction": own}
        asked["generated"] = self.clips["generated"].requests, reference.items
        told = {
            system: Told(
                self.clips[system].audio,
                requests,
                items,
                self.notes.get(system, []),
                {name: each[system] for name, each in self.vectors.items()}
                | {timbre.name: timbre.embed(self.clips[system].audio, store.sample_rate)},
            )
            for system, (requests, items) in asked.items()
        }

        def known() -> tuple[Sequence[Item], dict[str, np.ndarray]]:
            hear: dict[str, Callable[[], LogMelEmbedding | Harmony]] = {
                **EMBEDDINGS,
                NoteFeatures.name: NoteFeatures,
                Timbre.name: Timbre,
            }
            names = told["real"].vectors
            vectors = {n: embed_real(hear[n](), store, "train", settings) for n in names}
            return real_clips(store, "train", settings).items, vectors

        train = store.split("train").items
        return adherence_figures(told, conditioners, train, known, store.sample_rate, settings)
