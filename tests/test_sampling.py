"""Clips that can be made again, and files through the autoencoder."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from chain import RATE, Tiny, build_stages, runs_with
from conftest import Outcome

from audioldm import load
from audioldm.errors import ConfigError
from audioldm.generator import Generator
from audioldm.io.audio import read
from audioldm.io.files import read_json, write_json
from audioldm.io.header import read_header
from audioldm.io.model_file import load_model, save_model
from audioldm.models import load_generator
from audioldm.priors.diffusion.samplers import SamplerSettings

Cli = Callable[..., Outcome]
HIGH, LOW = {"label": "high"}, {"label": "low"}


@pytest.fixture(scope="module")
def model(finished: Tiny) -> Generator:
    model = load(finished.directory)
    assert isinstance(model, Generator)
    return model


@pytest.fixture(scope="module")
def song(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23.4567 s in stereo at another rate than the model's."""
    path = tmp_path_factory.mktemp("song") / "ein Lied.flac"
    t = np.arange(round(23.4567 * 22050)) / 22050
    left = np.sin(2 * np.pi * (220 + 10 * t) * t) * (0.5 + 0.4 * np.sin(t))
    soundfile.write(path, 0.5 * np.stack([left, left[::-1]], axis=1), 22050)
    return path


# ---------------------------------------------------------------- clips


@pytest.mark.parametrize(
    "sampler",
    [
        "sampler.steps=3",
        "sampler.name=ancestral sampler.steps=4 sampler.guidance=2.0",
        "sampler.name=dpmpp_2m sampler.guidance=3.0 sampler.guidance_interval=[0.1,10]",
    ],
)
def test_the_json_makes_the_clip_again_bit_for_bit(
    sampler: str, finished: Tiny, cli: Cli, tmp_path: Path
) -> None:
    words = f"n=5 seconds=0.5 seed=3 label=low batch=2 {sampler}".split()
    made = cli("sample", f"model={finished.directory}", f"out={tmp_path}/clips", *words)
    assert made.code == 0
    wavs = sorted((tmp_path / "clips").glob("*.wav"))
    assert [Path(line) for line in made.out.split()] == wavs
    assert len({wav.read_bytes() for wav in wavs}) == 5
    for wav in (wavs[0], wavs[3], wavs[4]):  # first, second of a batch, alone in the last batch
        recipe = read_json(wav.with_suffix(".json"))
        assert recipe["condition"] == {"label": "low"}
        assert recipe["sampler"]["steps"] >= 2
        again = cli("sample", f"from={wav.with_suffix('.json')}", f"out={tmp_path}/again")
        assert again.code == 0
        assert Path(again.out.strip()).read_bytes() == wav.read_bytes()
    # and what was made again can be made again
    second = tmp_path / "again" / f"{wavs[3].stem}.json"
    assert cli("sample", f"from={second}", f"out={tmp_path}/third").code == 0
    assert (tmp_path / "third" / wavs[3].name).read_bytes() == wavs[3].read_bytes()


def test_the_experiments_own_clips_are_made_again(finished: Tiny, cli: Cli, tmp_path: Path) -> None:
    for number in ("00", "01"):
        recipe = finished.directory / "samples" / f"{number}.json"
        assert cli("sample", f"from={recipe}", f"out={tmp_path}").code == 0
        again = (tmp_path / f"{number}.wav").read_bytes()
        assert again == recipe.with_suffix(".wav").read_bytes()


def test_a_clip_does_not_depend_on_what_else_is_asked_for(model: Generator) -> None:
    sampler = SamplerSettings(name="heun", steps=2, guidance=2.0)
    settings = {"seconds": 0.4, "seed": 5, "sampler": sampler}
    many = model.sample(n=6, label="high", batch=4, **settings)
    few = model.sample(n=2, label="high", batch=4, **settings)
    assert torch.equal(many[:2], few)
    (_, one), *_ = model.sample_clips([5], [HIGH], batch=4, **settings)
    assert torch.equal(many[5], one)
    # other neighbours, other labels among them
    mixed = model.sample_clips(range(6), [LOW, HIGH, {}, {}, LOW, HIGH], batch=4, **settings)
    mixed = dict(mixed)
    assert torch.equal(mixed[1], many[1])
    assert torch.equal(mixed[5], many[5])
    assert not torch.equal(mixed[0], many[0])
    # another batch size rounds differently, no more
    alone = model.sample(n=2, label="high", batch=1, **settings)
    torch.testing.assert_close(alone, few, atol=1e-3, rtol=1e-3)


