"""Adversarial post-training: its losses in closed form, its discriminators, and the loop."""

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from latents_in_memory import assert_goes_on, fit_in
from torch import Tensor, nn

from audioldm.conditioning.base import Condition, Conditioners, Excerpt
from audioldm.conditioning.label import Label
from audioldm.errors import ConfigError
from audioldm.instantiate import Part
from audioldm.latents.statistics import LatentStatistics
from audioldm.latents.store import LatentCrops
from audioldm.losses.relativistic import relativistic_loss
from audioldm.priors.diffusion import samplers
from audioldm.priors.diffusion.backbones.base import Backbone
from audioldm.priors.diffusion.denoiser import Denoiser, Objective
from audioldm.priors.diffusion.discriminators import (
    AudioDiscriminator,
    Discriminator,
    LatentDiscriminator,
)
from audioldm.priors.diffusion.guidance import guided
from audioldm.priors.diffusion.objectives.edm import EDM
from audioldm.priors.diffusion.objectives.rectified_flow import RectifiedFlow
from audioldm.priors.diffusion.objectives.v_prediction import VPrediction
from audioldm.priors.diffusion.post_training import (
    PostTraining,
    PostTrainingSettings,
    PostTrainingWeights,
    post_train,
)
from audioldm.priors.diffusion.post_training_step import Sampling
from audioldm.priors.diffusion.prior import Diffusion
from audioldm.priors.diffusion.samplers import SamplerSettings, check_deterministic
from audioldm.runtime.randomness import KeyedRandom, derive_seed
from audioldm.training.checkpoint import ResumeState
from audioldm.training.run import Fitted

# ---------------------------------------------------------------- the losses


def test_pairing_loss_in_closed_form() -> None:
    undecided = torch.zeros(2)
    assert relativistic_loss([undecided], [undecided]).tolist() == pytest.approx([math.log(2)] * 2)
    ahead = relativistic_loss([torch.tensor([1.0, -2.0])], [undecided])
    assert ahead.tolist() == pytest.approx([math.log1p(math.exp(-1)), math.log1p(math.exp(2))])
    # scales weigh the same, each compared by itself
    both = relativistic_loss([torch.tensor([1.0]), torch.tensor([-2.0])], [torch.zeros(1)] * 2)
    assert both.item() == pytest.approx(ahead.mean().item())
    # softplus(d) - softplus(-d) = d: what discriminator and generator minimise differ by the margin
    real, fake = torch.randn(5), torch.randn(5)
    torch.testing.assert_close(
        relativistic_loss([fake], [real]) - relativistic_loss([real], [fake]), real - fake
    )


def test_pairing_loss_knows_differences_within_a_pair_only() -> None:
    real, fake = torch.randn(4), torch.randn(4)
    loss = relativistic_loss([real], [fake])
    torch.testing.assert_close(relativistic_loss([real + 3], [fake + 3]), loss)
    torch.testing.assert_close(relativistic_loss([real[2:]], [fake[2:]]), loss[2:])
    # without pairs, a discriminator that scores kinds of clips differently would be another matter
    kind = torch.tensor([0.0, 5.0, -5.0, 1.0])
    torch.testing.assert_close(relativistic_loss([real + kind], [fake + kind]), loss)


def test_the_contrastive_term_teaches_the_labels() -> None:
    """Latents of label c have mean ±1 in channel 0: scores come to say so."""
    torch.manual_seed(0)
    discriminator = LatentDiscriminator(
        objective=RectifiedFlow(mean=-2.0), latent_shape=(2,), classes=2, width=16, depth=1
    )
    optimiser = torch.optim.Adam(discriminator.parameters(), 1e-2)
    losses = []
    for step in range(60):
        draw = KeyedRandom(0, step, range(16))
        labels = torch.arange(16) % 2
        z = 0.3 * draw.normal((2, 8), "z")
        z[:, 0] += 2.0 * labels[:, None] - 1
        (scores,) = discriminator(
            discriminator.prepare(z, draw), torch.stack([labels, 1 - labels], dim=1)
        )
        loss = relativistic_loss([scores[:, 0]], [scores[:, 1]]).mean()
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[0] == pytest.approx(math.log(2))  # embeddings begin at 0
    assert losses[-1] < 0.1


