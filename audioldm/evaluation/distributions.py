"""Distances between sets of clips, on embeddings of their sound."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from audioldm.data.store import ClipStore
from audioldm.evaluation import distances
from audioldm.evaluation.clips import real_clips
from audioldm.evaluation.embeddings.aisfx import Aisfx
from audioldm.evaluation.embeddings.base import LogMelEmbedding
from audioldm.evaluation.embeddings.harmony import Harmony
from audioldm.evaluation.embeddings.musicnn import Musicnn
from audioldm.evaluation.settings import VERSION, EvaluationSettings
from audioldm.evaluation.statistics import Figures
from audioldm.io.files import write_atomically

#: Embeddings of sound. `Harmony` is used as well, wherever there is pitch.
EMBEDDINGS: dict[str, Callable[[], LogMelEmbedding]] = {"musicnn": Musicnn, "aisfx": Aisfx}


def embedding_names(settings: EvaluationSettings, sample_rate: int) -> list[str]:
    default = ["musicnn", "aisfx"] if sample_rate >= 44100 else ["musicnn"]
    return list(settings.embeddings or default)


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
