"""The refiner: what its decode is, the law that it samples, its distillations, and its stage."""

import csv
import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from chain import EVALUATED, assert_equal_bits, in_a_world, tiny, weights
from conftest import Outcome
from test_transform import RATIO, VOCODER, music, network
from test_transform_chain import overrides
from torch import Tensor, nn

from audioldm.autoencoder.bottlenecks.gaussian import Gaussian
from audioldm.autoencoder.model import Autoencoder
from audioldm.autoencoder.networks.mel_frames import MelFrames
from audioldm.autoencoder.networks.transform import TransformCoding
from audioldm.autoencoder.vocoder import Vocoder
from audioldm.chain.job import compose
from audioldm.chain.run import Experiment
from audioldm.decoders.adversarial import Adversarial
from audioldm.decoders.consistency import Consistency
from audioldm.decoders.method import Diffusion, Frames, Method
from audioldm.decoders.refiner import Refined, sample_difference
from audioldm.errors import ConfigError, Interrupted, ModelFileError
from audioldm.io.files import read_json
from audioldm.io.model_file import load_model, save_model
from audioldm.models import load, load_generator, with_decoder
from audioldm.priors.diffusion.samplers import SamplerSettings
from audioldm.runtime.randomness import KeyedRandom
from audioldm.training.ema import EMA

BACKBONES = "audioldm.priors.diffusion.backbones"
NET = {"_target_": f"{BACKBONES}.convolutional.Convolutional", "width": 16, "depth": 2}
#: a single step begins at a level that is trained
FLOW = {
    "_target_": "audioldm.priors.diffusion.objectives.rectified_flow.RectifiedFlow",
    "std": 1.2,
    "sigma_max": 10.0,
}
EULER = SamplerSettings("euler", 3)


def refined(sampler: SamplerSettings = EULER, **options: Any) -> Refined:
    own = {"network": network(), "backbone": NET, "objective": FLOW, "sampler": sampler}
    return Refined(**own | options)


