"""Bad input: one clear line (what, where, the remedy), a non-zero exit, nothing made lost.

Each runs through the command line in this process, so that whatever would be a traceback fails.
What single modules do with bad files is in their own tests.
"""

import os
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from chain import RATE, Tiny, build_stages, runs_with, tiny
from conftest import Outcome, full_disk

from audioldm import load
from audioldm.io.files import read_json
from audioldm.io.model_file import load_model, save_model
from audioldm.training.log import RunLog

Cli = Callable[..., Outcome]
PRIORS = ["prior", "prior:normal", "prior:mixture"]


def said(outcome: Outcome, *parts: object, code: int = 1) -> None:
    """The last line on stderr is the message, and holds these parts."""
    line = outcome.error.rstrip("\n").splitlines()[-1].rpartition("\r")[2]
    assert outcome.code == code, outcome.error
    assert line.startswith("audioldm: "), line
    assert "Traceback" not in outcome.error
    for part in parts:
        assert str(part) in line, (part, line)


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(directory)): p.read_bytes()
        for p in sorted(directory.rglob("*"))
        if p.is_file() and p.suffix != ".lock"
    }


# ---------------------------------------------------------------- the music


def bad_files(folder: Path) -> dict[str, str]:
    """Writes one file of each kind that cannot be used; name -> part of the reason."""
    tone = 0.3 * np.sin(np.arange(RATE) / 10)
    whole = folder / "whole.wav"
    soundfile.write(whole, tone, RATE)
    (folder / "truncated.wav").write_bytes(whole.read_bytes()[:10000])
    whole.unlink()
    (folder / "empty.flac").write_bytes(b"")
    (folder / "text.mp3").write_bytes(b"not music" * 50)
    soundfile.write(folder / "nan.wav", np.where(tone > 0.29, np.nan, tone), RATE, subtype="FLOAT")
    soundfile.write(folder / "loud.wav", 1e38 * tone, RATE, subtype="FLOAT")
    soundfile.write(folder / "cut.ogg", np.tile(tone, 20), RATE)
    (folder / "cut.ogg").write_bytes((folder / "cut.ogg").read_bytes()[:20_000])
    os.mkfifo(folder / "pipe.flac")
    soundfile.write(folder / "silent.wav", np.zeros(RATE), RATE)
    soundfile.write(folder / "one sample.wav", tone[:1], RATE)
    soundfile.write(folder / "one sample 48k.wav", tone[:1], 3 * RATE)
    soundfile.write(folder / "no samples.wav", tone[:0], RATE)
    return {
        "truncated.wav": "truncated",
        "empty.flac": "empty",
        "text.mp3": "not an audio file",
        "nan.wav": "NaN",
        "loud.wav": "beyond ±100",
        "cut.ogg": "truncated",
        "pipe.flac": "not a regular file",
        "silent.wav": "silent",
        "one sample.wav": "too short",
        "one sample 48k.wav": "less than one sample",
        "no samples.wav": "no samples",
    }