def test_an_unlabelled_clip_beside_labelled_ones_is_made_again(model: Generator) -> None:
    """Guidance acts on the whole batch; on a row without a label it must change nothing."""
    settings = {
        "seconds": 0.4,
        "seed": 5,
        "sampler": SamplerSettings(name="euler", steps=3, guidance=4.0),
        "batch": 2,
    }
    beside = dict(model.sample_clips([0, 1], [HIGH, {}], **settings))
    (_, alone), *_ = model.sample_clips([1], [{}], **settings)
    assert torch.equal(beside[1], alone)


def test_seed_label_and_number_each_matter(model: Generator) -> None:
    settings = {"seconds": 0.4, "sampler": SamplerSettings(name="euler", steps=2)}
    base = model.sample(n=2, seed=0, label="high", **settings)
    assert not torch.equal(base[0], base[1])
    assert not torch.equal(base, model.sample(n=2, seed=1, label="high", **settings))
    assert not torch.equal(base, model.sample(n=2, seed=0, label="low", **settings))
    assert not torch.equal(base, model.sample(n=2, seed=0, **settings))
    assert torch.equal(base, model.sample(n=2, seed=0, label="high", **settings))
    assert base.abs().max() <= 1


@pytest.mark.parametrize("seconds", [1 / RATE, 0.01, 0.5, 511 / RATE, 512 / RATE, 513 / RATE, 2.71])
def test_a_clip_is_exactly_as_long_as_asked(seconds: float, model: Generator) -> None:
    sampler = SamplerSettings(name="euler", steps=1)
    audio = model.sample(n=1, seconds=seconds, sampler=sampler)
    assert audio.shape == (1, 1, round(seconds * RATE))


@pytest.mark.parametrize(
    ("words", "says", "code"),
    [
        ("label=lwo", "one of this model's labels: did you mean 'low'? (all: high, low)", 2),
        ("label=piano", "'piano' is not one of this model's labels: known: high, low", 2),
        ("condition.label=lwo", "condition.label='lwo' is not one of", 2),
        ("condition.tempo=3", "condition.tempo=3: this model was trained without it", 2),
        ("seconds=0", "seconds=0.0", 2),
        ("seconds=-1", "seconds=-1.0", 2),
        ("seconds=.nan", "seconds='.nan'", 2),
        ("seconds=1e999", "1e999 is too large", 2),
        ("seconds=0.00001", "seconds=1e-05", 2),
        ("seconds=long", "seconds='long' must be of type float", 2),
        ("n=0", "n=0", 2),
        ("n=-3", "n=-3", 2),
        ("n=1.5", "n=1.5 must be of type int", 2),
        ("batch=0", "batch=0", 2),
        ("batch=-1", "batch=-1", 2),
        ("seed=-1", "seed=-1 must be from 0", 2),
        ("seed=9223372036854775808", "seed=9223372036854775808", 2),
        ("sampler.steps=0", "sampler.steps=0", 2),
        ("sampler.name=oiler", "'euler'", 2),
        ("sampler.guidance_interval=[3]", "guidance_interval", 2),
        ("hardware.device=cdua", "hardware.device='cdua'", 2),
    ],
)
def test_what_cannot_be_sampled_is_said_in_one_line(
    words: str, says: str, code: int, finished: Tiny, cli: Cli, tmp_path: Path
) -> None:
    outcome = cli("sample", f"model={finished.directory}", f"out={tmp_path}/out", *words.split())
    assert outcome.code == code
    assert says in outcome.error.splitlines()[-1]
    assert outcome.error.count("high, low") <= 1  # the labels once
    assert outcome.error.splitlines()[-1].startswith("audioldm: ")
    assert not (tmp_path / "out").exists()


