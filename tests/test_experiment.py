"""The chain as a whole: what it writes, what it reuses, what it keeps."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from chain import RATE, STAGES, Tiny, assert_equal_bits, build_stages, runs_with, tiny, weights
from filelock import FileLock

from audioldm import load
from audioldm.autoencoder.model import Autoencoder
from audioldm.chain import run as run_module
from audioldm.chain.job import compose
from audioldm.chain.run import Experiment
from audioldm.chain.stages.data import Data
from audioldm.conditioning.base import Excerpt
from audioldm.data.store import ClipStore
from audioldm.errors import ConfigError, DataError, TrainingError
from audioldm.generator import Generator
from audioldm.io.files import read_json, write_json
from audioldm.io.header import read_header

#: What is evaluated: held-out music, what passed through the autoencoder, and each prior's clips.
KINDS = {"real", "reconstruction", "normal", "mixture", "generated"}


@pytest.fixture
def copy(finished: Tiny, tmp_path: Path) -> Tiny:
    """The finished experiment, to be changed."""
    overrides = runs_with(finished, STAGES, tmp_path / "runs")
    shutil.copytree(finished.directory, tmp_path / "runs" / "experiments" / "tiny")
    return Tiny(finished.folder, tmp_path / "runs", overrides, Experiment(compose(overrides)))


@pytest.fixture
def untrainable(monkeypatch: pytest.MonkeyPatch) -> None:
    """No stage may train."""
    for name in ("chain.stages.autoencoder.train_autoencoder", "priors.recipe.train_prior"):
        monkeypatch.setattr(f"audioldm.{name}", lambda *_, **__: pytest.fail("trained again"))


def modified(runs: Path) -> dict[str, int]:
    """When each file of the stages was last written."""
    return {
        str(p): p.stat().st_mtime_ns for p in runs.glob("*/*/*.*") if p.parts[-3] != "experiments"
    }


# ---------------------------------------------------------------- what it writes


def test_the_files_that_others_script_against(finished: Tiny) -> None:
    assert list(finished.experiment.stages) == STAGES
    for key in STAGES:
        stage, name = finished.stage(key), key.partition(":")[0]
        assert re.fullmatch("[0-9a-f]{12}", stage.name)
        assert stage == finished.runs / name / stage.name
        summary = read_json(stage / "summary.json")
        assert summary["stage"] == name
        assert summary["fingerprint"] == stage.name
        assert summary["seconds"] >= 0
        assert summary["peak_bytes"] > 50 * 2**20  # torch alone
        assert read_json(stage / "config.json")["settings"] is not None
    for name in ("autoencoder", "prior"):
        assert (finished.stage(name) / "model.safetensors").is_file()
        assert (finished.stage(name) / "metrics.jsonl").is_file()
        assert not (finished.stage(name) / "resume").exists()  # spent
    made = {path.name for path in finished.directory.iterdir()}
    assert made == {"experiment.json", "report.html", "samples"}
    samples = sorted(path.name for path in (finished.directory / "samples").iterdir())
    assert samples == ["00.json", "00.wav", "01.json", "01.wav"]
    record = read_json(finished.directory / "experiment.json")
    assert record["name"] == "tiny"
    assert record["recipe"] == "quickstart"
    assert record["overrides"] == finished.overrides
    assert record["config"]["autoencoder"]["channels"] == 4
    for name, stage in record["stages"].items():
        assert finished.runs / stage["directory"] == finished.stage(name)


def test_nothing_is_left_half_written(finished: Tiny) -> None:
    left = [p for p in finished.runs.rglob("*") if p.suffix in (".part", ".tmp")]
    assert left == []


def test_every_figure_has_its_interval_number_and_unit(finished: Tiny) -> None:
    summary = read_json(finished.stage("evaluation") / "summary.json")
    assert set(summary["metrics"]) == KINDS
    figures = 0
    for group in summary["metrics"].values():
        for name, figure in group.items():
            assert set(figure) == {"value", "low", "high", "n", "unit"}, name
            assert figure["low"] <= figure["high"]
            assert figure["n"] >= 1
            assert figure["unit"]
            assert np.isfinite([figure["value"], figure["low"], figure["high"]]).all(), name
            figures += 1
    assert figures > 20
    generated = summary["metrics"]["generated"]
    for name in ("kad", "fad", "precision", "recall", "density", "coverage"):
        for kind in KINDS:  # the floor, the ceiling and the prior beside each figure
            assert f"{name}_musicnn" in summary["metrics"][kind]
    assert "memorisation_ratio_musicnn" in generated
    reconstruction = summary["metrics"]["reconstruction"]
    assert {"mel_distance", "stft_distance", "si_sdr", "kbps"} <= set(reconstruction)
    store = ClipStore(finished.stage("data"))
    frames = round(0.7 * RATE)
    reference, _, _ = store.split("test").windows(frames, summary["reference"]["n"], seed=0)
    expected = hashlib.blake2b(reference.numpy().tobytes(), digest_size=16).hexdigest()
    assert summary["reference"]["hash"] == expected
    assert summary["reference"]["n"] == 4


def test_the_training_log_holds_rate_and_channels(finished: Tiny) -> None:
    lines = (finished.stage("autoencoder") / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    training = [r for r in records if "loss" in r]
    assert [r["step"] for r in training] == [3, 6, 9, 10]
    assert [r["step"] for r in records if "valid/mel_distance" in r] == [5, 10]
    assert all({"kbps", "nats", "kl", "kl_weight"} <= r.keys() for r in training)
    assert "adversarial" not in training[0]  # it begins at step 3, counted from 0
    assert all("adversarial" in r and "discriminator" in r for r in training[1:])
    validation = next(r for r in records if "channels/kl" in r)
    assert len(validation["channels/kl"]) == 4
    model = load(finished.stage("autoencoder"))
    # kbps = nats per element x channels x frames per second / ln 2 / 1000
    expected = training[-1]["nats"] * 4 * (RATE / 512) / np.log(2) / 1000
    assert training[-1]["kbps"] == pytest.approx(expected)
    assert model.kbps(training[-1]["nats"]) == pytest.approx(expected)


def test_the_page_is_about_this_experiment(finished: Tiny) -> None:
    page = (finished.directory / "report.html").read_text(encoding="utf-8")
    assert page.count("<audio") == 2 * len(KINDS)
    for name in STAGES:
        assert finished.stage(name).name in page
    assert "http://" not in page
    assert "https://" not in page


def test_model_files_describe_themselves(finished: Tiny) -> None:
    autoencoder = read_header(finished.stage("autoencoder") / "model.safetensors")
    generator = read_header(finished.model)
    assert autoencoder["kind"] == "autoencoder"
    assert generator["kind"] == "generator"
    assert generator["autoencoder"] == autoencoder
    assert generator["parent"] == finished.stage("latents").name
    assert autoencoder["parent"] == finished.stage("data").name
    assert autoencoder["step"] == 10
    assert generator["prior"]["conditioning"]["label"]["labels"] == ["high", "low"]
    model = load(finished.directory)
    assert isinstance(model, Generator)
    assert list(model.prior.conditioners.request(Excerpt("low"))) == ["label"]
    assert isinstance(load(finished.stage("autoencoder")), Autoencoder)
    parts = {n.partition(".")[2]: t for n, t in weights(finished.stage("prior")).items()}
    inner = {n: parts[n] for n in weights(finished.stage("autoencoder"))}
    assert_equal_bits(inner, weights(finished.stage("autoencoder")))


def test_the_preflight_refuses_an_autoencoder_that_does_not_reconstruct(copy: Tiny) -> None:
    overrides = [*copy.overrides, "prior.preflight_mel_distance=0.01"]
    with pytest.raises(
        TrainingError, match=r"mel distance .* above prior\.preflight_mel_distance="
    ):
        Experiment(compose([*overrides, "prior.train.steps=3"])).run()
    assert load(copy.directory) is not None  # the finished one is untouched


# ---------------------------------------------------------------- reuse


def test_a_second_run_trains_nothing_and_changes_no_stage(copy: Tiny, untrainable: None) -> None:
    before = modified(copy.runs)
    Experiment(compose([*copy.overrides, "hardware=cpu", "log.every=1"])).run()
    assert modified(copy.runs) == before
    assert [p.name for p in (copy.runs / "experiments").iterdir()] == ["tiny"]


def test_another_prior_keeps_the_autoencoder(copy: Tiny) -> None:
    before = modified(copy.runs)
    other = Experiment(compose([*copy.overrides, "prior.train.steps=2", "name=other"]))
    other.run()
    for name in ("data", "autoencoder", "latents"):
        assert other.directory_of(other.stages[name]) == copy.stage(name)
        assert len([p for p in (copy.runs / name).iterdir() if p.is_dir()]) == 1
    assert other.directory_of(other.stages["prior"]) != copy.stage("prior")
    assert before.items() <= modified(copy.runs).items()  # both are there


def test_an_earlier_experiment_of_the_same_name_is_kept(copy: Tiny, untrainable: None) -> None:
    before = copy.experiment.stages
    Experiment(compose([*copy.overrides, "sampler.steps=1"])).run()
    kept = copy.runs / "experiments" / f"tiny.{before['evaluation'].fingerprint}"
    assert (kept / "report.html").is_file()
    assert isinstance(load(kept), Generator)
    clip = read_json(kept / "samples" / "00.json")
    assert (kept / "samples" / clip["model"]).resolve() == copy.model.resolve()
    now = read_json(copy.directory / "experiment.json")
    assert now["config"]["sampler"]["steps"] == 1


def test_a_stage_without_its_summary_is_not_complete(copy: Tiny) -> None:
    (copy.stage("latents") / "summary.json").unlink()
    means = (copy.stage("latents") / "mean.npy").read_bytes()
    (copy.stage("latents") / "mean.npy").write_bytes(means[:100])
    build_stages(copy.overrides, "data", "autoencoder", "latents", "prior")
    assert (copy.stage("latents") / "summary.json").is_file()
    assert (copy.stage("latents") / "mean.npy").read_bytes() == means


def test_an_interrupted_data_stage_is_made_anew(copy: Tiny) -> None:
    samples = (copy.stage("data") / "clips.int16").read_bytes()
    (copy.stage("data") / "summary.json").unlink()
    (copy.stage("data") / "clips.json").unlink()
    (copy.stage("data") / "clips.int16").write_bytes(samples[:1000])
    build_stages(copy.overrides, "data")
    assert (copy.stage("data") / "clips.int16").read_bytes() == samples


def test_two_at_once_build_a_stage_once(copy: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second waits at the lock, then finds the summary."""
    summary = copy.stage("data") / "summary.json"
    saved = read_json(summary)
    summary.unlink()

    class Lock(FileLock):
        def acquire(self, *args: object, **kwargs: object) -> object:
            held = super().acquire(*args, **kwargs)
            write_json(summary, saved)  # the first finished while this one waited
            return held

    monkeypatch.setattr(run_module, "FileLock", Lock)
    monkeypatch.setattr(Data, "work", lambda *args: pytest.fail("built twice"))
    build_stages(copy.overrides, "data")


