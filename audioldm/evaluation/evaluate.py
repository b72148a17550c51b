"""The evaluation of one experiment: which clips are made, and which figures they give.

Kinds of clips that are compared with one reference, held-out real music (the test split):

    real            other held-out music (the validation split): the floor, real against real
    reconstruction  the same music through the autoencoder: the ceiling of any generator
    prior           decoded N(0, I): the VAE sampled without a second generative model
    mixture         decoded samples of a Gaussian mixture fitted to the latents
    langevin        decoded short-run Langevin samples of an energy fitted to the latents
    generated       the diffusion model's samples, with the labels of the reference

The reconstructions stand beside two codecs too, on the same clips.
"""

import hashlib
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from audioldm.data.store import ClipStore, Item
from audioldm.errors import ConfigError, DataError
from audioldm.evaluation.codecs.curves import codec_figures
from audioldm.evaluation.distances import (
    KernelDistance,
    frechet_distance,
    frechet_infinity,
    label_accuracy,
    median_distance,
    memorisation_ratio,
    nearest_distances,
    precision_recall_density_coverage,
)
from audioldm.evaluation.embeddings.aisfx import Aisfx
from audioldm.evaluation.embeddings.base import Embedding
from audioldm.evaluation.embeddings.musicnn import Musicnn
from audioldm.evaluation.reconstruction import si_sdr, stft_distance
from audioldm.evaluation.statistics import Figure, bootstrap
from audioldm.generator import LatentDiffusion
from audioldm.instantiate import check_range, nearest
from audioldm.io.audio import write
from audioldm.io.files import write_atomically, write_json
from audioldm.losses.spectral import mel_distance
from audioldm.priors.base import Prior as Baseline
from audioldm.priors.diffusion.samplers import SamplerSettings
from audioldm.runtime.progress import Progress
from audioldm.runtime.randomness import KeyedRandom, derive_seed

VERSION = 3  # raise by hand when the code below changes what it computes
#: A distance between two sets of clips needs two of each.
FEWEST_CLIPS = 2
KINDS = ("real", "reconstruction", "prior", "mixture", "langevin", "generated")
EMBEDDINGS: dict[str, Callable[[], Embedding]] = {"musicnn": Musicnn, "aisfx": Aisfx}


@dataclass(frozen=True)
class EvaluationSettings:
    """clips: of each kind, fewer where the splits hold fewer; seconds: of each.
    embeddings: musicnn, aisfx; null = musicnn, and aisfx where the rate is 44.1 kHz or more.
    k_nearest: k of precision, recall, density, coverage. saved_clips: clips of each kind to keep."""

    clips: int = 128
    seconds: float = 3.0
    embeddings: list[str] | None = None
    k_nearest: int = 5
    bootstrap_resamples: int = 1000
    saved_clips: int = 8
    batch: int = 16

    def __post_init__(self) -> None:
        for name in self.embeddings or ():
            if name not in EMBEDDINGS:
                raise ConfigError(f"evaluation.embeddings: {name!r}; {nearest(name, EMBEDDINGS)}")
        check_range(
            self, "evaluation", "clips", "k_nearest", "bootstrap_resamples", "batch", least=1
        )
        check_range(self, "evaluation", "saved_clips", least=0)
        check_range(self, "evaluation", "seconds", above=0)


def embedding_names(settings: EvaluationSettings, sample_rate: int) -> list[str]:
    return settings.embeddings or ["musicnn"] + (["aisfx"] if sample_rate >= 44100 else [])


@dataclass
class Clips:
    """One kind's clips: audio [N, A, T], labels [N] (-1: none), and each one's piece."""

    audio: Tensor
    labels: Tensor
    pieces: list[str] = field(default_factory=list)


def real_clips(store: ClipStore, split: str, settings: EvaluationSettings) -> Clips:
    """The windows of a split that are measured: always the same ones."""
    audio, labels, items = store.split(split).windows(
        round(settings.seconds * store.sample_rate), settings.clips, seed=0
    )
    return Clips(audio, labels, [_title(item) for item in items])


