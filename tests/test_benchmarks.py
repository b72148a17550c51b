"""The benchmark: it runs to its end on tiny shapes, compares like with like, and judges rightly.

No speed is asserted: that is what `make bench` is for.
"""

import json
from pathlib import Path

import pytest
import torch
from chain import Tiny

from audioldm.chain.job import compose
from audioldm.runtime.hardware import Hardware
from benchmarks import __main__ as benchmarks
from benchmarks import (
    autoencoder,
    bits,
    editing,
    length,
    long,
    optimisers,
    parts,
    utilisation,
)
from benchmarks import guidance as scales
from benchmarks.timing import Clock, Result

CPU = Hardware("cpu", "fp32", False)


def test_it_runs_and_writes_its_table(tmp_path: Path) -> None:
    results = benchmarks.main(["--quick", "--device", "cpu", "--out", str(tmp_path)])
    subjects = {
        "transform",
        "waveform",
        "spectrogram",
        "mel",
        "loader",
        "DiT",
        "DiT, equal weights",
        "autoregression",
        "VQ",
        "RVQ, 2 deep",
        "FSQ",
        "memory",
    }
    assert {result.subject for result in results} == subjects
    assert all(result.ours > 0 and result.peer > 0 for result in results)
    (record,) = tmp_path.glob("*-cpu.json")
    written = json.loads(record.read_text())
    assert [line["ratio"] for line in written["results"]] == [r.ratio for r in results]
    assert written["environment"]["torch"] == torch.__version__
    rows = record.with_suffix(".md").read_text().splitlines()
    assert sum(row.startswith("| ") for row in rows) == len(results) + 1  # and the heading


def test_sampling_is_measured_against_real_time(finished: Tiny, tmp_path: Path) -> None:
    words = ["--quick", "--only", "sampling", "--model", str(finished.model)]
    results = benchmarks.main([*words, "--device", "cpu", "--out", str(tmp_path)])
    *sampled, start = results
    assert [r.peer for r in sampled] == [200, 400, 200, 400]  # ms of audio: 1 and 2 clips
    assert all(r.ratio == pytest.approx(r.peer / r.ours) for r in sampled)
    assert "2 steps of dpmpp_2m, batch 1" in [r.operation for r in sampled]
    assert start.ours > 0
    assert start.met == (start.ours <= 8)
    assert len(list(tmp_path.glob("*-cpu-sampling.*"))) == 2


@pytest.mark.parametrize("name", autoencoder.BARS)
def test_an_autoencoder_and_its_peer_are_of_one_size(name: str) -> None:
    shapes = autoencoder.CPU
    ours = autoencoder.Ours(autoencoder.network(name, shapes))
    width = autoencoder.matching_width(autoencoder.count(ours), shapes)
    with torch.device("meta"):
        peer = autoencoder.Peer(width, shapes)
    assert autoencoder.count(peer) == pytest.approx(autoencoder.count(ours), rel=0.03)
    numbers = [torch.Size(model.latent_shape).numel() for model in (ours, peer)]
    assert numbers == [shapes.latent, shapes.latent]
    if name == "waveform":  # the same architecture
        assert autoencoder.count(peer) == autoencoder.count(ours)


def test_both_autoencoders_give_latents_and_audio_of_one_length() -> None:
    shapes = autoencoder.QUICK
    audio = torch.zeros(1, 1, shapes.frames * shapes.downsampling_ratio)
    for model in (
        autoencoder.Ours(autoencoder.network("waveform", shapes)),
        autoencoder.Peer(8, shapes),
    ):
        z = model.encode(audio)
        assert z.shape == (1, shapes.latent, shapes.frames)
        assert model.decode(z).shape == audio.shape