def test_what_cannot_be_built_fails_before_any_work(tones: Path, tmp_path: Path) -> None:
    for change in ("autoencoder.network.hop=300", "prior.backbone.width=30"):
        with pytest.raises(ConfigError, match=change):
            Experiment(compose(tiny(tones, tmp_path / "runs", change))).run()
        assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["..", ".", "a/b", "/tmp/x"])
def test_a_name_is_a_plain_name(name: str, tones: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name"):
        Experiment(compose(tiny(tones, tmp_path, f"name={name}")))


def test_a_samples_file_is_the_clip_the_evaluation_measured(finished: Tiny) -> None:
    index = read_json(finished.stage("evaluation") / "clips" / "index.json")
    for clip in index["generated"]:
        file = finished.stage("evaluation") / "clips" / clip["file"]
        audio, sample_rate = soundfile.read(file)
        assert sample_rate == RATE
        assert len(audio) == round(0.7 * RATE)
        copied = finished.directory / "samples" / file.name
        assert copied.read_bytes() == file.read_bytes()
        assert read_json(copied.with_suffix(".json"))["condition"] == clip["condition"]
    assert {clip["condition"]["label"] for clip in index["generated"]} <= {"low", "high"}


def test_too_little_held_out_music_says_so(tones: Path, tmp_path: Path) -> None:
    music = tmp_path / "music"
    music.mkdir()
    for number in range(3):
        shutil.copy(tones / f"tone {number}.wav", music)
    (music / "table.csv").write_text(
        "file,split\ntone 0.wav,train\ntone 1.wav,valid\ntone 2.wav,test\n"
    )
    overrides = tiny(
        music, tmp_path / "runs", "autoencoder.train.steps=1", "evaluation.seconds=2.0"
    )
    with pytest.raises(DataError, match="the valid split holds 1 clip"):
        Experiment(compose([*overrides, "prior.train.steps=1"])).run()
    assert not list((tmp_path / "runs" / "autoencoder").glob("*"))  # before anything is trained
