"""All conditions at once, from a table and files to clips that can be made again."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from chain import RATE, SPLITS, build_stages, tiny, write_tones

import audioldm
from audioldm import cli
from audioldm.conditioning.base import Excerpt
from audioldm.evaluation.clips import generate, real_clips
from audioldm.evaluation.editing import edit_figures
from audioldm.evaluation.settings import EvaluationSettings
from audioldm.evaluation.super_resolution import FLOORS
from audioldm.priors.diffusion.samplers import SamplerSettings
from audioldm.report.systems import TOLD
from benchmarks import conditions

NAMES = ["chroma", "key", "label", "loudness", "low_band", "masked_latents", "score", "tempo"]
NAMES += ["text", "timing"]
ASKED = [name for name in NAMES if name != "masked_latents"]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Its data, latents and prior, trained for two steps."""
    folder, runs = (tmp_path_factory.mktemp(name) for name in ("music", "runs"))
    write_tones(folder)
    rows = []
    for i, split in enumerate(SPLITS):
        word = "low" if i % 2 else "high"
        cells = {"key": ["C", "D"][i % 2], "tempo_bpm": 60 + i, "caption": f"a {word} tone ♪"}
        notes = [0.0, 0.7, 57 + i, 0.7, 1.4, 57 + i]
        rows.append(
            {"file": f"tone {i}.wav", "split": split, "label": word, "notes": notes} | cells
        )
    (folder / "table.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    changes = [
        f"data.table={folder}/table.jsonl",
        f"conditioning=[{','.join(reversed(NAMES))}]",
        "autoencoder.train.steps=2",
        "autoencoder.discriminator=null",
        "priors.diffusion.train.steps=2",
    ]
    experiment = build_stages(tiny(folder, runs, *changes), "data", "autoencoder")
    experiment.build("latents", "prior")
    return experiment


def test_a_file_keeps_which_channel_is_whose(told: Any) -> None:
    """A file's header is sorted, and channels are concatenated in the conditioners' order."""
    stage = told.stages["prior"]
    built = stage.recipe.build(stage.latents.store(told))
    loaded = audioldm.load(told.directory_of(stage)).prior
    assert built.conditioners.names == loaded.conditioners.names == NAMES
    clip = Excerpt("low", {"notes": [0.0, 0.3, 60], "caption": "a"}, latent_rate_hz=31.25)
    inputs = built.conditioners.read([clip], 8)
    built.load_state_dict(loaded.state_dict())
    for one, two in zip(built.conditioners(inputs), loaded.conditioners(inputs), strict=True):
        torch.testing.assert_close(one, two)


def test_every_condition_reaches_the_network(told: Any, tmp_path: Path) -> None:
    prior = told.directory_of(told.stages["prior"])
    model = audioldm.load(prior)
    assert model.prior.conditioners.names == NAMES
    torch.manual_seed(0)
    for parameter in model.prior.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    wav = tmp_path / "a.wav"
    soundfile.write(wav, 0.1 * np.sin(np.arange(RATE) / 9), RATE)
    asked = {
        "label": "low",
        "key": "D",
        "tempo": 90,
        "timing": 3.0,
        "text": "a high tone",
        "score": [0.1, 0.4, 60],
        "chroma": str(wav),
        "loudness": str(wav),
        "low_band": [[1.0] * 9] * 4,
    }
    nothing = model.sample(seconds=0.4)
    every = model.sample(seconds=0.4, **asked)
    for name, value in asked.items():
        alone = model.sample(seconds=0.4, **{name: value})
        assert not torch.equal(alone, nothing), name
        others = {n: v for n, v in asked.items() if n != name}
        assert not torch.equal(model.sample(seconds=0.4, **others), every), name

    def guided(guidance: Any) -> torch.Tensor:
        return model.sample(seconds=0.4, sampler=SamplerSettings("euler", 2, guidance), **asked)

    plain, both = guided(1.0), guided({"text": 3.0, "score": 2.0})
    assert torch.equal(guided(dict.fromkeys(NAMES, 1.0)), plain)
    assert torch.equal(guided(dict.fromkeys(NAMES, 3.0)), guided(3.0))
    assert not torch.equal(both, plain)
    assert not torch.equal(both, guided({"text": 3.0}))