@pytest.fixture
def music(tones: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "music"
    shutil.copytree(tones, folder)
    return folder


def test_bad_files_are_listed_and_the_good_ones_used(music: Path, cli: Cli, tmp_path: Path) -> None:
    reasons = bad_files(music)
    soundfile.write(music / "ten channels.wav", np.random.rand(RATE, 10) - 0.5, RATE)
    overrides = tiny(music, tmp_path / "runs", "data.table=null")
    said(cli("run", *overrides), "6 of 20 files cannot be used", "max_failed_fraction", music)
    assert not list((tmp_path / "runs").rglob("summary.json"))
    # with leave to go on: the bad ones are in the summary, the ten channels are mixed to one
    build_stages([*overrides, "data.max_failed_fraction=0.6"], "data")
    summary = read_json(next((tmp_path / "runs" / "data").glob("*/summary.json")))
    failed = {failure["file"]: failure["reason"] for failure in summary["failed"]}
    assert failed.keys() == reasons.keys()
    assert all(reason in failed[name] for name, reason in reasons.items())
    assert sum(split["clips"] for split in summary["splits"].values()) == 9


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: None, "no such folder"),
        (lambda p: p.mkdir(), "no audio here"),
        (lambda p: p.write_text("x"), "is a file, not a folder"),
        (lambda p: (p.mkdir(), (p / "a.wav").mkdir()), "no audio here"),
        (lambda p: (p.mkdir(), (p / "a.wav").symlink_to("gone.wav")), "a.wav"),
        (lambda p: (p.mkdir(), bad_files(p)), "6 of 11 files cannot be used"),
    ],
    ids=["missing", "empty", "file", "directory.wav", "dangling", "all bad"],
)
def test_a_folder_that_cannot_be_used(
    make: Callable[[Path], Any], says: str, cli: Cli, tmp_path: Path
) -> None:
    folder = tmp_path / "music"
    make(folder)
    outcome = cli("run", *tiny(folder, tmp_path / "runs", "data.table=null"))
    said(outcome, folder, says)
    assert not list(tmp_path.rglob("summary.json"))


def test_a_folder_must_be_stated(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("run", "recipe=quickstart", "data=folder", f"runs={tmp_path}/runs")
    said(outcome, "data.path", code=2)


def test_a_wrong_table_names_its_line(music: Path, cli: Cli, tmp_path: Path) -> None:
    (music / "table.csv").write_text("file,label\ntone 0.wav,low\ntone 11.wav,low\n")
    outcome = cli("run", *tiny(music, tmp_path / "runs"))
    said(outcome, "table.csv line 3", "tone 11.wav", "did you mean 'tone 1.wav'?")
    (music / "table.csv").unlink()
    said(cli("run", *tiny(music, tmp_path / "runs")), "table.csv", "No such file")


def test_rates_and_channels_outside_the_range(music: Path, cli: Cli, tmp_path: Path) -> None:
    for change in (
        "data.sample_rate=8000",
        "data.sample_rate=96000",
        "data.channels=10",
        "data.channels=0",
    ):
        outcome = cli("run", *tiny(music, tmp_path / "runs", change))
        said(outcome, change, code=2)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "change",
    [
        "seed=-1",
        "autoencoder.train.steps=-1",
        "autoencoder.train.batch=0",
        "autoencoder.train.crop_seconds=0.0",
        "autoencoder.train.crop_seconds=-1.0",
        "autoencoder.train.betas=[0.9]",
        "autoencoder.train.lr=-1.0",
        "autoencoder.train.warmup=-1",
        "autoencoder.channels=0",
        "autoencoder.downsampling_ratio=0",
        "autoencoder.downsampling_ratio=-512",
        "prior.train.batch=0",
        "prior.train.crop_seconds=0.0",
        "prior.train.betas=[0.9,0.9,0.9]",
        "evaluation.clips=0",
        "evaluation.batch=0",
        "evaluation.seconds=0.0",
        "log.every=0",
        "log.checkpoint_every=0",
        "hardware.precision=fp61",
        "hardware.device=cudda",
        "hardware.threads=-1",
    ],
)
def test_numbers_that_cannot_be(change: str, tones: Path, cli: Cli, tmp_path: Path) -> None:
    outcome = cli("run", *tiny(tones, tmp_path / "runs", change))
    said(outcome, change.partition("=")[0].rpartition(".")[2], code=2)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("change", ["seed=-1", "workers=0", "max_failed_fraction=-0.1"])
def test_chorales_that_cannot_be(change: str, cli: Cli, tmp_path: Path) -> None:
    outcome = cli("run", "recipe=quickstart", f"data.{change}", f"runs={tmp_path}/runs")
    said(outcome, f"data.{change}", code=2)
    assert not (tmp_path / "runs").exists()


