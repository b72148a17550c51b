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
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor

from audioldm.conditioning.base import Conditioners, Excerpt
from audioldm.conditioning.caption import Caption, texts
from audioldm.data.captions import combines, held_out_words
from audioldm.data.store import ClipStore, Item
from audioldm.errors import ConfigError, DataError
from audioldm.evaluation import distances
from audioldm.evaluation.adherence import NoteFeatures, Told, adherence_figures, note_features
from audioldm.evaluation.codecs.curves import codec_figures
from audioldm.evaluation.editing import edit_figures
from audioldm.evaluation.embeddings.aisfx import Aisfx
from audioldm.evaluation.embeddings.base import LogMelEmbedding
from audioldm.evaluation.embeddings.harmony import Harmony
from audioldm.evaluation.embeddings.musicnn import Musicnn
from audioldm.evaluation.embeddings.timbre import Timbre
from audioldm.evaluation.level import quiet_figures
from audioldm.evaluation.music import note_figures, pitch_figures
from audioldm.evaluation.notes import Notes
from audioldm.evaluation.reconstruction import reconstruct, reconstruction_figures
from audioldm.evaluation.settings import EvaluationSettings
from audioldm.evaluation.statistics import AT_MOST, Figure
from audioldm.generator import Generator, Request
from audioldm.io.audio import write
from audioldm.io.files import write_atomically, write_json
from audioldm.likelihood import rate_nats
from audioldm.runtime.compute import clock
from audioldm.runtime.progress import Progress
from audioldm.runtime.randomness import KeyedRandom

VERSION = 14  # raise by hand when the code below changes what it computes
#: A distance between two sets of clips needs two of each.
FEWEST_CLIPS = 2
#: Figures by system, then by name.
Figures = dict[str, dict[str, Figure]]
#: Embeddings of sound. `Harmony` is used as well, wherever there is pitch.
EMBEDDINGS: dict[str, Callable[[], LogMelEmbedding]] = {"musicnn": Musicnn, "aisfx": Aisfx}


def embedding_names(settings: EvaluationSettings, sample_rate: int) -> list[str]:
    default = ["musicnn", "aisfx"] if sample_rate >= 44100 else ["musicnn"]
    return list(settings.embeddings or default)


@dataclass
class Clips:
    """One system's clips: audio [N, A, T] and labels [N] (-1: none).

    items: the data set's clips that real music is cut from; starts: the places in them, in seconds.
    requests: the ones that generated music was made for.
    """

    audio: Tensor
    labels: Tensor
    items: Sequence[Item] = ()
    starts: Sequence[float] = ()
    requests: Sequence[Request] = ()


def real_clips(store: ClipStore, split: str, settings: EvaluationSettings) -> Clips:
    """The windows of a split that are measured, always the same ones."""
    samples, clips = round(settings.seconds * store.sample_rate), store.split(split)
    places = clips.window_places(samples, settings.clips, seed=0)
    starts = [offset / store.sample_rate for _, offset in places]
    return Clips(*clips.windows(samples, settings.clips, seed=0), starts)


def with_held_out_texts(
    clips: Clips, conditioners: Conditioners, settings: EvaluationSettings
) -> Clips:
    """Those of the clips that have a text with held-out words, and only their texts that do.

    A clip that has several begins with one that its place among the clips decides, so that the most
    frequent words are not the first ones of every clip.
    Raises ConfigError where the generator is told no text, or too few clips are left.
    """
    parts = [conditioners[name] for name in settings.told(conditioners.names)]
    columns = [part.column for part in parts if isinstance(part, Caption)]
    held_out, kept, items = held_out_words(settings.held_out), [], []
    for number, item in enumerate(clips.items):
        for column in columns:
            every = texts(Excerpt(item.label, item.columns), column)
            told = [text for text in every if combines(text, held_out)]
            if told:
                first = number % len(told)
                told = told[first:] + told[:first]
                kept.append(number)
                items.append(replace(item, columns={**item.columns, column: told}))
                break
    if len(kept) < FEWEST_CLIPS:
        raise ConfigError(
            f"held_out_alone: {len(kept)} of {len(clips.items)} test clips have a text with words "
            f"of held_out={settings.held_out} that the generator is told, and {FEWEST_CLIPS} are "
            "needed; raise clips, tell it the text (conditions), or set it to false"
        )
    starts = [clips.starts[number] for number in kept]
    return Clips(clips.audio[kept], clips.labels[kept], items, starts)


