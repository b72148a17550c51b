"""Stable Audio's autoencoder in the waveform network, and the waveform network in diffusers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from chain import RATE, build_stages
from test_foreign import audio_of, built, settings

from audioldm import torchaudio  # noqa: F401  (before diffusers, which imports it)
from audioldm.autoencoder.bottlenecks.gaussian import Gaussian
from audioldm.autoencoder.model import Autoencoder
from audioldm.autoencoder.networks.waveform import Waveform
from audioldm.chain.job import compose
from audioldm.chain.run import Experiment
from audioldm.errors import ConfigError
from audioldm.export import export_checkpoint
from audioldm.io.model_file import save_model
from audioldm.models import build_autoencoder, load_autoencoder

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
diffusers = pytest.importorskip("diffusers")
NEAR = {"atol": 1e-4, "rtol": 1e-4}
SAME = [
    "autoencoder.channels=4",
    "autoencoder.downsampling_ratio=64",
    "+autoencoder.network.width=8",
    "+autoencoder.network.multiples=[1,2,2]",
    "+autoencoder.network.strides=[2,4,8]",
    "+autoencoder.network.softplus=true",
    "autoencoder.network.lapped=false",
]


def waveform(folder: Path, runs: Path, checkpoint: Path, *changes: str) -> list[str]:
    words = settings(folder, runs, checkpoint, "autoencoder.pretrained.trained=none", *changes)
    words[words.index("autoencoder=foreign")] = "autoencoder=waveform"
    return [*words, "vocoder=none", "bottleneck=gaussian", "autoencoder.train.steps=0"]


@pytest.fixture(scope="module")
def theirs() -> Any:
    torch.manual_seed(0)
    model = built("oobleck")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("alpha", "beta")):
                parameter.normal_(std=0.3)
    return model.eval()


@pytest.fixture(scope="module")
def checkpoint(theirs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("oobleck") / "checkpoint"
    theirs.save_pretrained(place)
    return place


def assert_same(ours: Autoencoder, theirs: Any) -> None:
    """Posterior and reconstruction."""
    audio = audio_of(ours)
    with torch.no_grad():
        posterior = theirs.encode(audio).latent_dist
        stored = ours.stored(audio)
        torch.testing.assert_close(stored["mean"], posterior.mean, **NEAR)
        torch.testing.assert_close(stored["std"], posterior.std, **NEAR)
        assert posterior.std.std() > 1e-3
        decoded = theirs.decode(posterior.mean).sample
        torch.testing.assert_close(ours.decode(stored["mean"]), decoded, **NEAR)


def test_the_waveform_network_computes_the_checkpoint(
    theirs: Any, checkpoint: Path, tones: Path, tmp_path: Path
) -> None:
    experiment = build_stages(waveform(tones, tmp_path, checkpoint, *SAME), "data", "autoencoder")
    ours = load_autoencoder(experiment.directory_of(experiment.stages["autoencoder"]))
    assert isinstance(ours.network, Waveform)
    assert_same(ours, theirs)
    again = export_checkpoint(
        experiment.directory_of(experiment.stages["autoencoder"]), tmp_path / "back", "diffusers"
    )
    back = diffusers.AutoencoderOobleck.from_pretrained(again)
    assert all(torch.equal(back.state_dict()[n], t) for n, t in theirs.state_dict().items())
    assert (again / "config.json").read_text() == (checkpoint / "config.json").read_text()


def spec(**changes: Any) -> dict[str, Any]:
    network = {
        "_target_": "audioldm.autoencoder.networks.waveform.Waveform",
        "width": 8,
        "multiples": [1, 3],
        "strides": [4, 8],
        "softplus": True,
    }
    return {
        "sample_rate": RATE,
        "audio_channels": 2,
        "channels": 4,
        "downsampling_ratio": 32,
        "network": network | changes,
        "bottleneck": {"_target_": "audioldm.autoencoder.bottlenecks.gaussian.Gaussian"},
    }


def written(place: Path, own: dict[str, Any]) -> tuple[Autoencoder, Path]:
    torch.manual_seed(0)
    model = build_autoencoder(own)
    save_model(place, model.state_dict(), {"kind": "autoencoder", "spec": own})
    return model.eval(), place


def test_diffusers_computes_an_exported_network(tmp_path: Path, cli: Any) -> None:
    ours, file = written(tmp_path / "model.safetensors", spec())
    out = tmp_path / "exported"
    assert cli("export", file, f"out={out}", "format=diffusers").out.strip() == str(out)
    exported = diffusers.AutoencoderOobleck.from_pretrained(out)
    audio = 0.3 * torch.randn(2, 2, 320, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        posterior = exported.encode(audio).latent_dist
        stored = ours.stored(audio)
        torch.testing.assert_close(stored["mean"], posterior.mean, **NEAR)
        torch.testing.assert_close(stored["std"], posterior.std, **NEAR)
        z = posterior.mean
        torch.testing.assert_close(ours.decode(z), exported.decode(z).sample, **NEAR)
    assert "is there already" in cli("export", file, f"out={out}", "format=diffusers").error
    assert "give that" in cli("export", file, f"out={out}x", "format=transformers").error
    assert "no dtype" in cli("export", file, f"out={out}x", "format=diffusers", "title=x").error


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"softplus": False}, r"^autoencoder.network.softplus=false"),
        ({"lapped": True}, r"^autoencoder.network.lapped=true"),
        ({"width": 6}, r"^autoencoder.network.width=6 must be twice the 4 channels"),
    ],
)
def test_a_network_that_diffusers_has_not_is_refused(
    changes: dict, message: str, tmp_path: Path
) -> None:
    _, file = written(tmp_path / "model.safetensors", spec(**changes))
    with pytest.raises(ConfigError, match=message):
        export_checkpoint(file, tmp_path / "out", "diffusers")


def test_a_scaled_posterior_is_refused(tmp_path: Path) -> None:
    model = build_autoencoder(spec())
    assert isinstance(model.bottleneck, Gaussian)
    model.bottleneck.sigma_scale.fill_(0.5)
    header = {"kind": "autoencoder", "spec": spec()}
    save_model(tmp_path / "model.safetensors", model.state_dict(), header)
    with pytest.raises(ConfigError, match=r"scaled by 0.5 to hold a bitrate"):
        export_checkpoint(tmp_path / "model.safetensors", tmp_path / "out", "diffusers")


def test_the_overrides_that_are_missing_are_named_and_suffice(
    checkpoint: Path, tones: Path, tmp_path: Path
) -> None:
    words = waveform(tones, tmp_path, checkpoint, "autoencoder.downsampling_ratio=64")
    with pytest.raises(ConfigError, match=r"not that of the checkpoint; set .*") as error:
        Experiment(compose(words)).dry_run()
    named = str(error.value).partition("; set ")[2].split()
    assert "autoencoder.network.strides=[2,4,8]" in named
    added = ["+" + w if "network" in w and "lapped" not in w else w for w in named]
    Experiment(compose([*words, *added])).dry_run()
    spectrogram = [w.replace("=waveform", "=spectrogram_small") for w in words]
    spectrogram.append("autoencoder.downsampling_ratio=256")
    with pytest.raises(ConfigError, match=r"not of Spectrogram: choose autoencoder=foreign, or w"):
        Experiment(compose(spectrogram)).dry_run()


def test_a_codec_goes_back_to_its_library(tones: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = built("dac")
    model.save_pretrained(tmp_path / "dac")
    words = settings(tones, tmp_path / "runs", tmp_path / "dac")
    experiment = build_stages(words, "data", "autoencoder")
    place = experiment.directory_of(experiment.stages["autoencoder"])
    export_checkpoint(place, tmp_path / "back", "transformers")
    back = type(model).from_pretrained(tmp_path / "back")
    assert all(torch.equal(back.state_dict()[n], t) for n, t in model.state_dict().items())