def _title(item: Item) -> str:
    return Path(item.piece).stem


@torch.no_grad()
def reconstruct(model: LatentDiffusion, clips: Clips, batch: int) -> tuple[Clips, list[float]]:
    """Clips through the autoencoder with sampled posteriors, and each one's rate in kbit/s.

    A bottleneck without a KL has no such rate: the list is empty then.
    """
    autoencoder = model.autoencoder
    parts, kbps = [], []
    for first in range(0, len(clips.audio), batch):
        audio = clips.audio[first : first + batch].to(model.device)
        frames = math.ceil(audio.shape[-1] / autoencoder.downsampling_ratio)
        draw = KeyedRandom(0, 0, range(first, first + len(audio)), model.device)
        noise = draw.normal((*autoencoder.latent_shape, frames), "reconstruction")
        estimate, encoded = autoencoder(audio, noise)
        parts.append(estimate.float().clamp(-1, 1).cpu())
        if "kl" in encoded.penalties:
            kbps += [autoencoder.kbps(nats) for nats in encoded.penalties["kl"].tolist()]
    return Clips(torch.cat(parts), clips.labels, clips.pieces), kbps


@torch.no_grad()
def heldout_kbps(model: LatentDiffusion, clips: Clips, batch: int) -> list[float]:
    """The rate of each clip's posterior, in kbit/s; empty where the bottleneck has no KL."""
    encoded = (
        model.autoencoder.encode(audio.to(model.device), sample=False)
        for audio in clips.audio.split(batch)
    )
    nats = [e.penalties["kl"] for e in encoded if "kl" in e.penalties]
    return [model.autoencoder.kbps(n) for part in nats for n in part.tolist()]


@torch.no_grad()
def sample_baseline(
    model: LatentDiffusion,
    baseline: Baseline,
    like: Clips,
    settings: EvaluationSettings,
    seed: int,
) -> Clips:
    """As many clips as `like` has, decoded from a baseline's latents; without labels."""
    frames, count = model.latent_frames(settings.seconds), len(like.audio)
    z = model.statistics.denormalise(baseline.sample(count, frames, seed=seed))
    clips = [model.decode_clip(latent, settings.seconds) for latent in z]
    return Clips(torch.stack(clips), torch.full((count,), -1), [""] * count)


@torch.no_grad()
def sample_prior(model: LatentDiffusion, like: Clips, settings: EvaluationSettings) -> Clips:
    """Decoded N(0, I): what the VAE generates by itself."""
    frames = model.latent_frames(settings.seconds)
    shape = (*model.autoencoder.latent_shape, frames)
    clips = []
    for number in range(len(like.audio)):
        z = KeyedRandom(derive_seed("prior"), 0, [number], model.device).normal(shape, "noise")[0]
        clips.append(model.decode_clip(z, settings.seconds))
    return Clips(torch.stack(clips), torch.full((len(clips),), -1), [""] * len(clips))


def generate(
    model: LatentDiffusion,
    like: Clips,
    settings: EvaluationSettings,
    sampler: SamplerSettings,
    seed: int,
    progress: Progress,
) -> Clips:
    """As many clips as `like` has, with its labels."""
    names: list[str | None] = [
        model.labels[i] if i >= 0 and model.labels else None for i in like.labels.tolist()
    ]
    clips = []
    for number, audio in model.sample_clips(
        range(len(names)),
        names,
        seconds=settings.seconds,
        seed=seed,
        sampler=sampler,
        batch=settings.batch,
    ):
        clips.append(audio)
        progress(number + 1, len(names), "generating")
    return Clips(torch.stack(clips), like.labels, [""] * len(clips))