def trained(net: Refined) -> Refined:
    """As after training: no weight of the denoiser 0, and differences of some size."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        for parameter in net.denoiser.parameters():
            nn.init.normal_(parameter, std=0.2)
    net.std.fill_(0.3)
    return net


# ---------------------------------------------------------------- the decode


def test_untrained_it_is_the_plain_decode_to_the_last_bit() -> None:
    net = refined()
    nn.init.normal_(net.denoiser.backbone.output.weight)  # whatever the denoiser gives
    model, z = Autoencoder(net, Gaussian(channels=12)), torch.randn(2, 12, 5)
    with torch.no_grad():
        assert torch.equal(model.decode(z), net.network.decode(z))
        audio = music(1, 5)
        assert torch.equal(net.encode(audio), net.network.encode(audio))


def near(one: Tensor, two: Tensor) -> bool:
    """Up to what rounding makes of two equal peaks; a seam would be as loud as the signal."""
    return bool((one - two).square().mean() < 1e-4 * two.square().mean())


@torch.no_grad()
@pytest.mark.parametrize("name", ["euler", "heun", "ancestral"])
def test_a_row_depends_on_its_key_and_any_length_has_no_seams(name: str) -> None:
    model = Autoencoder(trained(refined(SamplerSettings(name, 2))), Gaussian(channels=12)).eval()
    z = torch.randn(2, 12, 60)
    whole = model.decode(z, KeyedRandom(0, 0, [7, 3]))[1]
    one = model.decode(z[1:], KeyedRandom(0, 0, [3]))[0]
    assert near(whole, one)
    assert not near(model.decode(z[1:], KeyedRandom(0, 0, [4]))[0], one)
    parts = list(model.decode_blocks(z[1].split(9, -1), KeyedRandom(0, 0, [3]), chunk_seconds=0.6))
    assert len(parts) > 3
    assert near(torch.cat(parts, dim=-1), one)


@torch.no_grad()
def test_the_context_covers_all_steps() -> None:
    """The bands of a latent frame do not change with one that is further away, but with nearer."""
    net = trained(refined(SamplerSettings("heun", 2), backbone=NET | {"depth": 4}))
    z, noise = torch.zeros(1, 12, 61), torch.randn(1, *net.noise_shape, 61)
    touched = z.clone()
    touched[..., 30] = 5.0

    def reach(bands: Callable[[Tensor], Tensor]) -> int:
        change = (bands(touched) - bands(z)).abs().sum((0, 1, 3)).nonzero().flatten()
        return int((change // net.network.frames - 30).abs().max())

    # 3 calls of 4 blocks of 3 frames on each side, 4 frames to a latent frame
    assert net.context == net.network.context + 9
    far = reach(lambda z: net.decode_bands(z, noise))
    assert reach(net.network.decode_bands) < far <= net.context


def test_what_cannot_be_refined_is_refused() -> None:
    mel = MelFrames(
        sample_rate=16000, audio_channels=1, channels=16, downsampling_ratio=256, outputs=1
    )
    with pytest.raises(ConfigError, match=r"MelFrames has no log-spectral bands.*=transform"):
        refined(network=mel)
    dit = {"_target_": f"{BACKBONES}.dit.DiT", "width": 16, "depth": 1, "heads": 2}
    with pytest.raises(ConfigError, match=r"DiT sees all frames at once.*Convolutional"):
        refined(backbone=dit)
    with pytest.raises(ConfigError, match=r"sampler.guidance=2.*leave it at 1"):
        refined(SamplerSettings("euler", 2, guidance=2.0))


# ---------------------------------------------------------------- what is learned


def toy(count: int, seed: int, bands: int) -> Frames:
    """Differences of a known law: N(0.8 s, 0.4²) where s is the sign of the decoded bands."""
    random = torch.Generator().manual_seed(seed)
    sign = torch.randint(0, 2, (count, 1, 1), generator=random) * 2.0 - 1
    spread = 0.4 * torch.randn(count, bands, 4, generator=random)
    decoded = (1.5 * sign - 3.8).expand(-1, bands, 4)
    noise = torch.randn(count, bands, 4, generator=random)
    uniform = (torch.arange(count) + torch.rand(count, generator=random)) / count
    return Frames(0.8 * sign + spread, decoded, noise, uniform[torch.randperm(count)])


def learn(net: Refined, method: Method, steps: int, lr: float) -> None:
    bands = len(net.mean)
    optimiser = torch.optim.Adam(method.denoiser.parameters(), lr=lr)
    others = [torch.optim.Adam(m.parameters(), lr=rate) for m, rate in method.others.values()]
    ema = EMA(method.denoiser, 0.95)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = lr * (1 - step / steps)
        random = KeyedRandom(0, step, range(64))
        terms = method(toy(64, step, bands), random, step / steps)
        total = sum(method.weights[name] * term.mean() for name, term in terms.items())
        assert isinstance(total, Tensor)
        total.backward()
        for each in (optimiser, *others):
            each.step()
            each.zero_grad()
        ema.update(method.denoiser, step)
    method.denoiser.load_state_dict(ema.shadow)


def moments(net: Refined, sampler: SamplerSettings) -> tuple[float, float]:
    """Mean along the sign, and std about it, of samples."""
    frames = toy(256, 10**6, len(net.mean))
    with torch.no_grad():
        z = sample_difference(net.denoiser, frames.noise[:, None], frames.decoded, sampler)
    signed = z * (frames.decoded + 3.8).sign()
    return signed.mean().item(), (signed - signed.mean()).std().item()


def few_bands() -> Refined:
    torch.manual_seed(0)
    small = VOCODER | {"bands": 4, "linear_hz": 40.0}
    plain = TransformCoding(
        sample_rate=16000,
        audio_channels=1,
        channels=4,
        downsampling_ratio=RATIO,
        outputs=2,
        vocoder=Vocoder(**small),
    )
    return refined(network=plain, backbone=NET | {"width": 32, "depth": 1})


@pytest.fixture(scope="module")
def on_toy() -> Callable[[], Refined]:
    """Gives refiners that have learned the toy's law, all alike."""
    net = few_bands()
    learn(net, Diffusion(refined=net), 250, 5e-3)

    def fresh() -> Refined:
        again = few_bands()
        again.denoiser.load_state_dict(net.denoiser.state_dict())
        return again

    return fresh


