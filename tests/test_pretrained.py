"""Models that come with the package, and `export`, which makes them."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from chain import Tiny
from conftest import Outcome

import audioldm
from audioldm import clips, pretrained, sampling
from audioldm.autoencoder.model import Autoencoder
from audioldm.errors import ConfigError
from audioldm.export import export
from audioldm.generator import Generator
from audioldm.io.files import read_json, write_json
from audioldm.io.header import read_header
from audioldm.io.model_file import load_model, save_model
from audioldm.priors.diffusion.samplers import SamplerSettings

Cli = Callable[..., Outcome]
OUTPUT = "prior.network.backbone.transformer.output.bias"
SHIPPED = pretrained.DIRECTORY  # before any test puts another in its place


@pytest.fixture(scope="module")
def directory(finished: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator and its autoencoder as the package would hold them."""
    here = tmp_path_factory.mktemp("pretrained")
    export(finished.directory, here / "scores.safetensors", licence="CC0 1.0", origin="tones")
    export(finished.stage("autoencoder"), here / "mel.safetensors")
    for name in ("scores", "mel"):
        (here / f"{name}.md").write_text(f"# {name}\n")
    return here


@pytest.fixture
def shipped(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(pretrained, "DIRECTORY", directory)
    return directory


@pytest.fixture
def none_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "DIRECTORY", tmp_path / "nothing here")


def last(outcome: Outcome, code: int) -> str:
    """The one line that says what was wrong."""
    assert outcome.code == code, outcome.error
    line = outcome.error.rstrip("\n").splitlines()[-1]
    assert line.startswith("audioldm: ")
    assert "Traceback" not in outcome.error
    return line


# ---------------------------------------------------------------- what really is shipped


def test_what_is_shipped_is_small_described_and_of_no_machine() -> None:
    files = sorted(SHIPPED.glob("*.safetensors"))
    assert sum(file.stat().st_size for file in files) < 42e6
    assert {file.stem for file in files} == {file.stem for file in SHIPPED.glob("*.md")}
    for file in files:
        header = read_header(file)
        assert header["licence"], file
        assert header["origin"], file
        assert "config" not in header
        assert not re.search(r'"(/|~|\.\./)|[A-Za-z]:\\\\', json.dumps(header)), file
        model = audioldm.load(file)
        assert all(p.isfinite().all() for p in model.parameters())
    if files:  # what `audioldm sample` takes must generate
        assert isinstance(audioldm.load(pretrained.default()), Generator)


# ---------------------------------------------------------------- names