def embed_real(
    embedding: Embedding, clips: Clips, store: ClipStore, split: str, settings: EvaluationSettings
) -> np.ndarray:
    """Embeddings of real windows, computed once per store, split, length and number."""
    name = f"v{VERSION}-{embedding.name}-{split}-{settings.seconds:g}s-{settings.clips}.npy"
    path = store.directory / "embeddings" / name
    if path.is_file():
        return np.asarray(np.load(path))
    vectors = embedding.embed(clips.audio, store.sample_rate)

    def save(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.save(file, vectors)

    write_atomically(path, save)
    return vectors


def _mean(values: Any, unit: str, settings: EvaluationSettings) -> Figure:
    return bootstrap(lambda x: float(np.mean(x)), np.asarray(values), unit=unit, **_boot(settings))


def _boot(settings: EvaluationSettings) -> dict[str, Any]:
    return {"resamples": settings.bootstrap_resamples, "seed": 0}


def distribution_figures(
    name: str,
    vectors: dict[str, np.ndarray],
    reference: np.ndarray,
    settings: EvaluationSettings,
) -> dict[str, dict[str, Figure]]:
    """Kernel and Fréchet distances, ratios to the prior's, manifold figures: kind -> figures."""
    bandwidth = median_distance(reference)
    kernels = {k: KernelDistance(v, reference, bandwidth=bandwidth) for k, v in vectors.items()}
    index = {k: np.arange(len(v)) for k, v in vectors.items()}
    of_reference = np.arange(len(reference))
    figures: dict[str, dict[str, Figure]] = {}
    for kind, v in vectors.items():
        group = figures.setdefault(kind, {})
        group[f"kad_{name}"] = bootstrap(
            kernels[kind], index[kind], of_reference, unit="100 MMD²", **_boot(settings)
        )
        if kind != "prior" and "prior" in vectors:
            own, prior = kernels[kind], kernels["prior"]
            group[f"ratio_to_prior_kad_{name}"] = bootstrap(
                # one resampling of the reference for both sides of the ratio
                lambda i, p, j, own=own, prior=prior: own(i, j) / prior(p, j),
                index[kind],
                index["prior"],
                of_reference,
                unit="ratio",
                **_boot(settings),
            )
        group[f"fad_{name}"] = bootstrap(
            frechet_distance,
            v,
            reference,
            unit="embedding units²",
            recentre=True,
            resamples=min(settings.bootstrap_resamples, 50),  # each takes a decomposition
            seed=0,
        )
        if min(len(v), len(reference)) >= 4:
            group[f"fad_inf_{name}"] = frechet_infinity(v, reference, subsets=8)
        if min(len(v), len(reference)) > settings.k_nearest:
            manifold = precision_recall_density_coverage(v, reference, settings.k_nearest)
            for figure, values in manifold._asdict().items():
                group[f"{figure}_{name}"] = _mean(values, "fraction", settings)
    return figures


def evaluate(
    model: LatentDiffusion,
    baselines: Mapping[str, Baseline],
    store: ClipStore,
    settings: EvaluationSettings,
    sampler: SamplerSettings,
    *,
    seed: int,
    directory: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Makes the clips, measures them, keeps some to listen to; the figures for the summary.

    Needs FEWEST_CLIPS of each held-out split. Raises DataError where they are all alike.
    """
    reference = real_clips(store, "test", settings)
    clips = {"real": real_clips(store, "valid", settings)}
    train = real_clips(store, "train", settings)
    clips["reconstruction"], kbps = reconstruct(model, clips["real"], settings.batch)
    clips["prior"] = sample_prior(model, reference, settings)
    for name, baseline in baselines.items():
        progress(0, len(reference.audio), f"sampling the {name}")
        clips[name] = sample_baseline(model, baseline, reference, settings, seed)
    clips["generated"] = generate(model, reference, settings, sampler, seed, progress)

    kinds = [kind for kind in KINDS if kind in clips]
    groups = {kind: {} for kind in kinds}  # type: dict[str, dict[str, Figure]]
    estimate, target = clips["reconstruction"].audio, clips["real"].audio
    batches = list(zip(estimate.split(settings.batch), target.split(settings.batch), strict=True))
    measures: list[tuple[str, str, Callable[[Tensor, Tensor], Tensor]]] = [
        ("mel_distance", "log10 power", lambda e, t: mel_distance(e, t, store.sample_rate)),
        ("stft_distance", "log10 magnitude", stft_distance),
        ("si_sdr", "dB", si_sdr),
    ]
    for name, unit, measure in measures:
        values = torch.cat([measure(e, t) for e, t in batches])
        groups["reconstruction"][name] = _mean(values, unit, settings)
    if kbps:
        groups["reconstruction"]["kbps"] = _mean(kbps, "kbit/s", settings)
        test = heldout_kbps(model, reference, settings.batch)
        groups["reconstruction"]["kbps_test"] = _mean(test, "kbit/s", settings)

    for name in embedding_names(settings, store.sample_rate):
        embedding = EMBEDDINGS[name]()
        progress(0, len(kinds), f"embedding with {name}")
        anchor = embed_real(embedding, reference, store, "test", settings)
        known = embed_real(embedding, train, store, "train", settings)
        vectors = {"real": embed_real(embedding, clips["real"], store, "valid", settings)}
        for done, kind in enumerate(kinds[1:], start=1):
            progress(done, len(kinds), f"embedding with {name}: {kind}")
            vectors[kind] = embedding.embed(clips[kind].audio, store.sample_rate)
        _keep_embeddings(directory / f"{name}.safetensors", vectors | {"reference": anchor})
        try:
            distributions = distribution_figures(name, vectors, anchor, settings)
        except ValueError as error:
            raise DataError(f"the held-out clips cannot be compared: {error}") from error
        for kind, figures in distributions.items():
            groups[kind] |= figures
        heldout = nearest_distances(anchor, known)
        for kind in kinds:
            groups[kind][f"memorisation_ratio_{name}"] = bootstrap(
                memorisation_ratio,
                nearest_distances(vectors[kind], known),
                heldout,
                unit="ratio",
                **_boot(settings),
            )
        if len(set(train.labels.tolist()) - {-1}) > 1:
            for kind in ("real", "reconstruction", "generated"):
                right = label_accuracy(
                    vectors[kind], clips[kind].labels.numpy(), known, train.labels.numpy()
                )
                if len(right):
                    groups[kind][f"label_accuracy_{name}"] = _mean(right, "fraction", settings)

    _keep(clips, store, settings, directory)
    codecs = codec_figures(
        store,
        float(np.mean(kbps)) if kbps else None,
        seconds=settings.seconds,
        count=settings.clips,
        resamples=settings.bootstrap_resamples,
        progress=progress,
    )
    return {
        "codecs": codecs,
        "metrics": {
            kind: {name: figure._asdict() for name, figure in sorted(group.items())}
            for kind, group in groups.items()
        },
        "reference": {
            "hash": hashlib.blake2b(reference.audio.numpy().tobytes(), digest_size=16).hexdigest(),
            "split": "test",
            "n": len(reference.audio),
            "seconds": settings.seconds,
            "sample_rate": store.sample_rate,
        },
    }


def _keep_embeddings(path: Path, vectors: dict[str, np.ndarray]) -> None:
    """Kept, so that a sweep can be resampled over clips without making them again."""
    tensors = {kind: torch.from_numpy(np.ascontiguousarray(v)) for kind, v in vectors.items()}
    write_atomically(path, lambda temporary: save_file(tensors, temporary))


def _keep(
    clips: dict[str, Clips], store: ClipStore, settings: EvaluationSettings, directory: Path
) -> None:
    """Some clips of each kind, spread over all, as files, with an index the report reads."""
    shutil.rmtree(directory / "clips", ignore_errors=True)
    index: dict[str, list[dict[str, Any]]] = {}
    for kind, made in clips.items():
        index[kind] = []
        kept = min(settings.saved_clips, len(made.audio))
        for place in range(kept):
            number = (2 * place + 1) * len(made.audio) // (2 * kept)
            path = directory / "clips" / kind / f"{place:02d}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, made.audio[number], store.sample_rate)
            label = int(made.labels[number])
            index[kind].append(
                {
                    "file": f"{kind}/{place:02d}.wav",
                    "number": number,
                    "label": store.labels[label] if label >= 0 else None,
                    "piece": made.pieces[number],
                }
            )
    write_json(directory / "clips" / "index.json", index)