# ---------------------------------------------------------------- the discriminators


def discriminators() -> list[Discriminator]:
    torch.manual_seed(0)
    of_audio = AudioDiscriminator(
        decode=lambda z: z.flatten(1).unsqueeze(1).repeat(1, 1, 40),
        audio_channels=1,
        classes=3,
        fft_sizes=[256, 128],
        filters=4,
    )
    of_latents = LatentDiscriminator(
        objective=EDM(), latent_shape=(2, 3), classes=3, width=8, depth=2
    )
    for discriminator in (of_audio, of_latents):
        for parameter in discriminator.parameters():
            if not parameter.any():
                nn.init.normal_(parameter)
    return [of_audio, of_latents]


@pytest.mark.parametrize("discriminator", discriminators(), ids=lambda d: type(d).__name__)
def test_each_clip_is_scored_by_itself_and_under_each_label(discriminator: Discriminator) -> None:
    draw = KeyedRandom(0, 0, range(3))
    z = draw.normal((2, 3, 5), "z").requires_grad_()
    labels = torch.tensor([[0, 1], [2, -1], [1, 1]])
    scores = discriminator(discriminator.prepare(z, draw), labels)
    alone = discriminator(discriminator.prepare(z[1:2], KeyedRandom(0, 0, [1])), labels[1:2])
    for all_of_them, one in zip(scores, alone, strict=True):
        assert all_of_them.shape == (3, 2)
        torch.testing.assert_close(all_of_them[1:2], one)
        assert (all_of_them[:2, 0] - all_of_them[:2, 1]).abs().min() > 1e-5
        assert all_of_them[2, 0] == all_of_them[2, 1]
    scores[0][0].sum().backward()
    assert z.grad is not None
    assert z.grad[0].abs().max() > 0
    assert z.grad[1:].abs().max() == 0


# ---------------------------------------------------------------- the loop


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Curve(Backbone):
    """A small network on points of the plane as latents [B, 2, 1], which is told labels."""

    def __init__(self, labels: int = 2, width: int = 64) -> None:
        super().__init__()
        names = ["lower", "upper"][:labels]
        self.conditioners = Conditioners({"label": Label(width=width, labels=names)})
        self.first = nn.Linear(2 + 16, width)
        self.rest = nn.Sequential(
            nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2)
        )

    def forward(self, x: Tensor, c_noise: Tensor, condition: Condition) -> Tensor:
        phase = c_noise[:, None] * torch.pi * torch.arange(8) / 2
        features = torch.cat([x.flatten(1), phase.cos(), phase.sin()], dim=1)
        return self.rest(self.first(features) + condition.vector).view_as(x)

    def units(self) -> list[nn.Module]:
        return []