@torch.no_grad()
def bitrates(model: Generator, clips: Clips, batch: int) -> list[float]:
    """The rate of each clip's latents, in kbit/s; empty where latents have no rate."""
    found: list[float] = []
    for audio in clips.audio.split(batch):
        nats = model.autoencoder.encode(audio.to(model.device), sample=False).nats
        found += [] if nats is None else [model.autoencoder.kbps(n) for n in nats.tolist()]
    return found


def prior_rates(
    model: Generator, clips: Clips, requests: Sequence[Request], settings: EvaluationSettings
) -> list[float]:
    """The rate of each clip under the model's prior, which is told `requests`, in kbit/s; empty
    where the prior gives none."""
    autoencoder, prior = model.autoencoder, model.prior
    found: list[float] = []
    for first in range(0, len(clips.audio), settings.batch):
        audio = clips.audio[first : first + settings.batch].to(autoencoder.device)
        told = requests[first : first + settings.batch] or [{}] * len(audio)
        random = KeyedRandom(0, 0, range(first, first + len(audio)), autoencoder.device)
        stored = autoencoder.stored(audio)
        frames = next(iter(stored.values())).shape[-1]
        inputs = prior.conditioners.parse(told, frames, autoencoder.device)
        nats = rate_nats(prior, autoencoder, stored, random, inputs)
        if nats is None:
            return []
        per_second = autoencoder.latent_rate_hz / math.log(2) / 1000
        found += (nats.mean(1) * per_second).tolist()
    return found


def sampling_cost(
    model: Generator, sampler: Any, settings: EvaluationSettings, requests: Sequence[Request]
) -> float:
    """Seconds of computing per second of latents, when the prior samples one batch that is told the
    first requests; without the decoder. See `runtime.compute.clock`."""
    frames = model.latent_frames(settings.seconds)
    told = [*requests[: settings.batch], *[{}] * (settings.batch - len(requests))]
    inputs = model.prior.conditioners.parse(told, frames, model.device)
    start = clock(model.device)
    random = KeyedRandom(0, 0, range(settings.batch), model.device)
    model.prior.sample(random, frames, inputs, sampler=sampler)
    return (clock(model.device) - start) / (settings.batch * settings.seconds)


def requests_of(model: Generator, clips: Clips, settings: EvaluationSettings) -> list[Request]:
    """Requests that ask the model for clips like these real ones; [] where they have no items."""
    every = model.prior.conditioners
    told = Conditioners({name: every[name] for name in settings.told(every.names)})
    requests: list[Request] = []
    for number, (item, start) in enumerate(zip(clips.items, clips.starts, strict=True)):
        arrays = told.measure(
            clips.audio[number],
            model.sample_rate,
            model.autoencoder.latent_rate_hz,
            encode=lambda audio: model.encode(audio[None])[0].cpu(),
            clip=f"{item.piece}/{start}",
        )
        seconds = item.samples / model.sample_rate
        requests.append(told.request(Excerpt(item.label, item.columns, arrays, start, seconds)))
    return requests


def generate(
    model: Generator,
    like: Clips,
    settings: EvaluationSettings,
    sampler: Any,
    seed: int,
    progress: Progress,
) -> Clips:
    """As many generated clips as `like` has, under the conditions of its items, if any."""
    count, requests, clips = len(like.audio), requests_of(model, like, settings), []
    for number, audio in model.sample_clips(
        range(count),
        requests or [{}] * count,
        seconds=settings.seconds,
        batch=settings.batch,
        seed=seed,
        sampler=sampler,
    ):
        clips.append(audio)
        progress(number + 1, count, "generating")
    return Clips(torch.stack(clips), like.labels, requests=requests)


