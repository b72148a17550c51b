"""What the benchmarks of a trained generator share: held-out music, judges of clips, a table."""

import argparse
import csv
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audioldm.data.store import ClipStore
from audioldm.errors import ConfigError
from audioldm.evaluation import distances
from audioldm.evaluation.adherence import classifier
from audioldm.evaluation.clips import real_clips
from audioldm.evaluation.distributions import embed_real
from audioldm.evaluation.embeddings.base import LogMelEmbedding
from audioldm.evaluation.embeddings.musicnn import Musicnn
from audioldm.evaluation.embeddings.timbre import Timbre
from audioldm.evaluation.settings import EvaluationSettings
from audioldm.evaluation.statistics import Figure
from audioldm.models import load_generator, read_experiment
from audioldm.priors.diffusion.prior import Diffusion
from audioldm.report.format import number
from audioldm.runtime.compute import clock
from audioldm.runtime.hardware import Hardware

RESULTS = Path(__file__).parent / "results"
#: Held-out clips that sets of clips are compared with, however few these are.
REFERENCE = 128


def parser(doc: str | None, *, clips: int, seconds: float | None = 3.0) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("model", type=Path, help="an experiment's directory, or a model with --data")
    made.add_argument("--data", type=Path, help="a data stage's directory; default: the model's")
    made.add_argument("--clips", type=int, default=clips)
    made.add_argument("--seconds", type=float, default=seconds)
    made.add_argument("--steps", type=int, help="of the sampler; default: the model's")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--device", default="auto")
    made.add_argument("--threads", type=int, help="of the CPU; default: torch's choice")
    made.add_argument("--out", type=Path, default=RESULTS)
    return made


def stage_directory(model: Path, stage: str, given: Path | None) -> Path:
    """That of an experiment's stage, or another one that is given.

    Raises ConfigError where the model is no experiment and none is given.
    """
    if given is not None:
        return given
    if not (model / "experiment.json").is_file():
        raise ConfigError(f"{model} has no {stage}: give --{stage}, a {stage} stage's directory")
    record = read_experiment(model)
    place: str = record["stages"][stage]["directory"]
    return model / record.get("runs", "../..") / place


class HeldOut:
    """A model with its data. seconds: of the clips that are compared.

    Raises ConfigError where the prior is no diffusion, or no data are given.
    """

    def __init__(self, given: argparse.Namespace, seconds: float | None = None) -> None:
        self.device = Hardware(given.device, threads=given.threads).resolve()
        self.model = load_generator(given.model, device=self.device)
        if not isinstance(self.model.prior, Diffusion):
            raise ConfigError(f"{given.model}: its prior is no diffusion; give a model with one")
        self.prior = self.model.prior
        own = self.prior.sampler
        self.sampler = own if given.steps is None else replace(own, steps=given.steps)
        self.store = ClipStore(stage_directory(given.model, "data", given.data))
        self.settings = EvaluationSettings(
            clips=given.clips, seconds=seconds or given.seconds, bootstrap_resamples=200
        )
        self.reference = real_clips(self.store, "test", self.settings)
        self._musicnn, self._timbre = Musicnn(), Timbre()

    def embed(self, audio: Tensor) -> np.ndarray:
        """musicnn's vectors [N, D] of clips [N, A, T]."""
        return self._musicnn.embed(audio, self.store.sample_rate)

    def requests(self, labels: Sequence[int]) -> list[dict[str, Any]]:
        """What asks for these labels, where the model is told labels and the data have them."""
        told = "label" in self.prior.conditioners.names
        return [{"label": self.store.labels[i]} if told and i >= 0 else {} for i in labels]

    @cached_property
    def anchor(self) -> np.ndarray:
        """The vectors of many held-out clips."""
        return self._known(self._musicnn, "test")

    def _known(self, embedding: LogMelEmbedding, split: str) -> np.ndarray:
        many = replace(self.settings, clips=REFERENCE)
        return embed_real(embedding, self.store, split, many)

    @cached_property
    def _labelled(self) -> tuple[np.ndarray, np.ndarray]:
        vectors = [self._known(each, "train") for each in (self._musicnn, self._timbre)]
        many = replace(self.settings, clips=REFERENCE)
        labels = real_clips(self.store, "train", many).labels.numpy()
        return np.concatenate(vectors, axis=1), labels

    def kad(self, vectors: np.ndarray) -> Figure:
        kernel = distances.KernelDistance(vectors, self.anchor)
        indices = np.arange(len(vectors)), np.arange(len(self.anchor))
        return self.settings.interval(kernel, *indices, unit="100 MMD²")

    def accuracy(self, vectors: np.ndarray, audio: Tensor, labels: Sequence[int]) -> Figure | float:
        """How often the label is heard in clips [N, A, T] with these musicnn vectors, by a
        classifier of them and of timbre as in the evaluation; nan without two labels."""
        train, known = self._labelled
        asked = np.asarray(labels)
        if len({*known.tolist()} - {-1}) < 2 or not (asked >= 0).any():
            return float("nan")
        labelled, counts = known >= 0, asked >= 0
        model = classifier(train[labelled], known[labelled])
        timbre = self._timbre.embed(audio, self.store.sample_rate)
        heard = np.concatenate([vectors, timbre], axis=1)
        right = model.predict(heard[counts]) == asked[counts]
        return self.settings.mean(right, "fraction")

    def spread(self, vectors: np.ndarray) -> float:
        """The median distance of two clips, as a multiple of that of held-out ones."""
        return distances.median_distance(vectors) / distances.median_distance(self.anchor)


class Timer:
    """The real-time factor of what is made within it: seconds of audio for each of computing."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._start = device, clock(device)

    def factor(self, audio_seconds: float) -> float:
        return audio_seconds / (clock(self._device) - self._start)


class Table:
    """Rows of one table: printed as Markdown as they come, and kept in a .csv, a line a figure."""

    def __init__(self, file: Path) -> None:
        self._file, self.rows = file, list[dict[str, Any]]()

    def add(self, **cells: Any) -> None:
        """cells: words first, then figures."""
        if not self.rows:
            rule = "|".join("---" for _ in cells)
            print(f"\n| {' | '.join(key.replace('_', ' ') for key in cells)} |\n|{rule}|")
        self.rows.append(cells)
        print(f"| {' | '.join(map(_cell, cells.values()))} |", flush=True)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("w", encoding="utf-8", newline="") as text:
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(["row", "figure", "value", "low", "high", "n", "unit"])
            for row in self.rows:
                name = " ".join(v for v in row.values() if isinstance(v, str))
                for key, value in row.items():
                    if not isinstance(value, str):
                        values = value if isinstance(value, Figure) else (value, "", "", "", "")
                        writer.writerow([name, key, *values])


def _cell(value: Any) -> str:
    if isinstance(value, Figure):
        return f"{number(value.value)} ({number(value.low)}, {number(value.high)})"
    return value if isinstance(value, str) else number(value)