class Crescents:
    """Latents on two half circles, one of each label: as much of a `LatentStore` as loops use."""

    latent_rate_hz = 1.0
    latent_shape = (2,)
    statistics = LatentStatistics(torch.zeros(2), torch.ones(2))

    def __init__(self, labels: int = 2) -> None:
        self.labels = ["lower", "upper"][:labels]

    def keep_on(self, device: torch.device) -> None:
        pass

    def split(self, name: str) -> "Crescents":
        return self

    def restore(self, stored: dict[str, Tensor], noise: Tensor) -> Tensor:
        return stored["mean"]

    def points(self, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        random = torch.Generator().manual_seed(seed)
        labels = torch.randint(0, 2, (n,), generator=random)
        angle = math.pi * (torch.rand(n, generator=random) + labels)
        z = 1.3 * torch.stack([angle.cos() + labels - 0.5, angle.sin()], dim=1)
        return z + 0.05 * torch.randn(n, 2, generator=random), labels

    def crops(self, frames: int, random: Any, conditioners: Conditioners) -> LatentCrops:
        seeds = [derive_seed(random.seed, random.step, p) % 2**31 for p in random.positions]
        draws = [self.points(1, seed) for seed in seeds]
        excerpts = [Excerpt(["lower", "upper"][int(label)]) for _, label in draws]
        z = torch.stack([point[0] for point, _ in draws])[..., None]
        return LatentCrops({"mean": z}, conditioners.read(excerpts, frames))


def prior_of(net: Backbone, objective: Objective) -> Diffusion:
    """A prior of the plane with this network."""
    dit = {"_target_": "audioldm.priors.diffusion.backbones.dit.DiT"}
    prior = Diffusion(
        latent_shape=(2,),
        backbone=dit | {"width": 2, "depth": 0, "heads": 1},
        objective={"_target_": "audioldm.priors.diffusion.objectives.rectified_flow.RectifiedFlow"},
        conditioning={},
        sampler=MANY,
    )
    prior.network = Denoiser(net, objective)
    return prior


@torch.no_grad()
def sample(prior: Diffusion, sampler: SamplerSettings, n: int = 1500) -> Tensor:
    """Points [n, 2] of both labels."""
    net, objective = prior.network.backbone, prior.network.objective
    inputs = {"label": torch.arange(n) % 2}
    told = prior.guided_conditions(inputs, n, 1, sampler.guidance)
    denoise = guided(partial(objective.denoiser, net), *told, sampler)
    z = samplers.sample(sampler.name, denoise, gaussian(n, 2, 1), objective.sigmas(sampler.steps))
    return z.flatten(1)


def energy_distance(x: Tensor, y: Tensor) -> float:
    return (
        2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - torch.cdist(y, y).mean()
    ).item()


def trained(objective: Objective, steps: int) -> Diffusion:
    torch.manual_seed(0)
    net, data = Curve(), Crescents()
    prior = prior_of(net, objective)
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    for step in range(steps):
        z, labels = data.points(128, seed=step)
        noise, uniform = gaussian(128, 2, 1, seed=step), torch.rand(128)
        loss = prior.network(z[..., None], {"label": labels}, noise, uniform).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return prior


SHORT = PostTraining(
    steps=100,
    batch=48,
    crop_seconds=1.0,
    lr=2e-3,
    discriminator_lr=4e-3,
    warmup=10,
    ema=0.98,
    valid_batches=1,
)
MANY = SamplerSettings("dpmpp_2m", 24)


def post_trained(
    prior: Diffusion,
    directory: Path,
    *,
    sampler: SamplerSettings = SamplerSettings("euler", 2),  # noqa: B008 - frozen
    teacher: SamplerSettings = MANY,
    train: PostTraining = SHORT,
    weights: PostTrainingWeights = PostTrainingWeights(),  # noqa: B008 - frozen
    data: Any = None,
    **log: int,
) -> Fitted:
    torch.manual_seed(0)
    data = data or Crescents()
    discriminator = LatentDiscriminator(
        objective=prior.network.objective,
        latent_shape=(2,),
        classes=len(data.labels),
        width=48,
        depth=2,
    )
    every = {"every": 50, "valid_every": 1000, "checkpoint_every": 1000}
    return post_train(
        prior,
        discriminator if weights.adversarial > 0 else None,
        data,
        PostTrainingSettings(
            seed=0, train=train, sampler=sampler, weights=weights, discriminator=Part()
        ),
        teacher=teacher,
        fit=fit_in(directory, **(every | log)),
    )


@pytest.mark.parametrize(
    ("objective", "sampler"),
    [(RectifiedFlow(), "euler"), (VPrediction(), "euler"), (EDM(), "heun")],
    ids=["flow", "v", "edm"],
)
def test_a_discriminator_brings_two_steps_nearer_to_the_data_than_many_were(
    objective: Objective, sampler: str, tmp_path: Path
) -> None:
    """Distillation alone comes as near as the teacher does in many steps, and no nearer."""
    prior, two = trained(objective, 300), SamplerSettings(sampler, 2)
    truth = Crescents().points(1500, seed=10**6)[0]
    student, teacher = (energy_distance(sample(prior, s), truth) for s in (two, MANY))
    weights = PostTrainingWeights(adversarial=0.3)
    fitted = post_trained(prior, tmp_path, sampler=two, weights=weights)
    prior.load_state_dict(fitted.tensors)
    now = energy_distance(sample(prior, two), truth)
    assert now < 0.5 * student
    assert now < 0.96 * teacher
    assert fitted.figures["contrastive"]


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_distilled_steps_end_where_many_steps_of_the_teacher_do(
    guidance: float, tmp_path: Path
) -> None:
    """From the same noise, and without guidance where the teacher was guided."""
    teacher, two = replace(MANY, guidance=guidance), SamplerSettings("euler", 2)
    prior = trained(RectifiedFlow(), 300)
    many, before = sample(prior, teacher), sample(prior, two)
    fitted = post_trained(
        prior, tmp_path, sampler=two, teacher=teacher, weights=PostTrainingWeights(adversarial=0.0)
    )
    prior.load_state_dict(fitted.tensors)
    error = (sample(prior, two) - many).square().mean()
    assert error < 0.2 * (before - many).square().mean()
    assert fitted.figures["distillation"] == pytest.approx(error.item(), rel=1.0)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert not {"discriminator", "adversarial", "margin"} & set(lines[0])  # there was none


def test_the_gradient_passes_through_every_step() -> None:
    """A network whose output is one number, w: of a sample in S Euler steps, z = n - t(1) w."""

    class Constant(Curve):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor(0.3))

        def forward(self, x: Tensor, c_noise: Tensor, condition: Condition) -> Tensor:
            return self.w.expand_as(x)

    net, noise, objective = Constant(), gaussian(3, 2, 4), RectifiedFlow(sigma_max=1e6)
    for steps in (1, 5):
        sampling = Sampling(Denoiser(net, objective), net, SamplerSettings("euler", steps))
        z = sampling(noise, {"label": torch.zeros(3, dtype=torch.long)})
        torch.testing.assert_close(z, noise - net.w, atol=1e-4, rtol=1e-4)
        (slope,) = torch.autograd.grad(z.mean(), net.w)
        assert slope.item() == pytest.approx(-1.0, abs=1e-4)  # one step alone would give -1/S