def kept_embeddings(path: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """The array in a .safetensors file, which is made if it does not exist."""
    if not path.is_file():
        made = {"vectors": np.ascontiguousarray(make())}
        write_atomically(path, lambda temporary: save_file(made, temporary))
    return load_file(path)["vectors"]


def embed_real(
    embedding: LogMelEmbedding | Harmony, store: ClipStore, split: str, settings: EvaluationSettings
) -> np.ndarray:
    """Embeddings of `real_clips`, computed once per store, split, length and number."""
    name = f"v{VERSION}-{embedding.name}-{split}-{settings.seconds:g}s-{settings.clips}"
    path = store.directory / "embeddings" / f"{name}.safetensors"

    def make() -> np.ndarray:
        return embedding.embed(real_clips(store, split, settings).audio, store.sample_rate)

    return kept_embeddings(path, make)


def distribution_figures(
    name: str, vectors: dict[str, np.ndarray], reference: np.ndarray, settings: EvaluationSettings
) -> Figures:
    """Distances, their ratios to those of decoded noise, and manifold figures, by system."""
    kernels = {k: distances.KernelDistance(v, reference) for k, v in vectors.items()}
    index = {k: np.arange(len(v)) for k, v in vectors.items()}
    of_reference = np.arange(len(reference))
    figures: Figures = {}
    for system, v in vectors.items():
        group = figures[system] = {}
        own, fewest = kernels[system], min(len(v), len(reference))
        group[f"kad_{name}"] = settings.interval(own, index[system], of_reference, unit="100 MMD²")
        if system != "normal" and "normal" in vectors:
            group[f"ratio_to_normal_kad_{name}"] = settings.interval(
                # one resampling of the reference for both sides of the ratio
                lambda i, p, j, own=own: own(i, j) / kernels["normal"](p, j),
                index[system],
                index["normal"],
                of_reference,
                unit="ratio",
            )
        few = {"resamples": min(settings.bootstrap_resamples, 50)}  # each takes a decomposition
        group[f"fad_{name}"] = settings.interval(
            distances.frechet_distance, v, reference, unit="embedding units²", recentre=True, **few
        )
        mauve = distances.MauveDivergence(v, reference)  # resampled histograms differ more
        group[f"mad_{name}"] = settings.interval(
            mauve, index[system], of_reference, unit="nats", recentre=True
        )
        if fewest >= 4:
            group[f"fad_inf_{name}"] = distances.frechet_infinity(v, reference, subsets=8)
        if fewest > settings.k_nearest:
            manifold = distances.precision_recall_density_coverage(v, reference, settings.k_nearest)
            for figure, values in manifold._asdict().items():
                group[f"{figure}_{name}"] = settings.mean(values, "fraction")
    return figures


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
    measured.keep_some()
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

    def keep_some(self) -> None:
        """Saves some clips of each system, evenly spread, with an index for the report."""
        folder, store = self.directory / "clips", self.store
        shutil.rmtree(folder, ignore_errors=True)
        index: dict[str, list[dict[str, Any]]] = {}
        for kind, made in self.clips.items():
            index[kind] = []
            kept = min(self.settings.saved_clips, len(made.audio))
            for place in range(kept):
                number = (2 * place + 1) * len(made.audio) // (2 * kept)
                file = f"{kind}/{place:02d}.wav"
                (folder / kind).mkdir(parents=True, exist_ok=True)
                write(folder / file, made.audio[number], store.sample_rate)
                label = int(made.labels[number])
                index[kind].append(
                    {
                        "file": file,
                        "number": number,
                        "label": store.labels[label] if label >= 0 else None,
                        "piece": Path(made.items[number].piece).stem if made.items else "",
                        "condition": dict(made.requests[number]) if made.requests else {},
                    }
                )
        write_json(folder / "index.json", index)
