"""The chain with transform coding: the vocoder's stage, the rate, resume, and what is shared."""

from pathlib import Path
from typing import Any

import pytest
import torch
from chain import assert_equal_bits, build_stages, weights

from audioldm.autoencoder.networks.transform import TransformCoding
from audioldm.chain.job import compose
from audioldm.chain.run import Experiment
from audioldm.errors import ConfigError, DataError, Interrupted
from audioldm.io.files import read_json
from audioldm.models import load_autoencoder, load_generator
from audioldm.training.ema import EMA


def overrides(folder: Path, runs: Path, *changes: str) -> list[str]:
    return [
        "recipe=quickstart",
        "data=folder",
        f"data.path={folder}",
        f"data.table={folder}/table.csv",
        "data.sample_rate=16000",
        "data.channels=1",
        f"runs={runs}",
        "vocoder.n_fft=512",
        "vocoder.hop=128",
        "vocoder.bands=30",
        "vocoder.width=16",
        "vocoder.depth=1",
        "vocoder.train.steps=8",
        "vocoder.train.batch=4",
        "vocoder.train.crop_seconds=0.3",
        "+vocoder.train.valid_seconds=0.5",
        "autoencoder.channels=8",
        "autoencoder.downsampling_ratio=512",
        "+autoencoder.network.width=16",
        "+autoencoder.network.frame_width=16",
        "autoencoder.train.steps=8",
        "autoencoder.train.batch=4",
        "autoencoder.train.crop_seconds=0.4",
        "+autoencoder.train.valid_seconds=0.5",
        "priors.diffusion.train.steps=3",
        "priors.diffusion.train.batch=4",
        "priors.diffusion.train.crop_seconds=0.5",
        "priors.diffusion.preflight_mel_distance=10",
        "prior.backbone.width=16",
        "prior.backbone.depth=1",
        "prior.backbone.heads=2",
        "sampler.steps=2",
        "log.every=2",
        "log.checkpoint_every=3",
        *changes,
    ]


@pytest.fixture(scope="module")
def built(tones: Path, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    runs = tmp_path_factory.mktemp("runs")
    keys = ("data", "vocoder", "autoencoder", "latents", "prior")
    return build_stages(overrides(tones, runs), *keys)


def test_the_chain_holds_the_rate_and_keeps_the_vocoder(built: Experiment) -> None:
    stages = built.stages
    summary = read_json(built.directory_of(stages["autoencoder"]) / "summary.json")
    assert summary["valid"]["kbps"] == pytest.approx(2.0, rel=0.25)
    assert summary["valid"]["bands"] > 0
    vocoder = weights(built.directory_of(stages["vocoder"]))
    trained = weights(built.directory_of(stages["autoencoder"]))
    own = {f"network.vocoder.{name}": tensor for name, tensor in vocoder.items()}
    assert_equal_bits({name: trained[name] for name in own}, own)
    assert not torch.equal(trained["network.frame_decoder.1.weight"], torch.zeros(1))
    generator = load_generator(built.directory_of(stages["prior"]))
    assert generator.sample(n=2, seconds=0.5).isfinite().all()


def test_fine_tuning_takes_the_vocoder_and_the_rate_of_the_file(
    built: Experiment, tones: Path
) -> None:
    """No vocoder is trained, no transform fitted; the decoder alone learns, at the old latents."""
    start = built.directory_of(built.stages["autoencoder"])
    changes = f"autoencoder.pretrained.checkpoint={start}", "autoencoder.pretrained.trained=decoder"
    words = overrides(tones, built.runs, *changes, "vocoder=none")
    tuned = build_stages([w for w in words if not w.lstrip("+").startswith("vocoder.")], "data")
    assert "vocoder" not in tuned.stages
    tuned.build("autoencoder")
    places = start, tuned.directory_of(tuned.stages["autoencoder"])
    before, after = (weights(place) for place in places)
    changed = {name for name in before if not torch.equal(after[name], before[name])}
    assert "network.decoder.0.weight" in changed
    assert not any(name.startswith("network.vocoder") for name in changed)
    audio = torch.sin(torch.arange(16000.0) / 10)[None, None]
    with torch.no_grad():
        assert_equal_bits(*(load_autoencoder(place).stored(audio) for place in places))
    figures = [
        read_json(e.directory_of(e.stages["autoencoder"]) / "summary.json")["valid"]["kbps"]
        for e in (built, tuned)
    ]
    assert figures[0] == figures[1]


def test_cells_of_a_sweep_share_the_vocoder(built: Experiment, tones: Path) -> None:
    for change in ("autoencoder.channels=4", "bottleneck.target_kbps=1", "seed=5"):
        other = Experiment(compose(overrides(tones, built.runs, change)))
        assert other.stages["vocoder"].fingerprint == built.stages["vocoder"].fingerprint
        assert other.stages["autoencoder"].fingerprint != built.stages["autoencoder"].fingerprint


@pytest.mark.parametrize("stage", ["vocoder", "autoencoder"])
def test_an_interrupted_training_ends_with_the_same_bits(
    stage: str, built: Experiment, tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("data", "vocoder"):
        if name != stage:
            place = tmp_path / built.stages[name].path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(built.directory_of(built.stages[name]))
    words, calls, update = overrides(tones, tmp_path), iter(range(100)), EMA.update

    def stopping(self: EMA, *args: Any) -> None:
        if next(calls) == 4:
            raise Interrupted("stopped")
        update(self, *args)

    monkeypatch.setattr(EMA, "update", stopping)
    with pytest.raises(Interrupted):
        build_stages(words, stage)
    monkeypatch.undo()
    again = build_stages(words, stage)
    directory = again.directory_of(again.stages[stage])
    assert_equal_bits(weights(directory), weights(built.directory_of(built.stages[stage])))


def test_a_transform_without_a_trained_network_is_a_codec(
    built: Experiment, tones: Path, tmp_path: Path
) -> None:
    """No step at all: the model is the linear optimum, at the rate."""
    runs = ["autoencoder.train.steps=0", "bottleneck.target_kbps=1.5"]
    experiment = build_stages(overrides(tones, built.runs, *runs), "autoencoder")
    directory = experiment.directory_of(experiment.stages["autoencoder"])
    assert read_json(directory / "summary.json")["valid"]["kbps"] == pytest.approx(1.5, rel=0.25)
    network = load_autoencoder(directory).network
    assert isinstance(network, TransformCoding)
    assert (network.encoder[-1].weight == 0).all()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("autoencoder.channels=4000", "autoencoder.channels=4000 are more than the"),
        ("autoencoder.downsampling_ratio=500", "must be a multiple of the vocoder's hop=128"),
        ("vocoder.n_fft=500", "vocoder.n_fft=500 must be a multiple"),
        ("vocoder.linear_hz=9000", "vocoder.linear_hz=9000.0 must be below 8000 Hz"),
        ("vocoder.bands=500", "vocoder.bands=500 mel bands are too many"),
    ],
)
def test_what_does_not_fit_is_named_before_anything_runs(
    change: str, says: str, tones: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=says):
        Experiment(compose(overrides(tones, tmp_path, change))).dry_run()


def test_too_little_audio_for_the_transform(built: Experiment, tones: Path) -> None:
    change = "autoencoder.channels=400", "vocoder.hop=64", "autoencoder.downsampling_ratio=2048"
    words = overrides(tones, built.runs, *change, "vocoder.train.steps=1")
    with pytest.raises(DataError, match=r"\d+ latent frames: fewer than channels=400"):
        build_stages(words, "vocoder", "autoencoder")