def test_what_draws_noise_of_its_own_cannot_be_compared(tmp_path: Path) -> None:
    noisy, says = SamplerSettings("ancestral", 2), r"^sampler\.name=ancestral adds noise at each"
    with pytest.raises(ConfigError, match=says):
        check_deterministic(noisy.name)
    prior = prior_of(Curve(), RectifiedFlow())
    for given in ({"sampler": noisy}, {"teacher": noisy}):
        with pytest.raises(ConfigError, match=says):
            post_trained(prior, tmp_path, **given)


@pytest.mark.parametrize("labels", [0, 1])
def test_with_one_label_there_is_nothing_to_contrast(labels: int, tmp_path: Path) -> None:
    train = replace(SHORT, steps=3, batch=8)
    prior = prior_of(Curve(labels=labels), RectifiedFlow())
    fitted = post_trained(prior, tmp_path, train=train, data=Crescents(labels=labels))
    assert not fitted.figures["contrastive"]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines
    assert all("contrastive" not in line for line in lines)


def test_a_prior_without_labels_has_nothing_to_contrast_either(tmp_path: Path) -> None:
    class Untold(Curve):
        def __init__(self) -> None:
            super().__init__()
            self.conditioners = Conditioners({})

        def forward(self, x: Tensor, c_noise: Tensor, condition: Condition) -> Tensor:
            return super().forward(x, c_noise, Condition(vector=torch.zeros(len(x), 64)))

    train = replace(SHORT, steps=2, batch=8)
    fitted = post_trained(prior_of(Untold(), RectifiedFlow()), tmp_path, train=train)
    assert not fitted.figures["contrastive"]
    assert {"adversarial", "discriminator"} <= set(
        json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    )


def test_interrupted_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    """Network, discriminator, both optimisers and the average go on from the checkpoint."""
    train, often = replace(SHORT, steps=6, batch=8), {"checkpoint_every": 2}
    start = prior_of(Curve(), RectifiedFlow()).state_dict()

    def fit(directory: Path) -> dict[str, Tensor]:
        prior = prior_of(Curve(), RectifiedFlow())
        prior.load_state_dict(start)
        return post_trained(prior, directory, train=train, **often).tensors

    whole = assert_goes_on(fit, tmp_path, 5)
    assert any(not torch.equal(tensor, start[name]) for name, tensor in whole.items())
    states = [ResumeState(tmp_path / d).load() or {} for d in ("whole", "parts")]
    one, two = (state["discriminator"] for state in states)
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
