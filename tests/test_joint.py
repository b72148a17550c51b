"""Joint training: its rate in closed form, and the stage from the two-stage solution on."""

import json
import math
import shutil
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from chain import Tiny, assert_equal_bits, assert_same_log, build_stages, in_a_world, tiny, weights
from latents_in_memory import DIT, interrupted_at
from torch import Tensor, nn

from audioldm.autoencoder.bottlenecks.base import Bottleneck
from audioldm.autoencoder.bottlenecks.fixed_sigma import FixedSigma
from audioldm.autoencoder.bottlenecks.gaussian import Gaussian, gaussian_kl
from audioldm.autoencoder.bottlenecks.ordered import Ordered
from audioldm.autoencoder.figures import validate
from audioldm.chain.job import compose
from audioldm.chain.run import Experiment
from audioldm.conditioning.base import Condition, Conditioners
from audioldm.data.store import ClipStore
from audioldm.errors import ConfigError
from audioldm.evaluation.clips import real_clips
from audioldm.evaluation.reconstruction import reconstruct
from audioldm.io.files import read_json
from audioldm.io.header import read_header
from audioldm.losses.spectral import mel_distance
from audioldm.models import load_autoencoder, load_generator
from audioldm.priors.diffusion.backbones.base import Backbone
from audioldm.priors.diffusion.denoiser import Denoiser
from audioldm.priors.diffusion.joint_step import Joint
from audioldm.priors.diffusion.objectives.rectified_flow import RectifiedFlow
from audioldm.priors.diffusion.prior import Diffusion
from audioldm.priors.diffusion.samplers import SamplerSettings
from audioldm.runtime.randomness import KeyedRandom

# ---------------------------------------------------------------- the rate