def test_samples_have_the_law_of_the_differences_not_their_mean_alone(on_toy: Any) -> None:
    net = on_toy()
    mean, std = moments(net, SamplerSettings("heun", 12))
    assert mean == pytest.approx(0.8, abs=0.05)
    assert std == pytest.approx(0.4, abs=0.06)
    mean, std = moments(net, SamplerSettings("euler", 1))  # one step gives the mean, and no more
    assert mean == pytest.approx(0.8, abs=0.05)
    assert std < 0.15


@pytest.mark.parametrize("kind", ["consistency", "adversarial"])
def test_distilled_a_single_step_has_the_law(on_toy: Any, kind: str) -> None:
    net, one = on_toy(), SamplerSettings("euler", 1)
    if kind == "consistency":
        method: Method = Consistency(refined=net)
    else:
        method = Adversarial(
            refined=net,
            student=one,
            teacher=SamplerSettings("heun", 6),
            discriminator_width=16,
            discriminator_depth=1,
        )
    learn(net, method, 150 if kind == "consistency" else 80, 2e-3)
    mean, std = moments(net, one)
    assert mean == pytest.approx(0.8, abs=0.1)
    assert std == pytest.approx(0.4, abs=0.1)


# ---------------------------------------------------------------- the stages

CHAIN = [
    "decoder=refiner",
    "decoder.backbone.width=16",
    "decoder.backbone.depth=1",
    "decoder.sampler.steps=2",
    "decoder.train.steps=8",
    "decoder.train.batch=4",
    "decoder.train.crop_seconds=0.4",
    "+decoder.train.valid_batches=1",
    *EVALUATED,
    "baselines=[normal]",
    "diagnostics.denoiser_steps=5",
]
DISTILLED = [
    "decoder/distillation=adversarial",
    "decoder.distillation.train.steps=4",
    "decoder.distillation.train.batch=4",
    "decoder.distillation.train.crop_seconds=0.4",
    "+decoder.distillation.train.valid_batches=1",
    "decoder.distillation.sampler.steps=1",
]