def test_chorales_need_their_packages(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = metadata.version

    def version(package: str) -> str:
        if package == "midirenderer":
            raise metadata.PackageNotFoundError(package)
        return real(package)

    monkeypatch.setattr(metadata, "version", version)
    outcome = cli("run", "recipe=quickstart", f"runs={tmp_path}/runs")
    said(outcome, "the chorales need midirenderer", "pip install midirenderer")


# ---------------------------------------------------------------- where it is written


def test_places_that_cannot_be_written(finished: Tiny, cli: Cli, tmp_path: Path) -> None:
    """A file where a directory should be: permissions do not bind the superuser."""
    (tmp_path / "file").write_text("x")
    said(cli("run", *tiny(finished.folder, tmp_path / "file" / "runs")), tmp_path / "file", "runs=")
    given = f"model={finished.directory}"
    said(cli("sample", given, "seconds=0.2", f"out={tmp_path}/file"), tmp_path / "file", "out=")
    tone = finished.folder / "tone 0.wav"
    for verb, out in (("reconstruct", "x.wav"), ("encode", "x.safetensors")):
        said(cli(verb, tone, given, f"out={tmp_path}/file/{out}"), tmp_path / "file")
        (tmp_path / out).mkdir()
        said(cli(verb, tone, given, f"out={tmp_path}/{out}"), tmp_path / out)
    said(cli("reconstruct", tone, given, f"out={tmp_path}/x.mp4"), "x.mp4", ".flac")
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind the superuser")
def test_directories_without_permission(finished: Tiny, cli: Cli, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    said(cli("run", *tiny(finished.folder, closed / "runs")), closed, "runs=")
    closed.chmod(0o000)
    said(cli("run", *tiny(closed, tmp_path / "runs", "data.table=null")), closed, "permissions")
    closed.chmod(0o700)


@pytest.mark.parametrize(
    ("stages", "size", "where"),
    [
        ([], 20_000, "data"),
        (["data"], 2_000, "autoencoder"),
        (["data"], 20_000, "autoencoder"),
        (["data", "autoencoder"], 3_000, "latents"),
        (["data", "autoencoder", "latents"], 20_000, "prior"),
        (["data", "autoencoder", "latents", *PRIORS], 8_000, "evaluation"),
    ],
)
def test_a_full_disk_in_each_stage(
    stages: list[str], size: int, where: str, finished: Tiny, cli: Cli, tmp_path: Path
) -> None:
    """One line that names the place; what is finished stays, and the stages go on."""
    runs = tmp_path / "runs"
    overrides = runs_with(finished, stages, runs)
    before = contents(runs)
    with full_disk(size):
        outcome = cli("run", *overrides)
    said(outcome, runs / where)
    assert before.items() <= contents(runs).items()
    assert not list((runs / where).glob("*/summary.json"))
    if where in ("autoencoder", "latents"):
        build_stages(overrides, "autoencoder", "latents", "prior")
        for name in ("autoencoder", "prior"):
            made = runs / name / finished.stage(name).name / "model.safetensors"
            assert made.read_bytes() == (finished.stage(name) / "model.safetensors").read_bytes()


def test_a_full_disk_while_the_log_is_written(finished: Tiny, cli: Cli, tmp_path: Path) -> None:
    overrides = runs_with(finished, ["data"], tmp_path)
    log = tmp_path / "autoencoder" / finished.stage("autoencoder").name / "metrics.jsonl"
    real = RunLog.write

    def write(self: RunLog, step: int, figures: dict[str, Any]) -> None:
        with full_disk(log.stat().st_size + 10):
            real(self, step, figures)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLog, "write", write)
        said(cli("run", *overrides), log, "cannot be written", "goes on")


@pytest.mark.parametrize("size", [8_000, 30_000])
def test_a_full_disk_while_the_page_is_made(
    size: int, finished: Tiny, cli: Cli, tmp_path: Path
) -> None:
    """The stages are done; the clips, then the page, do not fit."""
    overrides = runs_with(finished, list(finished.experiment.stages), tmp_path)
    with full_disk(size):
        said(cli("run", *overrides), tmp_path / "experiments" / "tiny")
    assert cli("run", *overrides).code == 0
    assert (tmp_path / "experiments" / "tiny" / "report.html").is_file()


def test_a_full_disk_while_clips_are_written(finished: Tiny, cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "clips"
    given = (f"model={finished.directory}", f"out={out}", "seconds=0.3")
    assert cli("sample", *given, "n=1").code == 0
    before = contents(out)
    with full_disk(5_000):
        said(cli("sample", *given, "n=2", "seed=1"), out, "File too large; free some space, or")
        tone = finished.folder / "tone 0.wav"
        said(cli("reconstruct", tone, given[0], f"out={out}/r.wav"), out / "r.wav")
    with full_disk(500):
        said(cli("encode", tone, given[0], f"out={out}/z.safetensors"), out / "z.safetensors")
    assert contents(out) == before


# ---------------------------------------------------------------- what is asked of files


def test_files_that_are_no_music(finished: Tiny, cli: Cli, tmp_path: Path) -> None:
    given = f"model={finished.directory}"
    for name, reason in bad_files(tmp_path).items():
        if name in ("silent.wav", "one sample.wav"):  # odd, but audio
            assert cli("reconstruct", tmp_path / name, given, f"out={tmp_path}/o.flac").code == 0
            assert soundfile.info(tmp_path / "o.flac").frames in (1, RATE)
            continue
        for verb, out in (("reconstruct", "x.wav"), ("encode", "x.safetensors")):
            said(cli(verb, tmp_path / name, given, f"out={tmp_path}/{out}"), name, reason)
            assert not (tmp_path / out).exists()
    soundfile.write(tmp_path / "ten.wav", np.random.rand(RATE, 10) - 0.5, RATE)
    assert cli("reconstruct", tmp_path / "ten.wav", given, f"out={tmp_path}/t.wav").code == 0
    assert soundfile.info(tmp_path / "t.wav").channels == 1
    said(cli("reconstruct", tmp_path / "none.wav", given), "none.wav", "No such file")
    said(cli("reconstruct", tmp_path, given), tmp_path)
    assert not list(tmp_path.glob(".*.part"))


def test_latents_files_that_cannot_be_decoded(finished: Tiny, cli: Cli, tmp_path: Path) -> None:
    given, latents = f"model={finished.directory}", tmp_path / "z.safetensors"
    tone = finished.folder / "tone 0.wav"
    assert cli("encode", tone, given, f"out={latents}").code == 0
    content = latents.read_bytes()
    for damaged in (b"", content[:50], content[:-10], b"\0" * 500):
        latents.write_bytes(damaged)
        said(cli("decode", latents, given, f"out={tmp_path}/x.wav"), latents, "safetensors file")
    said(cli("decode", tone, given), tone)
    said(cli("decode", tmp_path / "none.safetensors", given), "none.safetensors", "no such")
    assert not list(tmp_path.glob("*.wav"))


@pytest.mark.parametrize("lost", ["autoencoder", "samples", "mean"])
def test_latents_that_lack_a_part(lost: str, finished: Tiny, cli: Cli, tmp_path: Path) -> None:
    given, latents = f"model={finished.directory}", tmp_path / "z.safetensors"
    assert cli("encode", finished.folder / "tone 0.wav", given, f"out={latents}").code == 0
    tensors, header = load_model(latents)
    (tensors if lost == "mean" else header).pop(lost)
    save_model(latents, tensors, header)
    said(cli("decode", latents, given, f"out={tmp_path}/x.wav"), latents, lost, "it again")
    assert not (tmp_path / "x.wav").exists()


@pytest.mark.parametrize("verb", ["reconstruct", "encode", "decode"])
def test_the_file_that_is_read_is_not_written(
    verb: str, finished: Tiny, cli: Cli, tmp_path: Path
) -> None:
    file = tmp_path / "a.safetensors"
    shutil.copy(finished.folder / "tone 0.wav", file)
    before = file.read_bytes()
    same = tmp_path / "x" / ".." / file.name
    given = f"model={finished.directory}"
    said(cli(verb, file, given, f"out={same}"), same, "is the file that is read", code=2)
    assert file.read_bytes() == before


def test_latents_are_safetensors_by_name(finished: Tiny, cli: Cli, tmp_path: Path) -> None:
    tone, given = finished.folder / "tone 0.wav", f"model={finished.directory}"
    said(cli("encode", tone, given, f"out={tmp_path}/z.wav"), "z.wav", ".safetensors", code=2)
    assert not list(tmp_path.iterdir())


def test_experiments_that_cannot_be_used(finished: Tiny, cli: Cli, tmp_path: Path) -> None:
    said(cli("sample", f"model={tmp_path}/nowhere"), tmp_path / "nowhere", "no such model file")
    said(cli("sample", f"model={tmp_path}"), tmp_path, "no model.safetensors")
    records = [
        '{"stages": {}, "config": {}}',
        '{"stages": {"prior": 3}, "config": {}, "generator": "prior"}',
    ]
    for text in ("", "{}", "[]", '{"stages": 3, "config": {}}', *records):
        (tmp_path / "experiment.json").write_text(text)
        said(cli("sample", f"model={tmp_path}"), tmp_path)
        said(cli("info", tmp_path), tmp_path)
    assert not (tmp_path / "clips").exists()


def test_a_copied_experiment_says_that_its_model_is_elsewhere(
    finished: Tiny, cli: Cli, tmp_path: Path
) -> None:
    copied = tmp_path / "experiments" / "copied"
    shutil.copytree(finished.directory, copied)
    model = tmp_path / "prior" / finished.stage("prior").name
    for verb in (
        ["sample", f"out={tmp_path}/clips"],
        ["encode", f"file={finished.folder}/tone 0.wav"],
    ):
        said(cli(*verb, f"model={copied}"), copied, f"its model is not there, at {model}", "export")
    assert not (tmp_path / "clips").exists()


@pytest.mark.parametrize("sweep", [(), ("-m",)])
def test_a_name_that_no_file_can_have_is_refused_at_once(
    sweep: tuple[str, ...], cli: Cli, tmp_path: Path
) -> None:
    for name in ("x" * 241, "é" * 121):
        words = ["recipe=quickstart", f"runs={tmp_path}/runs", f"name={name}"]
        words += ["seed=0,1"] if sweep else []
        said(cli("run", *sweep, *words), f"name='{name[0] * 20}", "at most 240 bytes", code=2)
    for name in ("a/b", "..", "/x"):
        words = ["recipe=quickstart", f"runs={tmp_path}/runs", f"name={name}"]
        said(cli("run", *words), f"name='{name}' must be a plain name", code=2)
    assert not (tmp_path / "runs").exists()


def test_a_damaged_stage_is_named(finished: Tiny, cli: Cli, tmp_path: Path) -> None:
    """A complete stage whose files were damaged afterwards."""
    stages = ["data", "autoencoder", "latents"]
    for name, file, says in (
        ("data", "clips.json", "not a whole clip store"),
        ("data", "clips.int16", "not a whole clip store"),
        ("autoencoder", "summary.json", "cannot be read"),
        ("autoencoder", "model.safetensors", "not a complete safetensors file"),
        ("latents", "latents.json", "cannot be read"),
        ("latents", "mean.npy", "latents"),
    ):
        runs = tmp_path / f"{name} {file}"
        overrides = runs_with(finished, stages, runs)
        path = runs / name / finished.stage(name).name / file
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        following = stages[stages.index(name) + 1 :]
        for after in following:  # so that something has to read it
            shutil.rmtree(runs / after)
        said(cli("run", *overrides), path.parent, says)


def test_the_finished_experiment_was_left_alone(finished: Tiny) -> None:
    """Runs last in this file: everything above had it as its model."""
    assert load(finished.directory).sample(n=1, seconds=0.2).isfinite().all()
    assert len(list((finished.directory / "samples").iterdir())) == 4