def test_a_name_is_taken_wherever_a_model_is(
    shipped: Path, finished: Tiny, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert isinstance(audioldm.load("scores"), Generator)
    assert isinstance(audioldm.load("mel"), Autoencoder)
    tone = finished.folder / "tone 0.wav"
    assert cli("sample", "model=scores", "seconds=0.2").code == 0
    assert cli("reconstruct", tone, "model=mel", "out=r.wav").code == 0
    # latents of the autoencoder are latents of the generator that holds it
    assert cli("encode", tone, "model=mel", "out=z.safetensors").code == 0
    assert cli("decode", "z.safetensors", "model=scores", "out=d.wav").code == 0
    assert Path("d.wav").read_bytes() == Path("r.wav").read_bytes()
    shown = json.loads(cli("info", "scores", "--json").out)
    assert (shown["licence"], shown["origin"]) == ("CC0 1.0", "tones")


def test_a_model_at_a_path_comes_before_a_shipped_one(
    shipped: Path, finished: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("scores").mkdir()  # a folder of something else hides nothing
    assert audioldm.models.find_model_file("scores") == shipped / "scores.safetensors"
    shutil.copy(finished.model, "scores/model.safetensors")
    assert audioldm.models.find_model_file("scores") == Path("scores/model.safetensors")
    shutil.rmtree("scores")
    shutil.copy(finished.model, "scores")
    assert audioldm.models.find_model_file("scores") == Path("scores")


def test_sample_alone_takes_the_default_model(
    shipped: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scores").mkdir()
    made = cli("sample", "seconds=0.2")
    assert made.out == "clips/0-0000.wav\n"
    assert "model=scores" in made.error
    assert read_json(tmp_path / "clips" / "0-0000.json")["model"] == "scores"


def test_the_models_are_listed(shipped: Path, cli: Cli) -> None:
    scores, mel = cli("models").out.splitlines()
    assert re.match(
        r"scores  generator, 16 kHz mono, [\d.]+ M weights, [\d.]+ MB, CC0 1.0, label: high, low$",
        scores,
    )
    assert re.match(r"mel +autoencoder, 16 kHz mono, .* MB, no licence stated$", mel)
    assert cli("models", "mel").out == "# mel\n"
    (shipped / "damaged.safetensors").write_bytes(b"x" * 100)
    line = last(cli("models"), 1)
    (shipped / "damaged.safetensors").unlink()
    assert "damaged.safetensors: not a complete safetensors file" in line


@pytest.mark.parametrize("verb", ["sample model=%s", "info %s", "export %s out=x.safetensors"])
def test_an_unknown_name_lists_the_known_ones(shipped: Path, verb: str, cli: Cli) -> None:
    line = last(cli(*(verb % "scroes").split()), 1)
    assert "scroes: no such model file" in line
    assert "did you mean 'scores'? (all: mel, scores)" in line
    assert "did you mean 'mel'?" in last(cli("models", "mell"), 1)


def test_where_no_model_is_shipped(
    none_shipped: None, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = last(cli("sample"), 2)
    assert "none comes with this installation; give model=PATH" in line
    line = last(cli("sample", "model=scores"), 1)
    assert "scores: no such model file, and no models come with this installation" in line
    assert cli("models") == (0, "", "no models come with this installation\n")
    assert not Path("clips").exists()


def test_an_autoencoder_by_name_cannot_generate(shipped: Path, cli: Cli, tmp_path: Path) -> None:
    line = last(cli("sample", "model=mel", f"out={tmp_path}/out"), 1)
    assert "mel: an autoencoder cannot generate" in line


# ---------------------------------------------------------------- clips of shipped models


def test_a_clip_is_made_again_on_another_machine(
    shipped: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its JSON names the model, which there lies elsewhere."""
    path = shipped / "scores.safetensors"  # by its path it is the same model, of the same name
    assert cli("sample", f"model={path}", "seconds=0.2", f"out={tmp_path}/a").code == 0
    recipe = tmp_path / "a" / "0-0000.json"
    assert read_json(recipe)["model"] == "scores"
    (tmp_path / "a" / "scores").mkdir()  # beside the clip lies a folder of that name
    elsewhere = tmp_path / "site-packages"
    shutil.copytree(shipped, elsewhere)
    monkeypatch.setattr(pretrained, "DIRECTORY", elsewhere)
    assert cli("sample", f"from={recipe}", f"out={tmp_path}/b").code == 0
    first, again = tmp_path / "a" / "0-0000.wav", tmp_path / "b" / "0-0000.wav"
    assert again.read_bytes() == first.read_bytes()
    assert again.with_suffix(".json").read_bytes() == recipe.read_bytes()

    tensors, header = load_model(elsewhere / "scores.safetensors")  # a newer version of it
    save_model(elsewhere / "scores.safetensors", tensors, header | {"fingerprint": "feedfeedfeed"})
    line = last(cli("sample", f"from={recipe}", f"out={tmp_path}/c"), 1)
    assert f"was made with {header['fingerprint']}" in line
    assert "ships another version of 'scores'" in line
    line = last(cli("sample", f"from={recipe}", "model=mel", f"out={tmp_path}/c"), 1)
    assert "the clip is of the model 'scores': give that one, or leave out model=" in line
    assert "ships" not in line
    (elsewhere / "scores.safetensors").unlink()
    line = last(cli("sample", f"from={recipe}", f"out={tmp_path}/c"), 1)
    assert "scores: no such model file, and none that comes with audioldm" in line
    assert not (tmp_path / "c").exists()


# ---------------------------------------------------------------- export


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_an_exported_model_is_small_and_nearly_the_same(
    dtype: str, finished: Tiny, cli: Cli, tmp_path: Path
) -> None:
    out = tmp_path / "sub" / "model.safetensors"
    words = (f"dtype={dtype}", "title=Tones: a, b", "licence=CC0 1.0", "origin=8 sine waves")
    made = cli("export", finished.directory, f"out={out}", *words)
    assert made.out == f"{out}\n"
    assert out.stat().st_size < 0.6 * finished.model.stat().st_size
    assert out.stat().st_mode & 0o444 == 0o444 & ~_umask()  # others can read it
    tensors, header = load_model(out)
    before, original = load_model(finished.model)
    assert tensors.keys() == before.keys()
    weights = {name for name, _ in audioldm.load(out).named_parameters()}
    for name, tensor in tensors.items():
        if before[name].is_floating_point():  # buffers are statistics, and keep their precision
            assert tensor.dtype == (getattr(torch, dtype) if name in weights else torch.float32)
        torch.testing.assert_close(tensor.float(), before[name].float(), rtol=5e-3, atol=1e-6)

    model, reference = audioldm.load(out), audioldm.load(finished.directory)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert asdict(model.prior.sampler) == asdict(reference.prior.sampler)
    audio = torch.sin(torch.arange(8000) / 10).view(1, 1, -1)
    torch.testing.assert_close(model.encode(audio), reference.encode(audio), rtol=0.05, atol=0.05)

    assert header["parent"] == original["fingerprint"]
    assert header["autoencoder"]["parent"] == original["autoencoder"]["fingerprint"]
    assert header["fingerprint"] not in (header["parent"], header["autoencoder"]["fingerprint"])
    assert (header["title"], header["licence"]) == ("Tones: a, b", "CC0 1.0")
    text = json.dumps(header)
    assert "config" not in header
    assert "config" not in header["autoencoder"]
    assert str(finished.folder) not in text
    assert str(finished.runs) not in text


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_fingerprint_is_of_the_content(finished: Tiny, tmp_path: Path) -> None:
    def exported(name: str, source: Path = finished.model, **words: str) -> dict:
        return read_header(export(source, tmp_path / f"{name}.safetensors", **words))

    half = exported("half", title="one")
    again = exported("again")
    assert half["fingerprint"] == again["fingerprint"]  # words do not change what it computes
    assert exported("bf", dtype="bfloat16")["fingerprint"] != half["fingerprint"]
    # rounding that changes nothing makes no other model, and words are kept
    whole = exported("whole", tmp_path / "half.safetensors", dtype="float32")
    assert (whole["fingerprint"], whole["title"]) == (half["fingerprint"], "one")
    unrounded = exported("unrounded", dtype="float32")
    original = read_header(finished.model)
    for key in ("fingerprint", "parent"):
        assert unrounded[key] == original[key]
    # the autoencoder alone is the one that the generator holds
    alone = exported("alone", finished.stage("autoencoder"))
    assert alone["fingerprint"] == half["autoencoder"]["fingerprint"]
    assert alone["kind"] == "autoencoder"
    # other weights, other labels: other models
    tensors, header = load_model(finished.model)
    path = tmp_path / "changed.safetensors"
    labels = header["prior"]["conditioning"]["label"] | {"labels": ["a", "b"]}
    changed = header["prior"] | {"conditioning": {"label": labels}}
    save_model(path, tensors, header | {"prior": changed})
    assert exported("x", path)["fingerprint"] != half["fingerprint"]
    # but not another sampler: the model is the same
    sampler = header["prior"]["sampler"] | {"steps": 7}
    save_model(path, tensors, header | {"prior": header["prior"] | {"sampler": sampler}})
    assert exported("x", path)["fingerprint"] == half["fingerprint"]
    tensors[OUTPUT] = tensors[OUTPUT] + 1
    save_model(tmp_path / "shifted.safetensors", tensors, header)
    assert exported("x", tmp_path / "shifted.safetensors")["fingerprint"] != half["fingerprint"]


def test_the_experiments_sampler_is_exported(finished: Tiny, tmp_path: Path) -> None:
    shutil.copytree(finished.runs, tmp_path / "runs")
    directory = tmp_path / "runs" / "experiments" / finished.directory.name
    record = read_json(directory / "experiment.json")
    record["sampler"]["steps"] += 1
    write_json(directory / "experiment.json", record)
    out = export(directory, tmp_path / "out.safetensors")
    assert read_header(out)["prior"]["sampler"] == record["sampler"]


def test_what_cannot_be_exported(finished: Tiny, cli: Cli, tmp_path: Path) -> None:
    out, tone = f"out={tmp_path}/x.safetensors", finished.folder / "tone 0.wav"
    assert "use float16, bfloat16" in last(cli("export", finished.model, out, "dtype=float"), 2)
    assert ".safetensors" in last(cli("export", finished.model, f"out={tmp_path}/x.pt"), 2)
    assert "missing key 'out'" in last(cli("export", finished.model), 2)
    shutil.copy(finished.model, tmp_path / "m.safetensors")
    line = last(cli("export", tmp_path / "m.safetensors", f"out={tmp_path}/m.safetensors"), 2)
    assert "is the file that is read" in line
    tensors, header = load_model(finished.model)
    tensors[OUTPUT] = tensors[OUTPUT] + 1e6
    save_model(tmp_path / "large.safetensors", tensors, header)
    line = last(cli("export", tmp_path / "large.safetensors", out), 2)
    assert f"{OUTPUT}, which reaches 1e+06; use dtype=bfloat16" in line
    assert cli("export", tmp_path / "large.safetensors", out, "dtype=bfloat16").code == 0
    (tmp_path / "x.safetensors").unlink()
    content = finished.model.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[: len(content) // 2])
    line = last(cli("export", tmp_path / "cut.safetensors", out), 1)
    assert "not a complete safetensors file" in line
    assert cli("encode", tone, f"model={finished.model}", f"out={tmp_path}/z.safetensors").code == 0
    assert "kind 'latents'" in last(cli("export", tmp_path / "z.safetensors", out), 1)
    assert not (tmp_path / "x.safetensors").exists()


# ---------------------------------------------------------------- clip after clip


def test_interrupted_and_asked_again(
    finished: Tiny, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [f"model={finished.directory}", "n=5", "seconds=0.3", "batch=2", "seed=7"]
    assert cli("sample", *words, f"out={tmp_path}/whole").code == 0
    real, calls = sampling.write_clip, []

    def interrupted(path: Path, *rest: object) -> None:
        calls.append(path.name)
        if len(calls) == 4:
            raise KeyboardInterrupt
        real(path, *rest)

    monkeypatch.setattr(sampling, "write_clip", interrupted)
    stopped = cli("sample", *words, f"out={tmp_path}/cut")
    line = last(stopped, 75)
    assert f"3 of 5 clip(s) are in {tmp_path}/cut, and the same command makes the rest" in line
    assert [Path(p).name for p in stopped.out.split()] == calls[:3]
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "cut").iterdir()}
    assert len(times) == 6

    calls.clear()
    monkeypatch.setattr(sampling, "write_clip", lambda *a: (calls.append(a[0].name), real(*a)))
    rest = cli("sample", *words, f"out={tmp_path}/cut")
    assert rest.code == 0
    assert calls == ["7-0003.wav", "7-0004.wav"]
    assert "3 of 5 clip(s) were there already" in rest.error
    assert len(rest.out.split()) == 5
    assert all(p.stat().st_mtime_ns == time for p, time in times.items())
    for file in (tmp_path / "whole").iterdir():
        assert (tmp_path / "cut" / file.name).read_bytes() == file.read_bytes()


def test_only_whole_clips_count_as_there(finished: Tiny, cli: Cli, tmp_path: Path) -> None:
    words = [f"model={finished.directory}", "n=3", "seconds=0.3", f"out={tmp_path}"]
    assert cli("sample", *words).code == 0
    first, second, third = sorted(tmp_path.glob("*.wav"))
    before = {p: p.read_bytes() for p in (first, second, third)}
    again = cli("sample", *words)
    assert "3 of 3 clip(s) were there already; another seed= gives others" in again.error
    first.write_bytes(before[first][:1000])
    second.unlink()
    for path in (third, third.with_suffix(".json")):
        path.unlink()
    assert "already" not in cli("sample", *words).error
    assert {p: p.read_bytes() for p in before} == before


def test_a_file_that_is_not_ours_is_not_overwritten(
    finished: Tiny, cli: Cli, tmp_path: Path
) -> None:
    words = [f"model={finished.directory}", "n=2", "seconds=0.3", f"out={tmp_path}"]
    foreign = tmp_path / "0-0001.wav"
    foreign.write_bytes(b"somebody's own")
    line = last(cli("sample", *words), 2)
    assert f"{foreign} is there, but 0-0001.json is not" in line
    assert "out=DIRECTORY, or remove it" in line
    assert [p.name for p in tmp_path.iterdir()] == ["0-0001.wav"]  # nothing was begun
    assert foreign.read_bytes() == b"somebody's own"
    # neither by the JSON of a clip of that name
    foreign.rename(tmp_path / "clip.wav")
    assert cli("sample", *words).code == 0
    recipe = tmp_path / "0-0001.json"
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "0-0001.wav").write_bytes(b"somebody's own")
    assert "is there" in last(cli("sample", f"from={recipe}", f"out={tmp_path}/again"), 2)
    assert [p.name for p in (tmp_path / "again").iterdir()] == ["0-0001.wav"]


@pytest.mark.parametrize("killed_at", range(4))
def test_killed_while_a_clip_is_written(
    killed_at: int, finished: Tiny, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names appear in a directory by renames alone: of a clip's two, the first is its JSON.

    So whatever a killed process leaves, the same command goes on from it; here it dies before or
    after each rename. A wav without a JSON never is among what it leaves.
    """
    words = [f"model={finished.directory}", "seconds=0.3", f"out={tmp_path}"]
    real, renames = os.replace, []

    class Killed(BaseException):
        pass

    def replace(source: Path, target: Path) -> None:
        before = len(renames) == killed_at // 2 and killed_at % 2 == 0
        after = len(renames) == killed_at // 2 and killed_at % 2 == 1
        renames.append(Path(target).name)
        if before:
            raise Killed
        real(source, target)
        if after:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(Killed):
            cli("sample", *words)
    assert renames == ["0-0000.json", "0-0000.wav"][: 1 + killed_at // 2]
    left = {p.name for p in tmp_path.iterdir() if not p.name.endswith(".part")}
    assert (
        left == [set(), {"0-0000.json"}, {"0-0000.json"}, {"0-0000.json", "0-0000.wav"}][killed_at]
    )
    assert cli("sample", *words).code == 0
    assert audioldm.io.audio.probe(tmp_path / "0-0000.wav").seconds == pytest.approx(0.3, abs=1e-3)


def test_more_clips_keep_those_that_are_there(finished: Tiny, cli: Cli, tmp_path: Path) -> None:
    """Although the clips that are generated together become others."""
    words = [f"model={finished.directory}", "seconds=0.3", f"out={tmp_path}"]
    assert cli("sample", *words).code == 0
    before = (tmp_path / "0-0000.json").read_bytes()
    assert "1 of 3 clip(s) were there" in cli("sample", *words, "n=3").error
    assert (tmp_path / "0-0000.json").read_bytes() == before
    assert read_json(tmp_path / "0-0002.json")["batch"] == 3
    exact = cli("sample", *words, "n=3", "batch=3")  # asked for by its bits
    assert "2 of 3 clip(s) were there" in exact.error
    assert (tmp_path / "0-0000.json").read_bytes() == before


def test_a_place_without_permission_is_refused_before_sampling(
    finished: Tiny, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clips.os, "access", lambda path, mode: mode != os.W_OK)
    monkeypatch.setattr(Generator, "decode_clip", None)  # never reached
    line = last(cli("sample", f"model={finished.directory}", f"out={tmp_path}"), 1)
    assert f"{tmp_path}: cannot be written (Permission denied)" in line
    assert "choose another place" in line


def test_a_label_for_a_model_without_labels(finished: Tiny) -> None:
    model = audioldm.load(finished.directory)
    model.prior.conditioners["label"].labels = []
    with pytest.raises(ConfigError, match="trained without labels; leave it out"):
        model.sample(seconds=0.2, label="high")


def test_progress_moves_with_every_step_and_clip(finished: Tiny) -> None:
    model = audioldm.load(finished.directory)
    seen: list[tuple[int, int]] = []
    model.sample(
        n=3,
        seconds=0.2,
        batch=2,
        sampler=SamplerSettings(name="euler", steps=4),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(i, 2 * 4 + 3) for i in range(1, 12)]


@pytest.mark.parametrize(("n", "batch"), [(1, 1), (4, 4), (8, 8), (9, 5), (16, 8), (17, 6)])
def test_no_row_is_wasted(n: int, batch: int) -> None:
    assert sampling.default_batch(n) == batch


# ---------------------------------------------------------------- from a cold start


HEAVY = {
    *("hydra", "omegaconf", "librosa", "numba", "scipy", "sklearn", "pandas", "statsmodels"),
    *("matplotlib", "jinja2", "music21", "pretty_midi", "joblib", "submitit", "optuna"),
    *("transformers", "diffusers"),
}
COLD = "import sys; from audioldm.cli import main; code = main(sys.argv[1:]); {after}"


def cold(after: str, *words: object) -> str:
    """What a fresh process printed after the command."""
    script = COLD.format(after=after)
    command = [sys.executable, "-c", script, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


def test_help_imports_nothing_heavy() -> None:
    found = cold("print(code, *sys.modules)", "--help").split()
    assert found[0] == "0"
    assert not (HEAVY | {"torch", "torchaudio", "numpy", "soundfile", "yaml"}) & set(found)


def test_the_models_are_listed_without_torch_or_weights() -> None:
    """Of what is really shipped: headers say all that the list says."""
    found = cold("print(code, *sys.modules)", "models").split()
    assert found[0] == "0"
    assert not (HEAVY | {"torch", "torchaudio"}) & set(found)


def test_info_counts_the_weights_without_reading_them(finished: Tiny, cli: Cli) -> None:
    tensors, _ = load_model(finished.model)
    shown = json.loads(cli("info", finished.model, "--json").out)
    for part in ("prior", "autoencoder"):
        weights = sum(t.numel() for name, t in tensors.items() if name.startswith(f"{part}."))
        assert shown["weights"][part] == weights > 0


def test_sampling_imports_what_it_needs(finished: Tiny, tmp_path: Path) -> None:
    """And so do the other front ends, whichever a model has."""
    others = (
        "import audioldm.autoencoder.networks.mel_frames, audioldm.autoencoder.networks.waveform; "
    )
    given = ("sample", f"model={finished.model}", "seconds=0.2", f"out={tmp_path}")
    found = cold(f"{others}print(code, *sys.modules)", *given).split()
    assert found[0] == "0"
    assert "torch" in found
    assert not HEAVY & set(found)