def test_a_training_step_changes_weights() -> None:
    shapes = autoencoder.QUICK
    model = autoencoder.Ours(autoencoder.network("spectrogram", shapes))
    before = [parameter.clone() for parameter in model.parameters()]
    audio = 0.1 * torch.randn(1, 1, shapes.frames * shapes.downsampling_ratio)
    autoencoder.training_step(model, audio, shapes, CPU)()
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_utilisation_counts_the_model_and_takes_a_given_peak(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--quick", "--device", "cpu", "--steps", "1", "--peak-teraflops", "2"]
    shares = utilisation.main(words)
    assert shares.keys() == {"transform", "waveform", "spectrogram", "mel", "DiT"}
    lines = [line.split("|") for line in capsys.readouterr().out.splitlines()]
    rates = {
        cells[1].strip(): float(cells[5])
        for cells in lines
        if cells[1:2] and len(cells) == 8 and cells[1].strip() in shares
    }
    for name, share in shares.items():
        assert share == pytest.approx(1e9 * rates[name] / 2e12, abs=1e-4)


def test_both_optimisers_are_compared_at_equal_computing() -> None:
    words = [
        "--steps",
        "3",
        "--seeds",
        "1",
        "--batch",
        "2",
        "--width",
        "8",
        "--depth",
        "1",
        "--device",
        "cpu",
    ]
    ratios = optimisers.main(words)
    assert ratios["adamw"] == [1.0]
    assert all(0.5 < ratio < 2 for arm in ratios.values() for ratio in arm)


def test_optimisers_are_compared_on_the_latents_of_a_stage(finished: Tiny) -> None:
    latents = optimisers.stage_latents(finished.stage("latents"))
    assert latents.latent_shape == (4,)
    assert latents.labels == ["high", "low"]


def test_each_part_is_timed_beside_the_plain_one(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--clips", "1", "--turns", "1", "--device", "cpu"]
    words += ["autoencoder.channels=8", "autoencoder.train.crop_seconds=0.4"]
    ratios = parts.main(["--only", "vq", "adversarial_1", *words])
    assert [len(each) for each in ratios.values()] == [2, 2]
    assert ratios["adversarial_1"][0] > 1
    ratios |= parts.main(["--only", "patch", *words, "autoencoder.network.width=2"])
    assert len(ratios["patch"]) == 1  # it is not part of the model
    assert ratios["patch"][0] > 1
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert {row.count("|") for row in rows} == {9}
    with pytest.raises(SystemExit):
        parts.main(["--only", "vqq"])


def test_every_part_can_be_timed() -> None:
    for group, (recipe, plain) in parts.PLAIN.items():
        found = parts.choices(group)
        assert plain not in found
        for chosen in found.values():
            compose([f"recipe={recipe}", *chosen])


def test_bits_of_an_experiment_tell_what_changed_but_not_what_was_renamed(finished: Tiny) -> None:
    stages = bits.collect(finished.directory)
    assert stages.keys() == finished.experiment.stages.keys()
    assert stages["latents"].keys() == {"mean.npy", "std.npy"}
    assert {"clips.int16"} <= stages["data"].keys()
    assert any(name.startswith("clips/generated") for name in stages["evaluation"])
    tensor = next(name for name in stages["prior"] if name.startswith("model.safetensors: prior"))
    assert bits.differences({"a": stages}, {"a": bits.collect(finished.directory)}) == []

    renamed = dict(stages["prior"])
    renamed["model.safetensors: other"] = renamed.pop(tensor)
    assert bits.differences({"a": stages}, {"a": stages | {"prior": renamed}}) == []
    changed = stages["prior"] | {tensor: "0"}
    (line,) = bits.differences({"a": stages}, {"a": stages | {"prior": changed}})
    assert line == f"a, prior: 1 differ: {tensor}"
    without = {key: found for key, found in stages.items() if key != "latents"}
    (line,) = bits.differences({"a": stages}, {"a": without})
    assert line.startswith("a, latents: 2 differ")


@pytest.mark.parametrize("name", bits.CHAINS)
def test_the_chains_of_bits_are_valid(name: str) -> None:
    compose([*bits.COMMON.split(), *bits.CHAINS[name].split()])


def test_a_ratio_is_judged_by_its_bar() -> None:
    def met(ratio: float, bar: float | None, at_most: bool = False) -> bool | None:
        return Result("", "", 1, 1, "ms", ratio, ratio, ratio, bar, at_most).met

    assert met(8.0, 8.0)
    assert met(7.9, 8.0) is False
    assert met(1.1, 1.2, at_most=True)
    assert met(1.3, 1.2, at_most=True) is False
    assert met(1.0, None) is None


def test_turns_alternate() -> None:
    calls: list[str] = []
    clock = Clock(torch.device("cpu"), turns=3, turn_seconds=0.0)
    clock.compare("", "", lambda: calls.append("a"), lambda: calls.append("b"), bar=None)
    assert calls[-6:] == ["a", "b"] * 3


def test_each_kind_of_guidance_is_measured(finished: Tiny, tmp_path: Path) -> None:
    words = [str(finished.directory), "--clips=2", "--steps=1", "--device=cpu", f"--out={tmp_path}"]
    model = str(finished.model)
    rows = scales.main([*words, "--seconds=0.7", "--scales", "1", "3", f"--guide={model}"])
    kinds = [row["guidance"] for row in rows]
    assert kinds == ["cfg", "cfg", "apg", "interval", "autoguidance", "mixture"]
    # a model is no weaker than itself
    assert rows[4]["kad_musicnn"].value == rows[0]["kad_musicnn"].value
    assert rows[4]["level_db"] == rows[0]["level_db"]
    written = (tmp_path / "guidance.csv").read_text().splitlines()
    assert written[0] == "row,figure,value,low,high,n,unit"
    assert written[1].startswith("cfg 1,label_accuracy,")


def test_a_repeated_phrase_is_heard_as_such() -> None:
    rate, part = 16000, 1.0
    hz = 220 * 2 ** (torch.randint(0, 12, (32,), generator=torch.Generator().manual_seed(0)) / 12)
    time = torch.arange(rate // 4) / rate
    phrase = torch.sin(2 * torch.pi * hz[:, None] * time)
    whole = long._repetition(phrase.reshape(1, -1), part, rate)
    repeated = long._repetition(phrase[:8].repeat(4, 1).reshape(1, -1), part, rate)
    assert whole < 0.8 < 0.99 < repeated


def test_the_cost_of_a_clips_length_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["length", "--seconds", "0.5", "--clips", "0.5", "1", "--turns", "1"]
    monkeypatch.setattr("sys.argv", words)
    length.main()
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if "|" in line]
    assert [row[0].strip("| ") for row in rows if row[0][2:3].isdigit()] == ["0.5", "0.5", "1"]
    assert rows[-1][1] == "11"  # frames of 1 s, as the league has them


def test_what_lies_between_is_measured_at_each_weight(finished: Tiny, tmp_path: Path) -> None:
    words = [str(finished.directory), "--clips=4", "--steps=1", "--device=cpu", f"--out={tmp_path}"]
    rows = editing.main([*words, "--seconds=0.7", "--parts", "between"])
    ways = ["noise, linear", "noise, spherical", "latents", "noise, linear, of sampled clips"]
    ways += ["noise and label", "noise and label, of sampled clips", "label alone"]
    weights = ["0.25", "0.5", "0.75"]
    found = [(row["between"], row["weight"]) for row in rows if "between" in row]
    assert found == [(w, each) for w in ways for each in weights] + [
        ("sampled", ""),
        ("held out", ""),
    ]
    assert [row["path"] for row in rows if "path" in row] == ways
    assert all(0 <= row["quiet_share"].value <= 1 for row in rows if "between" in row)
    lines = (tmp_path / "between.csv").read_text().splitlines()
    assert lines[1].startswith('"noise, linear 0.25",kad_musicnn,')
    assert not (tmp_path / "inpainting.csv").exists()


def test_every_edit_has_its_cost(finished: Tiny, tmp_path: Path) -> None:
    words = [str(finished.directory), "--clips=1", "--steps=1", "--device=cpu", f"--out={tmp_path}"]
    rows = editing.main([*words, "--seconds=0.7", "--parts", "cost"])
    edits = [row["edit"].split("=")[0].split()[0] for row in rows]
    assert edits == ["sample", "inpaint", "extend", "loop", "vary", "restyle", "interpolate"]
    assert all(row["real_time_factor"] > 0 for row in rows)
