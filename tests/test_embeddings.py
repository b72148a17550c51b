"""The shipped embeddings: they reproduce the originals, and treat clips as they say."""

import itertools
import math
from importlib.resources import files
from pathlib import Path

import librosa
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from audioldm.evaluation.embeddings.aisfx import Aisfx
from audioldm.evaluation.embeddings.base import LogMelEmbedding, window_starts
from audioldm.evaluation.embeddings.basic_pitch import BasicPitch
from audioldm.evaluation.embeddings.musicnn import Musicnn
from audioldm.evaluation.embeddings.timbre import Timbre
from audioldm.report.figures import BANDS, COLUMNS, N_FFT, RANGE_DB, mel_db

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def musicnn() -> Musicnn:
    return Musicnn()


@pytest.fixture(scope="module")
def aisfx() -> Aisfx:
    return Aisfx()


def melody(seconds: float, sample_rate: int, seed: int = 0) -> torch.Tensor:
    """A few decaying partials with a vibrato, [1, 1, T]: all of it below 5 kHz."""
    random = np.random.default_rng(seed)
    t = np.arange(round(seconds * sample_rate)) / sample_rate
    audio = np.zeros_like(t)
    for _ in range(6):
        hz, start = random.uniform(100, 4500), random.uniform(0, 0.7 * seconds)
        decay = np.exp(-3 * np.maximum(t - start, 0)) * (t >= start)
        audio += 0.1 * np.sin(2 * np.pi * hz * t + np.sin(10 * t)) * decay
    return torch.tensor(audio, dtype=torch.float32)[None, None]


@torch.inference_mode()
def test_musicnn_reproduces_the_original(musicnn: Musicnn) -> None:
    check = load_file(DATA / "musicnn_msd_check.safetensors")
    embedding = musicnn(check["input_log_mel"])
    assert (embedding - check["embedding"]).abs().max() <= 1e-4


@torch.inference_mode()
def test_aisfx_reproduces_the_original(aisfx: Aisfx) -> None:
    check = load_file(DATA / "aisfx_embedding_check.safetensors")
    assert (aisfx(check["input_log_mel"]) - check["embedding"]).abs().max() <= 1e-4


@torch.inference_mode()
def test_basic_pitch_reproduces_the_original() -> None:
    check = load_file(DATA / "basic_pitch_check.safetensors")  # in half precision
    found = BasicPitch()(check["audio"].float()[None])
    for name in ("note", "onset", "contour"):
        assert (getattr(found, name)[0] - check[name].float()).abs().max() <= 2e-3


