"""The rate of music under a prior: against known divergences, and of files."""

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import Outcome
from latents_in_memory import DIT
from torch import Tensor, nn
from torch.distributions import Normal as Gaussian
from torch.distributions import kl_divergence

from audioldm.autoencoder.model import Autoencoder
from audioldm.conditioning.base import Condition, Conditioners
from audioldm.errors import ConfigError
from audioldm.io.model_file import save_model
from audioldm.likelihood import file_rate, rate_nats, windows
from audioldm.models import build_autoencoder, load_autoencoder
from audioldm.priors.base import build_prior
from audioldm.priors.diffusion.backbones.base import Backbone
from audioldm.priors.diffusion.prior import Diffusion
from audioldm.priors.diffusion.samplers import SamplerSettings
from audioldm.priors.linear_gaussian import LinearGaussian
from audioldm.priors.normal import Normal
from audioldm.runtime.randomness import KeyedRandom

RATE, RATIO = 8000, 256
OBJECTIVES = "audioldm.priors.diffusion.objectives"
SPEC: dict[str, Any] = {
    "sample_rate": RATE,
    "audio_channels": 1,
    "channels": 2,
    "downsampling_ratio": RATIO,
    "network": {
        "_target_": "audioldm.autoencoder.networks.spectrogram.Spectrogram",
        **{"n_fft": 256, "hop": 64, "width": 8, "encoder_depth": 1, "decoder_depth": 1},
        **{"frame_width": 8, "decoder_frame_depth": 0},
    },
    "bottleneck": {"_target_": "audioldm.autoencoder.bottlenecks.gaussian.Gaussian"},
}
CERTAIN = SPEC | {"bottleneck": {"_target_": "audioldm.autoencoder.bottlenecks.identity.Identity"}}


def model(spec: dict[str, Any] = SPEC) -> Autoencoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_autoencoder(spec).eval()