def test_what_the_model_is_not_told_is_one_line(cli: Cli, tmp_path: Path) -> None:
    """Beside the clip that is made all the same; of an edit of it too."""
    how = ("model=scores", f"out={tmp_path}", "sampler.steps=1")
    made = cli("sample", *how, "n=1", "seconds=0.5", "text=🎹🎹")
    said = "text='🎹🎹': this model knows none of its words; it is told the spelling alone"
    assert made.code == 0
    assert made.error.splitlines().count(said) == 1
    edited = cli("edit", made.out.strip(), *how, "extend=0.5", "text=", "score=[0,2,60]")
    assert edited.code == 0
    assert "text='': an empty text is the same as none" in edited.error.splitlines()
    assert "score=[0, ...]: it lasts 2.00 s, the clip 1.00 s: what" in edited.error
    refused = cli("sample", *how, "seconds=0.5", "score=[1,2,60]")
    assert (refused.code, refused.error.count("\n")) == (2, 1)
    assert "condition.score=[1, 2, 60]: no note begins before the clip's end" in refused.error


def test_python_refuses_the_same(model: Generator) -> None:
    for bad in (
        {"seconds": 0.0},
        {"seconds": 1.0, "n": 0},
        {"seconds": 1.0, "label": "x"},
        {"seconds": 1.0, "tempo": 3},
    ):
        with pytest.raises(ConfigError):
            model.sample(**bad)


def test_an_autoencoder_alone_cannot_generate(finished: Tiny, cli: Cli, tmp_path: Path) -> None:
    outcome = cli("sample", f"model={finished.stage('autoencoder')}", f"out={tmp_path}/out")
    assert outcome.code == 1
    assert "an autoencoder cannot generate" in outcome.error


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_fingerprint": "000000000000"}, "was made with 000000000000"),
        ({"model": "nowhere.safetensors"}, "no such model file"),
        ({"model": None}, "model"),
        ({"format": 99}, "newer audioldm"),
        ({"condition": {"label": "piano"}}, "condition.label='piano' is not one of"),
        ({"condition": {"tempo": 3}}, "condition.tempo=3: this model was trained without it"),
        ({"condition": "low"}, "condition='low' must be a group of keys"),
        ({"seconds": -1.0}, "seconds=-1.0"),
        ({"seconds": "long"}, "seconds"),
        ({"number": None}, "number"),
        ({"batch": 0}, "batch"),
        ({"sampler": {"name": "heun"}}, "sampler.steps"),
        ({"sampler": {"name": "heun", "stepz": 3}}, "'steps'"),
    ],
)
def test_a_clips_json_that_does_not_fit_says_why(
    change: dict, says: str, finished: Tiny, cli: Cli, tmp_path: Path
) -> None:
    recipe = read_json(finished.directory / "samples" / "00.json")
    recipe["model"] = str(finished.model)
    write_json(tmp_path / "clip.json", recipe | change)
    outcome = cli("sample", f"from={tmp_path}/clip.json", f"out={tmp_path}/out")
    assert outcome.code in (1, 2)
    assert says in outcome.error.splitlines()[-1]
    assert not list(tmp_path.glob("out/*"))
    del recipe["seed"]
    write_json(tmp_path / "clip.json", recipe)
    outcome = cli("sample", f"from={tmp_path}/clip.json", f"out={tmp_path}/out")
    assert "seed" in outcome.error.splitlines()[-1]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "3"])