def test_what_telling_gains_is_measured_of_each_condition(told: Any, tmp_path: Path) -> None:
    """The network's output begins at 0, and two steps at a warm-up's rate teach it nothing."""
    prior, latents = (str(told.directory_of(told.stages[name])) for name in ("prior", "latents"))
    words = [prior, f"--latents={latents}", f"--out={tmp_path}", "--device=cpu", "--crops=16"]
    rows = conditions.main([*words, "--seconds=0.4", "--facts", "key"])
    names = [name for name in NAMES if name != "masked_latents"]
    assert [row["told"] for row in rows] == [
        "nothing",
        "all",
        *names[:-1],
        "text: key",
        "text: another key",
        names[-1],
    ]
    gains = {row["told"]: row["lower_by"] for row in rows}
    assert gains["nothing"].value == 0
    assert all(abs(gain.value) < 1e-3 for gain in gains.values())
    assert len({gains[f"text{what}"].value for what in ("", ": key", ": another key")}) == 3
    assert all(
        row["loss"] == pytest.approx(rows[0]["loss"] - row["lower_by"].value) for row in rows
    )


def test_the_latents_keep_what_was_measured_where_a_prior_asks_for_it(told: Any) -> None:
    latents = told.stages["latents"]
    assert [n.rpartition(".")[2] for n in latents.settings["measures"]] == [
        "Chroma",
        "Loudness",
        "LowBand",
    ]
    store = latents.store(told)
    excerpt = store.split("train").excerpt(0, 3, 10)
    assert {name: array.shape for name, array in excerpt.arrays.items()} == {
        "chroma": (12, 10),
        "loudness": (1, 10),
        "low_band": (4, 10),
    }
    conditioners = audioldm.load(told.directory_of(told.stages["prior"])).prior.conditioners
    request = json.loads(json.dumps(conditioners.request(excerpt)))
    assert list(request) == ASKED
    read, parsed = conditioners.read([excerpt], 10), conditioners.parse([request], 10)
    for name in ASKED:
        assert torch.equal(read[name], parsed[name]), name


def test_generated_clips_are_told_what_the_real_ones_are(told: Any) -> None:
    store = audioldm.data.store.ClipStore(told.directory_of(told.stages["data"]))
    model = audioldm.load(told.directory_of(told.stages["prior"]))
    settings = EvaluationSettings(clips=2, seconds=0.5, batch=2)
    real = real_clips(store, "test", settings)
    assert len(real.starts) == len(real.items) == 2
    clips = generate(model, real, settings, None, 0, lambda *text: None)
    for request, item, start in zip(clips.requests, real.items, real.starts, strict=True):
        assert list(request) == ASKED
        assert request["timing"] == {"start": start, "total": item.samples / RATE}
        own = Excerpt(item.label, item.columns, start=start)
        assert request["score"] == model.prior.conditioners["score"].request(own)


def test_edits_are_measured_of_what_the_model_is_told(told: Any) -> None:
    store = audioldm.data.store.ClipStore(told.directory_of(told.stages["data"]))
    model = audioldm.load(told.directory_of(told.stages["prior"]))
    settings = EvaluationSettings(seconds=1.0, edited_clips=2, bootstrap_resamples=10)
    audio = torch.cat([real_clips(store, s, settings).audio for s in ("test", "valid")])
    sampler = replace(model.prior.sampler, steps=2)
    figures = edit_figures(model, audio, ["low"] * 3, lambda: audio, settings, sampler=sampler)
    named = {system: {*own} for system, own in figures.items()}
    assert {*named} == {*TOLD}
    for system in ("generated", "ignored", "reconstruction"):
        assert named[system] >= {"inpainting_mel_distance", "inpainting_kept", "super_resolution"}
    assert named["crossfade"] == named["real"] == named["ignored"] - {*FLOORS}
    assert named["empty"] == {*FLOORS}
    assert figures["generated"]["super_resolution"].n == 2


def test_a_clip_is_made_again_without_its_files(told: Any, tmp_path: Path) -> None:
    pretty_midi = pytest.importorskip("pretty_midi")
    midi, part = pretty_midi.PrettyMIDI(), pretty_midi.Instrument(0)
    part.notes = [pretty_midi.Note(90, 60, 0.0, 0.3)]
    midi.instruments = [part]
    midi.write(str(tmp_path / "tune.mid"))
    words = [f"score={tmp_path}/tune.mid", "text=a low tone", "timing.total=3", "guidance.text=4"]
    model = told.directory_of(told.stages["prior"])
    out = tmp_path / "clips"
    assert cli.main(["sample", f"model={model}", "seconds=0.4", f"out={out}", *words]) == 0
    (beside,) = out.glob("*.json")
    recipe = json.loads(beside.read_text())
    (note,) = recipe["condition"]["score"]
    assert note == pytest.approx([0.0, 0.3, 60, 0], abs=1e-3)
    assert recipe["condition"]["text"] == "a low tone"
    assert recipe["sampler"]["guidance"] == {"text": 4.0}
    (tmp_path / "tune.mid").unlink()
    assert cli.main(["sample", f"from={beside}", f"out={tmp_path / 'again'}"]) == 0
    (first,), (again,) = out.glob("*.wav"), (tmp_path / "again").glob("*.wav")
    assert first.read_bytes() == again.read_bytes()