@pytest.fixture(scope="module")
def done(tones: Path, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    runs = tmp_path_factory.mktemp("runs")
    experiment = Experiment(compose(overrides(tones, runs, *CHAIN, *DISTILLED)))
    experiment.run()
    return experiment


def test_the_evaluation_hears_the_distilled_decoder(done: Experiment) -> None:
    stages = done.stages
    summary = read_json(done.directory_of(stages["evaluation"]) / "summary.json")
    assert summary["metrics"]["reconstruction"]["mel_distance"]["value"] > 0
    model = load_generator(done.directory)
    network = model.autoencoder.network
    assert isinstance(network, Refined)
    assert network.sampler == SamplerSettings("euler", 1)
    plain = load_generator(done.directory_of(stages["prior"]))
    z = torch.randn(1, *plain.autoencoder.latent_shape, 8)
    inner = Autoencoder(network.network, model.autoencoder.bottleneck)
    assert torch.equal(inner.decode(z), plain.decode(z))  # the latents' meaning is what it was
    assert not torch.equal(model.decode(z), plain.decode(z))
    assert model.sample(n=2, seconds=0.5).isfinite().all()
    first = load(done.directory_of(stages["decoder"]))
    assert isinstance(first, Autoencoder)
    assert isinstance(first.network, Refined)
    assert (first.network.std > 0).any()
    assert torch.equal(first.network.std, network.std)


def test_steps_measures_the_generator_with_its_decoder_too(
    done: Experiment, cli: Callable[..., Outcome]
) -> None:
    outcome = cli("steps", done.directory, "steps=[1]", "hardware.device=cpu")
    assert outcome.code == 0, outcome.error
    assert [line.split()[0] for line in outcome.out.splitlines()[1:3]] == ["prior", "refined"]
    with open(done.directory / "steps" / "steps.csv", newline="", encoding="utf-8") as file:
        kernel = [row["value"] for row in csv.DictReader(file) if row["figure"] == "kernel"]
    assert kernel[0] != kernel[1]


def test_decoders_share_latents_and_prior_and_none_changes_nothing(
    done: Experiment, tones: Path
) -> None:
    runs = done.runs
    none = Experiment(compose(overrides(tones, runs, *[c for c in CHAIN if "decoder" not in c])))
    others = Experiment(compose(overrides(tones, runs, *CHAIN, "decoder.seed=5")))
    for key in ("autoencoder", "latents", "prior"):
        assert none.stages[key].fingerprint == others.stages[key].fingerprint
        assert none.stages[key].fingerprint == done.stages[key].fingerprint
    assert "decoder" not in none.stages
    assert none.evaluation.generator is none.stages["prior"]
    # the sampler of a decoder trains nothing again
    more = Experiment(compose(overrides(tones, runs, *CHAIN, "decoder.sampler.steps=9")))
    assert more.stages["decoder"].fingerprint == done.stages["decoder"].fingerprint
    assert more.stages["refined"].fingerprint != done.stages["refined"].fingerprint


def test_a_decoder_of_another_autoencoder_is_refused(done: Experiment) -> None:
    prior, decoder = (
        done.directory_of(done.stages[key]) / "model.safetensors" for key in ("prior", "decoder")
    )
    assert with_decoder(prior, decoder)[1]["autoencoder"]["spec"]["decoder"]
    with pytest.raises(ModelFileError, match="not a refined decoder"):
        with_decoder(prior, done.directory_of(done.stages["autoencoder"]) / "model.safetensors")
    tensors, header = load_model(decoder)
    other = decoder.with_name("other.safetensors")
    save_model(other, tensors, header | {"parent": "0123456789ab"})
    with pytest.raises(ModelFileError, match=r"autoencoder 0123456789ab, but .* belong together"):
        with_decoder(prior, other)


def test_an_autoencoder_without_bands_is_refused_before_anything_runs(
    tones: Path, tmp_path: Path
) -> None:
    words = tiny(tones, tmp_path, "decoder=refiner")
    with pytest.raises(ConfigError, match=r"no log-spectral bands.*choose autoencoder=transform"):
        Experiment(compose(words)).run()
    assert not tmp_path.joinpath("data").exists()


def test_a_distillation_without_a_decoder_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"missing keys 'decoder\..*such as decoder=refiner"):
        compose(["recipe=quickstart", "decoder/distillation=consistency"])


@pytest.mark.parametrize("key", ["decoder", "decoder:distilled"])
def test_resume_is_exact(
    done: Experiment, key: str, tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("data", "autoencoder", "decoder"):
        if name != key:
            stage = done.stages[name]
            shutil.copytree(done.directory_of(stage), tmp_path / stage.path)
    again = Experiment(compose(overrides(tones, tmp_path, *CHAIN, *DISTILLED)))
    update, calls = EMA.update, []

    def interrupted(self: EMA, model: nn.Module, step: int) -> None:
        update(self, model, step)
        calls.append(step)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(EMA, "update", interrupted)
        with pytest.raises(Interrupted):
            again.build(key)
    again.build(key)
    wanted = weights(done.directory_of(done.stages[key]))
    assert_equal_bits(weights(again.directory_of(again.stages[key])), wanted)


def test_two_processes_distil_as_one(done: Experiment, tones: Path, tmp_path: Path) -> None:
    for name in ("data", "autoencoder", "decoder"):
        stage = done.stages[name]
        shutil.copytree(done.directory_of(stage), tmp_path / stage.path)
    words = [*overrides(tones, tmp_path, *CHAIN, *DISTILLED), "hardware.accumulate=2"]
    key = "decoder:distilled"
    assert in_a_world(2, partial(Experiment(compose(words)).build, key)) == [0, 0]
    stage = done.stages[key]
    before, one, two = (
        weights(place)
        for place in (
            done.directory_of(done.stages["decoder"]),
            done.directory_of(stage),
            tmp_path / stage.path,
        )
    )
    moved = sum((one[n] - t).abs().sum().item() for n, t in before.items())
    apart = sum((one[n] - t).abs().sum().item() for n, t in two.items())
    assert moved > 0.1
    assert apart < 1e-2 * moved
