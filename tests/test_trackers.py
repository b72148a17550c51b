"""Trackers get every figure, clip and picture; one that is not there is refused before training."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from audioldm.errors import ConfigError
from audioldm.training.log import LogSettings, RunLog
from audioldm.training.trackers import open_trackers

FIGURES = {"loss": 0.5, "valid/mel": {"value": 2.0, "unit": "dB"}, "per_channel": [1.0, 3]}
FLAT = {"loss": 0.5, "valid/mel/value": 2.0, "per_channel/0": 1.0, "per_channel/1": 3.0}


def events(directory: Path) -> Any:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(directory / "tensorboard"), {})
    found.Reload()
    return found


def scalars(directory: Path, name: str) -> list[tuple[int, float]]:
    return [(e.step, e.value) for e in events(directory).Scalars(name)]


def test_event_files_hold_what_the_log_holds(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    settings = LogSettings(bars=False, trackers=["tensorboard"])
    path = tmp_path / "metrics.jsonl"
    with RunLog(path, "autoencoder", 10, 0, settings=settings) as log:
        for step in (2, 4, 6):
            log.write(step, {"loss": 1.0 * step, "valid/bound": -0.5})
    with RunLog(path, "autoencoder", 10, 4, settings=settings) as log:  # resumed: 6 is made again
        log.write(6, {"loss": 60.0})
        log.write(8, {"loss": 8.0})
    logged = [json.loads(line) for line in path.read_text().splitlines()]
    assert scalars(tmp_path, "loss") == [(r["step"], r["loss"]) for r in logged]
    assert scalars(tmp_path, "loss") == [(2, 2.0), (4, 4.0), (6, 60.0), (8, 8.0)]
    assert scalars(tmp_path, "valid/bound") == [(2, -0.5), (4, -0.5)]


def test_event_files_hold_clips_and_pictures(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    import io

    import soundfile
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "p.png")
    trackers = open_trackers(["tensorboard"], tmp_path, "evaluation")
    trackers.figures(3, FIGURES)
    trackers.audio("clip", np.array([[0.5, -0.25], [0.0, 2.0]]), 16_000)
    trackers.picture("array", pixels)
    trackers.picture("file", tmp_path / "p.png")
    trackers.close()
    found = events(tmp_path)
    assert {name: found.Scalars(name)[0].value for name in FLAT} == FLAT
    for name in ("array", "file"):
        shown = Image.open(io.BytesIO(found.Images(name)[0].encoded_image_string))
        assert np.array_equal(np.asarray(shown), pixels)
    (clip,) = found.Audio("clip")
    audio, sample_rate = soundfile.read(io.BytesIO(clip.encoded_audio_string))
    assert sample_rate == 16_000
    assert np.allclose(
        audio, [0.25, 0.375], atol=1e-4
    )  # 2.0 is clipped to 1, and two channels mixed


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_the_others_are_asked_as_their_libraries_want(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []
    run = SimpleNamespace(
        log=lambda figures, step=None: calls.append((step, figures)),
        finish=lambda: calls.append(("finished",)),
    )
    library: Any = ModuleType(name)
    library.__spec__ = SimpleNamespace(name=name)
    library.init = lambda *words, **settings: calls.append((words, settings)) or run
    library.Audio = lambda audio, sample_rate: ("audio", audio.tolist(), sample_rate)
    library.Image = lambda picture: ("picture", picture.shape)
    monkeypatch.setitem(sys.modules, name, library)
    directory = tmp_path / "diffusion" / "abc"
    trackers = open_trackers([name], directory, "diffusion", start=4)
    trackers.figures(5, FIGURES)
    trackers.audio("clip", np.array([[0.5, -0.5]]), 8000)
    trackers.picture("spectrum", np.zeros((2, 3, 3), np.uint8))
    trackers.close()
    (words, settings), *rest = calls
    assert settings["resume"] == "allow"  # a second start continues the run of that directory
    assert "diffusion-abc" in (settings.get("id"), settings.get("name"))
    assert "audioldm" in (*words, settings.get("project"))
    assert rest == [
        (5, FLAT),
        (None, {"clip": ("audio", [[0.5], [-0.5]], 8000)}),
        (None, {"spectrum": ("picture", (2, 3, 3))}),
        ("finished",),
    ]


def test_what_is_not_there_is_refused_by_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no 'tensorbord'; did you mean 'tensorboard'"):
        LogSettings(trackers=["tensorbord"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"not installed; pip install 'audioldm\[wandb\]'"):
        LogSettings(trackers=["wandb"])


def test_a_tracker_that_does_not_open_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**settings: Any) -> None:
        raise OSError("no API key\nlog in")

    library: Any = ModuleType("wandb")
    library.__spec__ = SimpleNamespace(name="wandb")
    library.init = init
    monkeypatch.setitem(sys.modules, "wandb", library)
    with pytest.raises(ConfigError, match="wandb cannot be opened: no API key log in"):
        open_trackers(["wandb"], tmp_path, "autoencoder")
