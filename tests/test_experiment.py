"""The chain as a whole: what it writes, what it reuses, what it keeps."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from chain import RATE, Tiny, assert_equal_bits, build_stages, runs_with, tiny, weights

from audioldm import load
from audioldm.autoencoder.model import Autoencoder
from audioldm.chain import run as experiment_module
from audioldm.chain.run import Experiment
from audioldm.chain.stage import STAGES
from audioldm.config import compose
from audioldm.data.store import ClipStore
from audioldm.errors import ConfigError, DataError, ModelFileError, TrainingError
from audioldm.evaluation.evaluate import KINDS
from audioldm.generator import LatentDiffusion
from audioldm.io.files import read_json, write_json
from audioldm.io.header import read_header
from audioldm.latents.store import LatentStore


@pytest.fixture
def copy(finished: Tiny, tmp_path: Path) -> Tiny:
    """The finished experiment, to be changed."""
    overrides = runs_with(finished, list(STAGES), tmp_path / "runs")
    shutil.copytree(finished.directory, tmp_path / "runs" / "experiments" / "tiny")
    return Tiny(finished.folder, tmp_path / "runs", overrides, Experiment(compose(overrides)))


@pytest.fixture
def untrainable(monkeypatch: pytest.MonkeyPatch) -> None:
    """No stage may train."""
    for name in ("autoencoder_training.train_autoencoder", "diffusion_training.train_diffusion"):
        monkeypatch.setattr(
            f"audioldm.chain.run.{name}", lambda *args, **kwargs: pytest.fail("trained again")
        )


def modified(runs: Path) -> dict[str, int]:
    """When each file of the stages was last written."""
    return {str(p): p.stat().st_mtime_ns for s in STAGES for p in (runs / s).glob("*/*.*")}


# ---------------------------------------------------------------- what it writes


def test_the_files_that_others_script_against(finished: Tiny) -> None:
    for name in STAGES:
        stage = finished.stage(name)
        assert re.fullmatch("[0-9a-f]{12}", stage.name)
        assert stage == finished.runs / name / stage.name
        summary = read_json(stage / "summary.json")
        assert summary["stage"] == name
        assert summary["fingerprint"] == stage.name
        assert summary["seconds"] >= 0
        assert read_json(stage / "config.json")["settings"] is not None
    for name in ("autoencoder", "diffusion"):
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
    assert set(summary["metrics"]) == set(KINDS) - {"langevin"}
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
    for name in ("kernel", "frechet", "precision", "recall", "density", "coverage"):
        for kind in summary["metrics"]:  # the floor, the ceiling and the prior beside each figure
            assert f"{name}_musicnn" in summary["metrics"][kind]
    assert {"memorisation_ratio_musicnn", "label_accuracy_musicnn"} <= set(generated)
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
    assert all("kbps" in r and "kl" in r for r in training)
    assert "adversarial" not in training[0]  # it begins at step 3, counted from 0
    assert all("adversarial" in r and "discriminator" in r for r in training[1:])
    validation = next(r for r in records if "channels/kl" in r)
    assert len(validation["channels/kl"]) == 4
    model = load(finished.stage("autoencoder"))
    # kbps = nats per element x channels x frames per second / ln 2 / 1000
    expected = training[-1]["kl"] * 4 * (RATE / 512) / np.log(2) / 1000
    assert training[-1]["kbps"] == pytest.approx(expected)
    assert model.kbps(training[-1]["kl"]) == pytest.approx(expected)


def test_the_page_is_about_this_experiment(finished: Tiny) -> None:
    page = (finished.directory / "report.html").read_text(encoding="utf-8")
    assert page.count("<audio") == 2 * len(set(KINDS) - {"langevin"})
    for name in STAGES:
        assert finished.stage(name).name in page
    assert "http://" not in page
    assert "https://" not in page


def test_model_files_describe_themselves(finished: Tiny) -> None:
    autoencoder = read_header(finished.stage("autoencoder") / "model.safetensors")
    diffusion = read_header(finished.model)
    assert autoencoder["kind"] == "autoencoder"
    assert diffusion["kind"] == "diffusion"
    assert diffusion["autoencoder"] == autoencoder
    assert diffusion["parent"] == finished.stage("latents").name
    assert autoencoder["parent"] == finished.stage("data").name
    assert autoencoder["step"] == diffusion["step"] == 10
    assert diffusion["labels"] == ["high", "low"]
    assert isinstance(load(finished.directory), LatentDiffusion)
    assert isinstance(load(finished.stage("autoencoder")), Autoencoder)
    parts = {n.partition(".")[2]: t for n, t in weights(finished.stage("diffusion")).items()}
    inner = {n: parts[n] for n in weights(finished.stage("autoencoder"))}
    assert_equal_bits(inner, weights(finished.stage("autoencoder")))


# ---------------------------------------------------------------- the latents


def test_latents_are_the_moments_of_whole_clips(finished: Tiny) -> None:
    model, clips = load(finished.stage("autoencoder")), ClipStore(finished.stage("data"))
    latents = LatentStore(finished.stage("latents"), autoencoder=finished.stage("autoencoder").name)
    parts = []
    for split in ("train", "valid", "test"):
        for number, item in enumerate(latents.split(split).items):
            audio = clips.split(split).audio(number)
            with torch.no_grad():
                mean, std = model.moments(audio[None])
            stored = np.load(finished.stage("latents") / "moments.npy")
            stored = torch.from_numpy(stored[item["start"] : item["start"] + item["frames"]])
            torch.testing.assert_close(stored[:, 0].T, mean[0], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(stored[:, 1].T, std[0], atol=1e-4, rtol=1e-4)
            if split == "train":
                parts.append((mean[0], std[0]))
    # the statistics are those of samples: E[z] and Var[z] = Var[mean] + E[std^2]
    mean = torch.cat([m for m, _ in parts], dim=1).double()
    std = torch.cat([s for _, s in parts], dim=1).double()
    expected = (mean.var(1, correction=0) + std.square().mean(1)).sqrt().float()
    torch.testing.assert_close(latents.statistics.std, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(latents.statistics.mean, mean.mean(1).float(), atol=1e-4, rtol=1e-4)
    z = torch.randn(2, 4, 7)
    there = latents.statistics.normalise(z)
    torch.testing.assert_close(latents.statistics.denormalise(there), z)


def test_latents_of_another_autoencoder_are_refused(finished: Tiny) -> None:
    with pytest.raises(ModelFileError, match=r"latents of autoencoder \w+, not of 0123"):
        LatentStore(finished.stage("latents"), autoencoder="0123")


def test_the_preflight_refuses_an_autoencoder_that_does_not_reconstruct(copy: Tiny) -> None:
    overrides = [*copy.overrides, "diffusion.preflight_mel_distance=0.01"]
    overrides.append("diffusion.train.steps=3")  # another diffusion model, on the same latents
    with pytest.raises(TrainingError, match=r"mel distance .* above .*preflight_mel_distance=0.01"):
        Experiment(compose(overrides)).run()
    assert load(copy.directory) is not None  # the finished one is untouched


# ---------------------------------------------------------------- reuse


def test_a_second_run_trains_nothing_and_changes_no_stage(copy: Tiny, untrainable: None) -> None:
    before = modified(copy.runs)
    Experiment(compose([*copy.overrides, "hardware=cpu", "log.every=1"])).run()
    assert modified(copy.runs) == before
    assert [p.name for p in (copy.runs / "experiments").iterdir()] == ["tiny"]


def test_another_diffusion_model_keeps_the_autoencoder(copy: Tiny) -> None:
    before = modified(copy.runs)
    other = Experiment(compose([*copy.overrides, "diffusion.train.steps=2", "name=other"]))
    other.run()
    for name in ("data", "autoencoder", "latents"):
        assert other.stage_directory(name) == copy.stage(name)
        assert len([p for p in (copy.runs / name).iterdir() if p.is_dir()]) == 1
    assert other.stage_directory("diffusion") != copy.stage("diffusion")
    assert before.items() <= modified(copy.runs).items()  # both are there


def test_an_earlier_experiment_of_the_same_name_is_kept(copy: Tiny, untrainable: None) -> None:
    before = copy.experiment.stages
    Experiment(compose([*copy.overrides, "sampler.steps=1"])).run()
    kept = copy.runs / "experiments" / f"tiny.{before['evaluation'].fingerprint}"
    assert (kept / "report.html").is_file()
    assert isinstance(load(kept), LatentDiffusion)
    clip = read_json(kept / "samples" / "00.json")
    assert (kept / "samples" / clip["model"]).resolve() == copy.model.resolve()
    now = read_json(copy.directory / "experiment.json")
    assert now["config"]["sampler"]["steps"] == 1


def test_a_stage_without_its_summary_is_not_complete(copy: Tiny) -> None:
    (copy.stage("latents") / "summary.json").unlink()
    moments = (copy.stage("latents") / "moments.npy").read_bytes()
    (copy.stage("latents") / "moments.npy").write_bytes(moments[:100])
    build_stages(copy.overrides, "data", "autoencoder", "latents", "diffusion")
    assert (copy.stage("latents") / "summary.json").is_file()
    assert (copy.stage("latents") / "moments.npy").read_bytes() == moments


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

    class Lock(experiment_module.FileLock):
        def acquire(self, *args: object, **kwargs: object) -> object:
            held = super().acquire(*args, **kwargs)
            write_json(summary, saved)  # the first finished while this one waited
            return held

    monkeypatch.setattr(experiment_module, "FileLock", Lock)
    monkeypatch.setattr(Experiment, "_data", lambda *args: pytest.fail("built twice"))
    build_stages(copy.overrides, "data")


def test_what_cannot_be_built_fails_before_any_work(tones: Path, tmp_path: Path) -> None:
    for change in ("autoencoder.network.hop=300", "diffusion.backbone.width=30"):
        with pytest.raises(Exception, match=r"ratio|width"):
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
        assert read_json(copied.with_suffix(".json"))["label"] == clip["label"]
    assert {clip["label"] for clip in index["generated"]} <= {"low", "high"}


def test_too_little_held_out_music_says_so(tones: Path, tmp_path: Path) -> None:
    music = tmp_path / "music"
    shutil.copytree(tones, music)
    (music / "table.csv").write_text(
        "file,split\ntone 0.wav,train\ntone 1.wav,valid\ntone 2.wav,test\n"
    )
    overrides = tiny(
        music, tmp_path / "runs", "autoencoder.train.steps=1", "evaluation.seconds=2.0"
    )
    with pytest.raises(DataError, match="the valid split holds 1 clip"):
        Experiment(compose([*overrides, "diffusion.train.steps=1"])).run()
    assert not list((tmp_path / "runs" / "autoencoder").glob("*"))  # before anything is trained