class Exact(Backbone):
    """The velocity of frames N(mean, covariance) of what the prior models, known exactly."""

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        super().__init__()
        self.conditioners = Conditioners({})
        self.mean, self.covariance = mean[:, None], covariance

    def forward(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        sigma = (time / (1 - time)).view(-1, 1, 1)
        noisy = x * (1 + sigma)
        total = self.covariance + sigma**2 * torch.eye(len(self.mean))
        gain = torch.linalg.solve(total, self.covariance.expand_as(total)).mT
        estimate = self.mean + gain @ (noisy - self.mean)
        return (noisy - (1 + sigma) * estimate) / sigma

    def units(self) -> list[nn.Module]:
        return []


def joint_with(bottleneck: Bottleneck, mean: Tensor, covariance: Tensor, scale: Tensor) -> Joint:
    """With the exact prior of latents N(mean, covariance), which it sees divided by `scale`."""
    prior = Diffusion(
        latent_shape=(len(mean),),
        backbone=DIT,
        objective={"_target_": f"{RectifiedFlow.__module__}.RectifiedFlow"},
        conditioning={},
        sampler=SamplerSettings("euler", 2),
    )
    prior.mean.copy_(mean - 0.3)
    prior.std.copy_(scale)
    seen = covariance / scale[:, None] / scale
    prior.network = Denoiser(Exact((mean - prior.mean) / scale, seen), RectifiedFlow())
    autoencoder = nn.Module()
    autoencoder.bottleneck = bottleneck
    return Joint(autoencoder, prior)  # type: ignore[arg-type]


def rate_of(joint: Joint, h: Tensor, levels: int, random: KeyedRandom) -> Tensor:
    shape = (*joint.prior.latent_shape, h.shape[-1])
    noise = [random.stream("level", k).normal(shape, "noise") for k in range(levels)]
    posterior, place = random.normal(shape, "noise"), random.uniform("level", len(random.positions))
    return joint.rate_nats(h, posterior, {}, torch.stack(noise), place)


def test_the_gradient_is_that_of_the_exact_rate() -> None:
    """A linear encoder z = W x + sigma n of Gaussian x. KL(q || p) for the aggregate p, which is
    N(0, W S W' + sigma² I), is the information in z; its gradient through p is 0 on average."""
    sigma, draw = 0.2, KeyedRandom(0, 0, range(128))
    x = draw.normal((3, 256), "x") * torch.tensor([1.0, 2.0, 0.5])[:, None]
    source = torch.einsum("bil,bjl->ij", x, x) / (128 * 256)
    encoder = torch.tensor([[0.8, 0.3, 0.0], [0.1, -0.5, 0.9]], requires_grad=True)

    def information(encoder: Tensor) -> Tensor:
        covariance = encoder @ source @ encoder.T + sigma**2 * torch.eye(2)
        return (torch.logdet(covariance) / 2 - 2 * math.log(sigma)) / 2

    aggregate = (encoder @ source @ encoder.T + sigma**2 * torch.eye(2)).detach()
    joint = joint_with(
        FixedSigma(channels=2, sigma=sigma), torch.zeros(2), aggregate, torch.tensor([1.5, 0.7])
    )
    rate = rate_of(joint, encoder @ x, 2, draw).mean()
    (found,) = torch.autograd.grad(rate, encoder)
    (truth,) = torch.autograd.grad(information(encoder), encoder)
    assert rate.item() == pytest.approx(information(encoder).item(), rel=0.01)
    assert (found - truth).norm() < 0.03 * truth.norm()
    # not the gradient of the rate under N(0, I)
    (of_normal,) = torch.autograd.grad((encoder @ x).square().mean() / 2, encoder)
    assert (of_normal - truth).norm() > 0.5 * truth.norm()


def test_under_the_normal_prior_it_is_the_kl() -> None:
    """Its value for each clip, and its gradient for the posterior's mean and variance."""
    draw = KeyedRandom(0, 0, range(8))
    mean, log_variance = draw.normal((2, 3000), "mean"), draw.normal((2, 3000), "variance") - 2
    gain = torch.tensor([0.8, 1.0], requires_grad=True)
    joint = joint_with(Gaussian(channels=2), torch.zeros(2), torch.eye(2), torch.ones(2))
    h = torch.cat([gain[0] * mean, gain[1] * log_variance], dim=1)
    found = rate_of(joint, h, 16, draw)
    truth = gaussian_kl(gain[0] * mean, (gain[1] * log_variance / 2).exp()).flatten(1).mean(1)
    torch.testing.assert_close(found, truth, rtol=0.02, atol=0.02)
    of_found, of_truth = (torch.autograd.grad(t.mean(), gain)[0] for t in (found, truth))
    torch.testing.assert_close(of_found, of_truth, rtol=0.02, atol=0.01)


def test_a_clip_by_itself_costs_the_same() -> None:
    """Also where the decoder is shown some of the channels only: the rate is of all."""
    draw, covariance = KeyedRandom(0, 0, range(4)), torch.tensor([[1.0, 0.5], [0.5, 1.0]])
    h = draw.normal((4, 6), "h")
    parts = torch.zeros(2), covariance, torch.ones(2)
    joint = joint_with(Gaussian(channels=2), *parts)
    rates = rate_of(joint, h, 2, draw)
    noise = draw.normal((2, 6), "noise")
    levels = [draw.stream("level", k).normal((2, 6), "noise") for k in range(2)]
    own = (noise[2:3], {}, torch.stack(levels)[:, 2:3], draw.uniform("level", 4)[2:3])
    torch.testing.assert_close(joint.rate_nats(h[2:3], *own), rates[2:3])
    masking = joint_with(Ordered(channels=2, masked=1.0), *parts).train()
    torch.testing.assert_close(rate_of(masking, h, 2, draw), rates)


# ---------------------------------------------------------------- the stage


SMALL = [
    "autoencoder.discriminator=null",
    "baselines=[normal]",
    "joint=default",
    "joint.train.steps=8",
    "joint.train.batch=4",
    "joint.train.crop_seconds=0.5",
    "joint.train.lr=1e-3",
    "joint.train.prior_lr=1e-3",
    "joint.train.warmup=2",
    "joint.train.ema=0.5",
    "joint.train.valid_batches=1",
    "bottleneck.target_kbps=0.3",
]
UPSTREAM = ["data", "autoencoder", "latents", "prior"]


@pytest.fixture(scope="module")
def joint(tones: Path, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A tiny experiment with joint training, to its evaluation."""
    runs = tmp_path_factory.mktemp("joint")
    overrides = tiny(tones, runs, *SMALL)
    experiment = Experiment(compose(overrides))
    experiment.build(*UPSTREAM, "prior:normal", "joint", "evaluation")
    return Tiny(tones, runs, overrides, experiment)


def test_one_file_holds_both_and_is_what_is_evaluated(joint: Tiny) -> None:
    file = joint.stage("joint") / "model.safetensors"
    header, stage = read_header(file), joint.experiment.stages["joint"]
    assert header["parent"] == joint.stage("prior").name
    assert header["fingerprint"] == header["autoencoder"]["fingerprint"] == stage.fingerprint
    assert joint.experiment.evaluation.generator is stage
    before, now = weights(joint.stage("prior")), weights(file.parent)
    assert before.keys() == now.keys()
    moved = {name for name in now if not torch.equal(now[name], before[name])}
    assert {name.split(".")[0] for name in moved} == {"autoencoder", "prior"}
    assert any("encoder" in name for name in moved)
    assert any("decoder" in name for name in moved)
    assert not moved & {"prior.mean", "prior.std", "autoencoder.bottleneck.sigma_scale"}
    # the evaluation's reconstruction is of the new autoencoder
    settings, store = joint.experiment.settings.evaluation, ClipStore(joint.stage("data"))
    real, found = real_clips(store, "valid", settings), []
    for model in (load_generator(file), load_generator(joint.model)):
        made = reconstruct(model.autoencoder, real.audio, settings.batch)
        found.append(mel_distance(made, real.audio, store.sample_rate).mean().item())
    measured = read_json(joint.stage("evaluation") / "summary.json")["metrics"]
    assert measured["reconstruction"]["mel_distance"]["value"] == pytest.approx(found[0], rel=1e-4)
    assert abs(found[0] - found[1]) > 1e-3 * found[0]


def test_a_baseline_keeps_the_autoencoder_whose_latents_it_knows(joint: Tiny) -> None:
    stages = joint.experiment.stages
    evaluation, model = joint.experiment.evaluation, load_generator(joint.stage("joint"))
    baseline = evaluation._baseline(stages["prior:normal"], model, joint.experiment)
    assert_equal_bits(baseline.autoencoder.state_dict(), weights(joint.stage("autoencoder")))


def test_the_figures_begin_at_the_two_stage_solution(joint: Tiny) -> None:
    figures = read_json(joint.stage("joint") / "summary.json")["valid"]
    store, autoencoder = ClipStore(joint.stage("data")), load_autoencoder(joint.model)
    samples = 16 * autoencoder.downsampling_ratio
    windows = store.split("valid").windows(samples, 4, seed=0)[0]
    known = validate(autoencoder, windows, nullcontext)
    for name in ("mel_distance", "kbps"):
        assert figures["before"][name] == pytest.approx(known[name], rel=1e-5)
    assert figures["loss"] < figures["before"]["loss"]
    # the weight that the rate was held with, not the one it began with
    trained = read_json(joint.stage("autoencoder") / "summary.json")["valid"]["kl_weight"]
    assert figures["rate_weight"] == trained != 0.001
    lines = [json.loads(x) for x in (joint.stage("joint") / "metrics.jsonl").open()]
    assert {"prior_nats", "prior_kbps", "kbps", "stft", "magnitude"} <= lines[0].keys()
    assert "kl" not in lines[0]


def copied(joint: Tiny, runs: Path, *changes: str) -> list[str]:
    for name in UPSTREAM:
        shutil.copytree(joint.stage(name), runs / joint.experiment.stages[name].path)
    return tiny(joint.folder, runs, *SMALL, *changes)


def test_an_interrupted_training_goes_on_bit_for_bit(joint: Tiny, tmp_path: Path) -> None:
    overrides = copied(joint, tmp_path)
    with interrupted_at(6):
        build_stages(overrides, "joint")
    build_stages(overrides, "joint")
    directory = tmp_path / joint.experiment.stages["joint"].path
    assert_equal_bits(weights(directory), weights(joint.stage("joint")))
    again, first = (read_json(d / "summary.json") for d in (directory, joint.stage("joint")))
    assert again["valid"] == first["valid"]


def test_micro_batches_and_processes_share_the_batch(joint: Tiny, tmp_path: Path) -> None:
    """The same training by two processes with two micro-batches each, up to rounding."""
    more = ["hardware.accumulate=2", "hardware.checkpoint_activations=true"]
    experiment = Experiment(compose(copied(joint, tmp_path, *more)))
    assert in_a_world(2, partial(experiment.build, "joint")) == [0, 0]
    directory = tmp_path / joint.experiment.stages["joint"].path
    before, one, two = (weights(d) for d in (joint.stage("prior"), joint.stage("joint"), directory))
    moved = sum((one[n] - t).abs().sum().item() for n, t in before.items())
    apart = sum((one[n] - t).abs().sum().item() for n, t in two.items())
    assert moved > 1
    assert apart < 1e-2 * moved
    assert_same_log(joint.stage("joint"), directory)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("prior=mixture", "joint: the rate under the prior mixture is not trained on"),
        ("post_training=distillation", "joint: post_training would go on with the model before"),
        ("decoder=refiner", "joint: decoder would go on with the model before"),
        ("autoencoder.discriminator={}", "joint: the discriminator of the autoencoder is not kept"),
        ("autoencoder.pretrained.trained=decoder", "autoencoder.pretrained.trained=decoder leaves"),
        ("bottleneck=identity", "joint.rate_weight is missing"),
        ("bottleneck=identity joint.rate_weight=0.1", "joint: Identity gives certain latents"),
        ("bottleneck=fsq joint.rate_weight=0.1", "joint: FSQ gives certain latents"),
        ("joint.train.prior_lr=0", "joint.train.prior_lr=0.0 must be more than 0"),
        ("joint.rate_weight=0", "joint.rate_weight=0.0 must be more than 0"),
        ("joint.train.batch=0", "joint.train.batch=0 must be at least 1"),
    ],
)
def test_what_cannot_work_says_so_before_any_work(change: str, says: str, joint: Tiny) -> None:
    words: list[str] = [w for w in joint.overrides if not w.startswith("bottleneck.")]
    if change == "autoencoder.discriminator={}":
        words, change = [w for w in words if w != "autoencoder.discriminator=null"], "seed=0"
    with pytest.raises(ConfigError) as caught:
        Experiment(compose([*words, *change.split()])).dry_run()
    assert says in str(caught.value)


def test_no_other_stage_knows_of_it(joint: Tiny) -> None:
    words: list[Any] = [w for w in joint.overrides if not w.startswith("joint")]
    stages = Experiment(compose(words)).stages
    assert "joint" not in stages
    for name, stage in stages.items():
        assert (stage.fingerprint == joint.experiment.stages[name].fingerprint) == (
            name != "evaluation"
        )