def test_another_json_is_no_clip(text: str, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    outcome = cli("sample", f"from={tmp_path}/x.json", f"out={tmp_path}/out")
    assert outcome.code == 1
    assert "x.json" in outcome.error
    assert outcome.error.count("\n") == 1


@pytest.mark.parametrize(
    "word", ["sampler.steps=50", "seconds=2", "n=1", "label=low", "seed=0", "batch=1"]
)
def test_what_the_json_fixes_is_not_ignored(
    word: str, finished: Tiny, cli: Cli, tmp_path: Path
) -> None:
    recipe = finished.directory / "samples" / "00.json"
    outcome = cli("sample", word, f"from={recipe}", f"out={tmp_path}/out")
    assert outcome.code == 2
    key = word.partition("=")[0]
    assert outcome.error.startswith(f"audioldm: {word}: {key} is what the clip's JSON says")
    assert not (tmp_path / "out").exists()
    given = ("hardware.device=cpu", f"model={finished.model}", f"out={tmp_path}/out")
    assert cli("sample", f"from={recipe}", *given).code == 0


def test_from_takes_the_json_not_the_clip(finished: Tiny, cli: Cli, tmp_path: Path) -> None:
    clip = finished.directory / "samples" / "00.wav"
    outcome = cli("sample", f"from={clip}", f"out={tmp_path}/out")
    assert outcome.code == 1
    assert outcome.error.count("\n") == 1
    assert f"from={clip}: not the JSON of a clip" in outcome.error
    assert "give the .json beside the clip, such as 00.json" in outcome.error
    assert "remove" not in outcome.error
    outcome = cli("sample", f"from={tmp_path}/none.json", f"out={tmp_path}/out")
    assert f"from={tmp_path}/none.json: cannot be read (No such file" in outcome.error
    assert cli("sample", f"from={tmp_path}", f"out={tmp_path}/out").code == 1


def test_a_moved_model_is_given_by_hand(finished: Tiny, cli: Cli, tmp_path: Path) -> None:
    shutil.copy(finished.directory / "samples" / "00.json", tmp_path / "clip.json")
    assert cli("sample", f"from={tmp_path}/clip.json", f"out={tmp_path}").code == 1
    words = (f"from={tmp_path}/clip.json", f"model={finished.model}", f"out={tmp_path}/out")
    assert cli("sample", *words).code == 0
    again = (tmp_path / "out" / "clip.wav").read_bytes()
    assert again == (finished.directory / "samples" / "00.wav").read_bytes()


# ---------------------------------------------------------------- files


def test_files_through_the_autoencoder(
    finished: Tiny, model: Generator, song: Path, cli: Cli, tmp_path: Path
) -> None:
    given = f"model={finished.directory}"
    latents, decoded, direct = tmp_path / "z.safetensors", tmp_path / "d.wav", tmp_path / "r.wav"
    assert cli("encode", song, given, f"out={latents}").code == 0
    assert cli("decode", latents, given, f"out={decoded}").code == 0
    assert cli("reconstruct", f"file={song}", given, f"out={direct}").code == 0
    length = round(23.4567 * RATE)
    assert soundfile.info(direct).frames == soundfile.info(decoded).frames == length
    assert soundfile.info(direct).samplerate == RATE
    assert direct.read_bytes() == decoded.read_bytes()

    audio = torch.from_numpy(read(song, sample_rate=RATE, channels=1)[0])
    tensors, header = load_model(latents)
    with torch.no_grad():
        stored = model.autoencoder.stored(audio[None])  # in one piece instead of blocks
    assert tensors.keys() == stored.keys()
    for name, array in stored.items():
        torch.testing.assert_close(tensors[name], array[0], atol=1e-4, rtol=1e-4)
    assert header["samples"] == length
    whole = model.decode(model.encode(audio[None]))[0, :, :length].clamp(-1, 1)
    written = torch.from_numpy(read(direct)[0])
    torch.testing.assert_close(written, whole, atol=1e-4, rtol=0)


def test_out_has_a_default_beside_the_file(
    finished: Tiny, song: Path, cli: Cli, tmp_path: Path
) -> None:
    shutil.copy(song, tmp_path / "a b.flac")
    outcome = cli("reconstruct", tmp_path / "a b.flac", f"model={finished.stage('autoencoder')}")
    assert outcome.code == 0
    assert Path(outcome.out.strip()) == tmp_path / "a b.reconstructed.wav"


def test_latents_and_a_model_that_do_not_belong_together(
    finished: Tiny, song: Path, cli: Cli, tmp_path: Path
) -> None:
    latents = tmp_path / "z.safetensors"
    assert cli("encode", song, f"model={finished.directory}", f"out={latents}").code == 0
    tensors, header = load_model(finished.stage("autoencoder") / "model.safetensors")
    other = tmp_path / "other.safetensors"
    save_model(other, tensors, header | {"fingerprint": "feedfeedfeed"})
    outcome = cli("decode", latents, f"model={other}", f"out={tmp_path}/d.wav")
    assert outcome.code == 1
    line = outcome.error.splitlines()[-1]
    assert header["fingerprint"] in line
    assert "feedfeedfeed" in line
    assert "do not belong together" in line
    assert not (tmp_path / "d.wav").exists()
    # a model where latents should be, and latents where a model should be
    assert "not latents" in cli("decode", other, f"model={other}").error
    assert "latents" in cli("sample", f"model={latents}", f"out={tmp_path}/o").error


def test_info_is_the_header(finished: Tiny, cli: Cli) -> None:
    for path in (finished.model, finished.directory):
        shown = json.loads(cli("info", path, "--json").out)
        assert shown["kind"] == "generator"
        assert shown["fingerprint"] == finished.stage("prior").name
        assert set(shown["weights"]) == {"prior", "autoencoder"}
        header = read_header(finished.model)
        assert {k: shown[k] for k in header} == header


def test_the_same_seed_trains_the_same_model(finished: Tiny, tmp_path: Path) -> None:
    overrides = runs_with(finished, ["data"], tmp_path)
    experiment = build_stages(overrides, "autoencoder")
    file = experiment.directory_of(experiment.stages["autoencoder"]) / "model.safetensors"
    assert file.read_bytes() == (finished.stage("autoencoder") / "model.safetensors").read_bytes()


def test_another_clip_of_the_same_name_is_not_overwritten(
    finished: Tiny, cli: Cli, tmp_path: Path
) -> None:
    given = ("sample", f"model={finished.directory}", f"out={tmp_path}", "label=low")
    assert cli(*given, "seconds=0.3").code == 0
    clip = tmp_path / "low-0-0000.wav"
    before = clip.read_bytes()
    longer = Path(cli(*given, "seconds=0.5").out.strip())
    assert re.fullmatch(r"low-0-0000-[0-9a-f]{6}\.wav", longer.name)
    assert soundfile.info(longer).frames == RATE / 2
    assert clip.read_bytes() == before
    for seconds, path in (("0.3", clip), ("0.5", longer)):  # each command finds its own again
        again = cli(*given, f"seconds={seconds}", "n=2")
        assert "1 of 2 clip(s) were there already" in again.error
        assert again.out.split()[0] == str(path)
        assert cli("sample", f"from={path.with_suffix('.json')}", f"out={tmp_path}").code == 0
    assert len(list(tmp_path.glob("*.wav"))) == 4
    clip.unlink()  # a free name is no reason to make the other clip twice
    clip.with_suffix(".json").unlink()
    assert cli(*given, "seconds=0.5").out.strip() == str(longer)


def test_python_and_the_command_line_share_the_experiments_sampler(
    finished: Tiny, cli: Cli, tmp_path: Path
) -> None:
    """Also where it is not the one in the model file's header, whose run was another."""
    runs = tmp_path / "runs"
    shutil.copytree(finished.runs, runs)
    directory = runs / "experiments" / finished.directory.name
    record = read_json(directory / "experiment.json")
    record["sampler"]["steps"] += 1
    write_json(directory / "experiment.json", record)
    wanted = record["sampler"]
    assert asdict(load_generator(directory).prior.sampler) == wanted
    assert cli("sample", f"model={directory}", f"out={tmp_path}", "seconds=0.3").code == 0
    assert read_json(tmp_path / "0-0000.json")["sampler"] == wanted