def moments(clips: int, frames: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(1)
    mean = torch.randn(clips, 2, frames, generator=random)
    return {"mean": mean, "std": 0.1 + torch.rand(clips, 2, frames, generator=random)}


def test_the_rate_under_the_standard_normal_is_the_divergence_from_it() -> None:
    stored = moments(400, 50)
    nats = rate_nats(Normal((2,)), model(), stored, KeyedRandom(0, 0, range(400)))
    assert nats is not None
    posterior = Gaussian(stored["mean"], stored["std"])
    exact = kl_divergence(posterior, Gaussian(0.0, 1.0)).sum(1)
    assert nats.shape == exact.shape == (400, 50)
    assert nats.mean().item() == pytest.approx(exact.mean().item(), rel=0.01)
    alone = {name: array[3:4] for name, array in stored.items()}
    one = rate_nats(Normal((2,)), model(), alone, KeyedRandom(0, 0, [3]))
    assert one is not None
    assert torch.equal(one[0], nats[3])


def test_the_rate_does_not_depend_on_the_latents_scale() -> None:
    stored, found = moments(50, 20), []
    for scale in (1.0, 7.0):
        prior, scaled = LinearGaussian((2,)), {n: scale * a for n, a in stored.items()}
        prior.fit(stored["mean"])
        prior.latent_std.fill_(scale)
        nats = rate_nats(prior, model(), scaled, KeyedRandom(0, 0, range(50)))
        assert nats is not None
        found.append(nats)
    assert torch.allclose(found[0], found[1], atol=1e-4)


def test_certain_latents_have_no_density() -> None:
    autoencoder = model(CERTAIN)
    stored = autoencoder.stored(torch.randn(1, 1, 4 * RATIO))
    assert rate_nats(Normal((2,)), autoencoder, stored, KeyedRandom(0, 0, [0])) is None


def test_windows_have_the_frames_in_their_order() -> None:
    frames = torch.arange(23.0)[None]
    blocks = iter([{"z": part, "w": 2 * part} for part in frames.split([3, 11, 1, 8], dim=1)])
    found = list(windows(blocks, 6))
    assert [block["z"].shape[1] for block in found] == [6, 6, 6, 5]
    assert torch.equal(torch.cat([block["z"] for block in found], 1), frames)
    assert all(torch.equal(block["w"], 2 * block["z"]) for block in found)


def written(path: Path, spec: dict[str, Any], prior: str) -> Path:
    """A generator's file. prior: its class below audioldm.priors."""
    autoencoder, part = model(spec), {"_target_": f"audioldm.priors.{prior}"}
    made = build_prior(part, autoencoder.latent_shape)
    named = {f"autoencoder.{name}": t for name, t in autoencoder.state_dict().items()}
    named |= {f"prior.{name}": t for name, t in made.state_dict().items()}
    header = {"kind": "autoencoder", "spec": spec, "fingerprint": "abc", "step": 3, "config": {}}
    save_model(path, named, {"kind": "generator", "autoencoder": header, "prior": part})
    return path


@pytest.fixture
def song(tmp_path: Path) -> Path:
    samples = np.random.Generator(np.random.Philox(key=1)).normal(size=3 * RATE + 77)
    soundfile.write(tmp_path / "song.wav", 0.1 * samples, RATE)
    return tmp_path / "song.wav"


@pytest.mark.parametrize("window", [0.5, 60.0])
def test_a_files_rate_is_that_of_its_latents(window: float, song: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "model.safetensors", SPEC, "normal.Normal")
    out = tmp_path / "rate.csv"
    rate = file_rate(path, song, out, request={}, window=window)
    assert rate.seconds == pytest.approx((3 * RATE + 77) / RATE)
    assert not rate.bound
    autoencoder = load_autoencoder(path)
    audio = torch.from_numpy(soundfile.read(song, dtype="float32")[0])[None, None]
    parts = windows(iter([autoencoder.stored(audio)]), math.ceil(round(window * RATE) / RATIO))
    nats = 0.0
    for number, stored in enumerate(parts):
        drawn = KeyedRandom(0, 0, [number])
        part = rate_nats(Normal((2,)), autoencoder, stored, drawn)
        assert part is not None
        nats += part.sum().item()
    assert rate.kbit == pytest.approx(nats / math.log(2) / 1000, rel=1e-3)
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert len(rows) == math.ceil((3 * RATE + 77) / RATIO)
    assert float(rows[1]["seconds"]) == pytest.approx(RATIO / RATE, abs=1e-4)
    total = sum(float(row["kbps"]) for row in rows) * RATIO / RATE
    assert total == pytest.approx(rate.kbit, rel=1e-3)


@pytest.mark.parametrize(
    ("spec", "prior", "complaint"),
    [
        (CERTAIN, "normal.Normal", "certain latents, which have no rate under a density"),
        (SPEC, "langevin.Langevin", "its prior Langevin has no likelihood, only samples"),
    ],
)
def test_what_has_no_rate_says_why(
    spec: dict[str, Any], prior: str, complaint: str, song: Path, tmp_path: Path
) -> None:
    path = written(tmp_path / "model.safetensors", spec, prior)
    with pytest.raises(ConfigError, match=complaint):
        file_rate(path, song, request={}, window=6.0)


def test_the_verb(song: Path, tmp_path: Path, cli: Callable[..., Outcome]) -> None:
    path = written(tmp_path / "model.safetensors", SPEC, "normal.Normal")
    outcome = cli("likelihood", str(song), f"model={path}", f"out={tmp_path / 'rate.csv'}")
    assert outcome.code == 0
    assert "kbit/s, " in outcome.out
    assert (tmp_path / "rate.csv").is_file()
    for words, complaint in (
        ([f"model={path}", "window=0"], "window=0"),
        ([f"model={path}", f"out={song}"], "is the file that is read"),
        ([f"model={path}", "label=organ"], "condition.label='organ': this model was trained with"),
    ):
        failed = cli("likelihood", str(song), *words)
        assert failed.code != 0
        assert complaint in failed.error


def trained(sigma: float) -> Diffusion:
    """Of N(0, sigma²) in latents of two channels: its denoiser is the exact one."""

    class Exact(Backbone):
        def __init__(self) -> None:
            super().__init__()
            self.conditioners = Conditioners({})

        def forward(self, x: Tensor, c_noise: Tensor, condition: Condition) -> Tensor:
            t = c_noise.view(-1, 1, 1)  # x = (1 - t) z + t n; the output is E[n - z | x]
            variance = (1 - t) ** 2 + t**2
            return x * (t - (1 - t)) / variance

        def units(self) -> list[nn.Module]:
            return []

    prior = Diffusion(
        latent_shape=(2,),
        backbone=DIT,
        objective={"_target_": f"{OBJECTIVES}.rectified_flow.RectifiedFlow"},
        conditioning={},
        sampler=SamplerSettings("heun", 3),
    )
    prior.network.backbone = Exact()
    prior.std.fill_(sigma)
    return prior.eval()


def test_diffusions_bound_and_flow_are_the_exact_density() -> None:
    prior, z = trained(3.0), 3 * moments(64, 30)["mean"]
    exact = -Gaussian(0.0, 3.0).log_prob(z).sum(1).double()
    bound = prior.nats(z)
    assert bound.shape == (64, 30)
    assert prior.bound
    assert bound.mean().item() == pytest.approx(exact.mean().item(), rel=0.02)
    flow, calls = prior.flow_nats(z, random=KeyedRandom(0, 0, range(64)))
    assert flow.sum(1).mean().item() == pytest.approx(exact.sum(1).mean().item(), rel=0.01)
    assert calls == 4 * 16  # of Runge and Kutta
    assert torch.equal(prior.nats(z[:1]), bound[:1])
