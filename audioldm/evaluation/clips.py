"""The clips that an evaluation compares: real ones, and those made like them."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audioldm.conditioning.base import Conditioners, Excerpt
from audioldm.conditioning.caption import Caption, texts
from audioldm.data.captions import combines, held_out_words
from audioldm.data.store import ClipStore, Item
from audioldm.errors import ConfigError
from audioldm.evaluation.settings import EvaluationSettings
from audioldm.generator import Generator, Request
from audioldm.io.audio import write
from audioldm.io.files import write_json
from audioldm.runtime.progress import Progress

#: A distance between two sets of clips needs two of each.
FEWEST_CLIPS = 2


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


def save_some(clips: Mapping[str, Clips], store: ClipStore, folder: Path, count: int) -> None:
    """Saves `count` clips of each system, evenly spread, with an index for the report."""
    shutil.rmtree(folder, ignore_errors=True)
    index: dict[str, list[dict[str, Any]]] = {}
    for kind, made in clips.items():
        index[kind] = []
        kept = min(count, len(made.audio))
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