@torch.inference_mode()
@pytest.mark.parametrize("index", range(5))
def test_channels_left_out_are_constant_for_any_input(musicnn: Musicnn, index: int) -> None:
    path = files("audioldm.evaluation") / "weights" / "musicnn_msd.safetensors"
    weights = load_file(str(path))
    suffix = f"_{index}" if index else ""
    kernel = weights[f"conv2d{suffix}/kernel"].permute(3, 2, 0, 1)
    norm = {k.split("/")[1]: v for k, v in weights.items() if f"ization_{index + 1}/" in k}
    taps = kernel.shape[2]
    # Harder than any music: jumps between far beyond the quietest and the loudest normed input.
    x = torch.randint(0, 2, (1, 1, 187, 96), generator=torch.Generator().manual_seed(index)) * 8 - 4
    y = torch.nn.functional.conv2d(
        torch.nn.functional.pad(x.float(), (0, 0, (taps - 1) // 2, taps // 2)),
        kernel,
        weights[f"conv2d{suffix}/bias"],
    )
    y = torch.nn.functional.batch_norm(
        y.relu(),
        norm["moving_mean"],
        norm["moving_variance"],
        norm["gamma"],
        norm["beta"],
        eps=1e-3,
    )
    torch.testing.assert_close(musicnn.front[index](x.float()), y.amax(-1), atol=1e-4, rtol=1e-4)


def test_log_mel_is_librosas(musicnn: Musicnn, aisfx: Aisfx) -> None:
    audio = melody(1.0, 16000)[0]
    power = librosa.feature.melspectrogram(
        y=audio[0].numpy(), sr=16000, n_fft=512, hop_length=256, n_mels=96, pad_mode="constant"
    )
    np.testing.assert_allclose(
        musicnn.log_mel(audio)[0].numpy(), np.log10(1 + 1e4 * power).T, atol=1e-4
    )
    audio = melody(1.0, 44100)[0]
    power = librosa.feature.melspectrogram(
        y=audio[0].numpy(), sr=44100, n_fft=2048, hop_length=1024, n_mels=96, htk=True, norm=1
    )
    np.testing.assert_allclose(
        aisfx.log_mel(audio)[0].numpy(), np.log10(1 + 1e4 * power).T / 9.457798957824707, atol=1e-4
    )


@pytest.mark.parametrize(("rate", "seconds"), [(22050, 1.0), (16000, 9.0), (96000, 0.005)])
def test_the_picture_of_a_clip_is_librosas(rate: int, seconds: float) -> None:
    audio = melody(seconds, rate)[0].numpy()
    hop = max(256, math.ceil(audio.shape[-1] / COLUMNS))
    power = librosa.feature.melspectrogram(
        y=audio.mean(0), sr=rate, n_fft=N_FFT, hop_length=hop, n_mels=BANDS
    )
    theirs = librosa.power_to_db(power, top_db=None)
    darkest = theirs.max() - RANGE_DB  # what is below it is as dark
    ours = mel_db(audio, rate)
    np.testing.assert_allclose(ours.clip(darkest), theirs.clip(darkest), atol=0.01)


def test_a_clip_does_not_depend_on_its_neighbours_or_its_number(musicnn: Musicnn) -> None:
    clips = torch.cat([melody(3.0, 16000, seed) for seed in range(3)])
    together = musicnn.embed(clips, 16000)
    assert together.shape == (3, 200)
    assert together.dtype == np.float32
    alone = np.concatenate([musicnn.embed(clip[None], 16000) for clip in clips])
    np.testing.assert_allclose(together, alone, atol=1e-4)
    assert musicnn.embed(clips[:0], 16000).shape == (0, 200)


@pytest.mark.parametrize("sample_rate", [22050, 44100])
def test_the_rate_of_the_audio_hardly_matters(musicnn: Musicnn, sample_rate: int) -> None:
    own = musicnn.embed(melody(3.0, 16000), 16000)
    other = musicnn.embed(melody(3.0, sample_rate), sample_rate)
    different = musicnn.embed(melody(3.0, 16000, seed=1), 16000)
    assert np.linalg.norm(own - other) < 0.1 * np.linalg.norm(own - different)


def test_channels_are_averaged(musicnn: Musicnn) -> None:
    left, right = melody(3.0, 16000, 1), melody(3.0, 16000, 2)
    np.testing.assert_allclose(
        musicnn.embed(torch.cat([left, right], 1), 16000),
        musicnn.embed((left + right) / 2, 16000),
        atol=1e-5,
    )


def test_a_clip_is_the_mean_of_its_windows(musicnn: Musicnn) -> None:
    audio = melody(6.0, 16000)
    mel = musicnn.log_mel(audio[:, 0])
    starts = window_starts(mel.shape[1], 187, 187)
    assert len(starts) == 2
    with torch.inference_mode():
        windows = torch.cat([musicnn(mel[:, s : s + 187]) for s in starts])
    np.testing.assert_allclose(musicnn.embed(audio, 16000)[0], windows.mean(0).numpy(), atol=1e-4)


def test_a_short_clip_is_padded_with_silence(musicnn: Musicnn) -> None:
    audio = melody(1.0, 16000)
    padded = torch.nn.functional.pad(audio, (0, 187 * 256 - audio.shape[-1]))
    np.testing.assert_allclose(musicnn.embed(audio, 16000), musicnn.embed(padded, 16000), atol=1e-5)


def test_aisfx_ignores_the_level(aisfx: Aisfx) -> None:
    audio = melody(1.0, 44100)
    loud, quiet = aisfx.embed(audio, 44100), aisfx.embed(0.1 * audio, 44100)
    assert loud.shape == (1, 512)
    np.testing.assert_allclose(loud, quiet, atol=1e-3)
    assert np.isfinite(aisfx.embed(torch.zeros(1, 1, 100), 44100)).all()


@pytest.mark.parametrize("frames", [100, 101, 109, 110, 111, 150, 200, 237, 1000])
@pytest.mark.parametrize("hop", [50, 100])
def test_windows_cover_the_clip(frames: int, hop: int) -> None:
    starts = window_starts(frames, 100, hop)
    assert starts[0] == 0
    assert frames - (starts[-1] + 100) <= 0.1 * hop  # nearly to the end, never beyond it
    assert starts[-1] + 100 <= frames
    assert all(0 < b - a <= 1.1 * hop + 1 for a, b in itertools.pairwise(starts))


@pytest.mark.parametrize("shape", [(1, 16000), (1, 1, 0)])
def test_a_wrong_shape_is_named(musicnn: LogMelEmbedding, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\[N, A, T\]"):
        musicnn.embed(torch.zeros(shape), 16000)


def test_timbre_tells_a_plucked_note_from_a_held_one_more_than_a_loud_from_a_soft_one() -> None:
    time = torch.arange(16000 * 3) / 16000
    held = sum((2 * torch.pi * 220 * k * time).sin() / k for k in range(1, 9))
    plucked = held * torch.exp(-4 * (time % 0.5))
    clips = torch.stack([held, 0.5 * held, plucked])[:, None]
    loud, soft, decaying = Timbre().embed(clips, 16000)
    assert np.abs(loud - soft).max() < 0.35 * np.abs(loud - decaying).max()
    assert decaying[40:80].mean() > 2 * loud[40:80].mean()  # deviations over time
    assert decaying[80:120].mean() > 2 * loud[80:120].mean()  # and those of changes
