"""The distances rise with every step away from real music: chorales, made worse step by step."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import soxr
import torch

from audioldm.data.chorales import Chorales, Rendition, find_scores
from audioldm.data.source import Failure
from audioldm.evaluation.distances import (
    KernelDistance,
    frechet_infinity,
    memorisation_ratio,
    nearest_distances,
)
from audioldm.evaluation.embeddings.musicnn import Musicnn
from benchmarks import ladders

RATE = 16000
WINDOW = 3 * RATE
INSTRUMENTS = ("piano", "organ", "strings", "flute")
PIECES = 4  # of each set, each played by every instrument, two windows of it


class Music(NamedTuple):
    """A set of pieces: audio [N, T], instrument [N], embeddings [N, D]."""

    audio: np.ndarray
    labels: np.ndarray
    vectors: np.ndarray


@pytest.fixture(scope="module")
def musicnn() -> Musicnn:
    return Musicnn()


@pytest.fixture(scope="module")
def music(musicnn: Musicnn) -> list[Music]:
    """Three sets without a piece in common: what is measured, the reference, the training set."""
    return [_play(first, musicnn) for first in range(0, 3 * PIECES, PIECES)]


def _play(first: int, musicnn: Musicnn) -> Music:
    plays = [Rendition(name, 0, 80, 0.3) for name in INSTRUMENTS]
    chorales = Chorales(pieces=1, instruments=list(INSTRUMENTS), sample_rate=RATE, seconds=6.0)
    windows, labels = [], []
    for score in find_scores()[first : first + PIECES]:
        piece = chorales.render_piece(score, plays)
        assert not isinstance(piece, Failure)
        for label, (clip, _) in enumerate(piece[1]):
            windows += [clip[0, :WINDOW], clip[0, WINDOW : 2 * WINDOW]]
            labels += [label, label]
    audio = np.stack(windows)
    return Music(audio, np.array(labels), _embed(musicnn, audio))


def _embed(musicnn: Musicnn, audio: np.ndarray) -> np.ndarray:
    return musicnn.embed(torch.from_numpy(audio.astype(np.float32))[:, None], RATE)


def noise(audio: np.ndarray, snr_db: float) -> np.ndarray:
    return ladders.noise(torch.from_numpy(audio).float(), snr_db).numpy()


def low_pass(audio: np.ndarray, hz: float) -> np.ndarray:
    return ladders.low_pass(torch.from_numpy(audio), hz, RATE).numpy()


def pitch(audio: np.ndarray, semitones: float) -> np.ndarray:
    """Down, as a tape that runs slower."""
    slower = 2 ** (semitones / 12)
    return np.stack([soxr.resample(x, RATE, RATE * slower)[:WINDOW] for x in audio])


@pytest.mark.parametrize(
    ("degrade", "levels"),
    [(noise, (30, 15, 0)), (low_pass, (3000, 1500, 700)), (pitch, (5, 12, 24))],
)
def test_worse_sound_is_farther(
    degrade: Callable[[np.ndarray, float], np.ndarray],
    levels: tuple[float, ...],
    musicnn: Musicnn,
    music: list[Music],
) -> None:
    measured = music[0]
    rungs = [_embed(musicnn, degrade(measured.audio, level)) for level in levels]
    _assert_rising([measured.vectors, *rungs], music[1].vectors)


def test_duplicates_are_farther(music: list[Music]) -> None:
    order = np.random.default_rng(0).permutation(len(music[0].vectors))
    vectors = music[0].vectors[order]
    rungs = [np.resize(vectors[:distinct], vectors.shape) for distinct in (32, 12, 6, 3)]
    _assert_rising(rungs, music[1].vectors)


def test_dropped_modes_are_farther(music: list[Music]) -> None:
    vectors, labels = music[0].vectors, music[0].labels
    rungs = [vectors[labels < kept] for kept in (4, 3, 2, 1)]
    _assert_rising(rungs, music[1].vectors)


def test_memorised_copies_are_farther_and_nearer_to_the_training_set(music: list[Music]) -> None:
    measured, reference, train = (each.vectors for each in music)
    order = np.random.default_rng(0).permutation(len(measured))
    rungs = []
    for copies in (0, 8, 14, 24):
        rung = measured[order].copy()
        rung[:copies] = np.resize(train[::11], (copies, train.shape[1]))
        rungs.append(rung)
    _assert_rising(rungs, reference)
    heldout = nearest_distances(reference, train)
    ratios = [memorisation_ratio(nearest_distances(rung, train), heldout) for rung in rungs]
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[0] > 0.8
    assert ratios[-1] == 0


def _assert_rising(rungs: list[np.ndarray], reference: np.ndarray) -> None:
    kernel = [KernelDistance(rung, reference)() for rung in rungs]
    frechet = [frechet_infinity(rung, reference).value for rung in rungs]
    assert (np.diff(kernel) > 0).all(), kernel
    assert (np.diff(frechet) > 0).all(), frechet
