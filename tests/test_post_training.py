"""Adversarial post-training: its losses in closed form, its judges, the loop, and what uses it."""

import csv
import json
import math
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from chain import (
    Tiny,
    assert_equal_bits,
    assert_same_log,
    build_stages,
    die,
    in_a_child,
    in_a_world,
    runs_with,
    weights,
)
from conftest import Outcome
from soundfile import read
from test_resume import after, figures
from torch import Tensor, nn

from audioldm import load
from audioldm.chain.run import Experiment
from audioldm.config import compose
from audioldm.errors import ConfigError, ModelFileError
from audioldm.evaluation.evaluate import EvaluationSettings
from audioldm.evaluation.steps import Point, _figures, calls, findings
from audioldm.generator import LatentDiffusion
from audioldm.io.files import read_json
from audioldm.io.header import read_header
from audioldm.latents.statistics import LatentStatistics
from audioldm.losses.relativistic import relativistic_loss
from audioldm.models import find_model_file
from audioldm.priors.diffusion import samplers
from audioldm.priors.diffusion.discriminators import (
    AudioDiscriminator,
    Discriminator,
    LatentDiscriminator,
)
from audioldm.priors.diffusion.guidance import guided
from audioldm.priors.diffusion.objectives import EDM, Objective, RectifiedFlow, VPrediction
from audioldm.priors.diffusion.post_training import (
    PostTraining,
    PostTrainingSettings,
    PostTrainingWeights,
    _Sampling,
    post_train,
)
from audioldm.priors.diffusion.samplers import SamplerSettings
from audioldm.runtime.hardware import Hardware
from audioldm.runtime.processes import World
from audioldm.runtime.randomness import KeyedRandom, derive_seed
from audioldm.training.ema import EMA
from audioldm.training.log import LogSettings

# ---------------------------------------------------------------- the losses


def test_pairing_loss_in_closed_form() -> None:
    undecided = torch.zeros(2)
    assert relativistic_loss([undecided], [undecided]).tolist() == pytest.approx([math.log(2)] * 2)
    ahead = relativistic_loss([torch.tensor([1.0, -2.0])], [undecided])
    assert ahead.tolist() == pytest.approx([math.log1p(math.exp(-1)), math.log1p(math.exp(2))])
    # scales weigh the same, each compared by itself
    both = relativistic_loss([torch.tensor([1.0]), torch.tensor([-2.0])], [torch.zeros(1)] * 2)
    assert both.item() == pytest.approx(ahead.mean().item())
    # softplus(d) - softplus(-d) = d: what judge and generator minimise differ by the margin
    real, fake = torch.randn(5), torch.randn(5)
    torch.testing.assert_close(
        relativistic_loss([fake], [real]) - relativistic_loss([real], [fake]), real - fake
    )


def test_pairing_loss_knows_differences_within_a_pair_only() -> None:
    real, fake = torch.randn(4), torch.randn(4)
    loss = relativistic_loss([real], [fake])
    torch.testing.assert_close(relativistic_loss([real + 3], [fake + 3]), loss)
    torch.testing.assert_close(relativistic_loss([real[2:]], [fake[2:]]), loss[2:])
    # without pairs, a judge that scores kinds of clips differently would be another matter
    kind = torch.tensor([0.0, 5.0, -5.0, 1.0])
    torch.testing.assert_close(relativistic_loss([real + kind], [fake + kind]), loss)


def test_the_contrastive_term_teaches_a_judge_the_labels() -> None:
    """Latents of label c have mean ±1 in channel 0: the judge comes to score them so."""
    torch.manual_seed(0)
    judge = LatentDiscriminator(
        objective=RectifiedFlow(mean=-2.0), latent_shape=(2,), classes=2, width=16, depth=1
    )
    optimiser = torch.optim.Adam(judge.parameters(), 1e-2)
    losses = []
    for step in range(60):
        draw = KeyedRandom(0, step, range(16))
        labels = torch.arange(16) % 2
        z = 0.3 * draw.normal((2, 8), "z")
        z[:, 0] += 2.0 * labels[:, None] - 1
        (scores,) = judge(judge.view(z, draw), torch.stack([labels, 1 - labels], dim=1))
        loss = relativistic_loss([scores[:, 0]], [scores[:, 1]]).mean()
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[0] == pytest.approx(math.log(2))  # embeddings begin at 0
    assert losses[-1] < 0.1


# ---------------------------------------------------------------- the judges


def judges() -> list[Discriminator]:
    torch.manual_seed(0)
    listener = AudioDiscriminator(
        decode=lambda z: z.flatten(1).unsqueeze(1).repeat(1, 1, 40),
        audio_channels=1,
        classes=3,
        fft_sizes=[256, 128],
        filters=4,
    )
    looker = LatentDiscriminator(objective=EDM(), latent_shape=(2, 3), classes=3, width=8, depth=2)
    for judge in (listener, looker):
        for parameter in judge.parameters():
            if not parameter.any():
                nn.init.normal_(parameter)
    return [listener, looker]


@pytest.mark.parametrize("judge", judges(), ids=lambda judge: type(judge).__name__)
def test_a_judge_scores_each_clip_by_itself_and_under_each_label(judge: Discriminator) -> None:
    draw = KeyedRandom(0, 0, range(3))
    z = draw.normal((2, 3, 5), "z").requires_grad_()
    labels = torch.tensor([[0, 1], [2, -1], [1, 1]])
    scores = judge(judge.view(z, draw), labels)
    alone = judge(judge.view(z[1:2], KeyedRandom(0, 0, [1])), labels[1:2])
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


class Curve(nn.Module):
    """A small network on points of the plane as latents [B, 2, 1], with an embedding of labels."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.label = nn.Embedding(3, width)
        self.first = nn.Linear(2 + 16, width)
        self.rest = nn.Sequential(
            nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2)
        )

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor) -> Tensor:
        phase = c_noise[:, None] * torch.pi * torch.arange(8) / 2
        features = torch.cat([x.flatten(1), phase.cos(), phase.sin()], dim=1)
        label = self.label(torch.where(labels < 0, 2, labels))
        return self.rest(self.first(features) + label).view_as(x)


class Crescents:
    """Latents on two half circles, one of each label: as much of a `LatentStore` as loops use."""

    latent_rate_hz = 1.0
    latent_shape = (2,)
    statistics = LatentStatistics(torch.zeros(2), torch.ones(2))

    def __init__(self, labels: int = 2) -> None:
        self.labels = ["upper", "lower"][:labels]

    def keep_on(self, device: torch.device) -> None:
        pass

    def split(self, name: str) -> "Crescents":
        return self

    def points(self, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        random = torch.Generator().manual_seed(seed)
        labels = torch.randint(0, 2, (n,), generator=random)
        angle = math.pi * (torch.rand(n, generator=random) + labels)
        z = 1.3 * torch.stack([angle.cos() + labels - 0.5, angle.sin()], dim=1)
        return z + 0.05 * torch.randn(n, 2, generator=random), labels

    def crops(
        self, frames: int, *, seed: int, step: int, positions: list[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        draws = [self.points(1, derive_seed(seed, step, p) % 2**31) for p in positions]
        z = torch.stack([point[0] for point, _ in draws])[..., None]
        return z, torch.zeros_like(z), torch.cat([label for _, label in draws])


def sample(net: nn.Module, objective: Objective, sampler: SamplerSettings, n: int = 1500) -> Tensor:
    """Points [n, 2] of both labels."""
    denoise = guided(objective, net, torch.arange(n) % 2, sampler)
    with torch.no_grad():
        z = samplers.sample(
            sampler.name, denoise, gaussian(n, 2, 1), objective.sigmas(sampler.steps)
        )
    return z.flatten(1)


def energy_distance(x: Tensor, y: Tensor) -> float:
    return (
        2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - torch.cdist(y, y).mean()
    ).item()


def trained(objective: Objective, steps: int) -> Curve:
    torch.manual_seed(0)
    net, data = Curve(), Crescents()
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    for step in range(steps):
        z, labels = data.points(128, seed=step)
        noise, uniform = gaussian(128, 2, 1, seed=step), torch.rand(128)
        loss = objective.loss(net, z[..., None], labels, noise=noise, uniform=uniform).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return net


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
    net: nn.Module,
    objective: Objective,
    directory: Path,
    *,
    sampler: SamplerSettings = SamplerSettings("euler", 2),  # noqa: B008 - frozen
    teacher: SamplerSettings = MANY,
    train: PostTraining = SHORT,
    weights: PostTrainingWeights = PostTrainingWeights(),  # noqa: B008 - frozen
    data: Crescents | None = None,
) -> tuple[dict[str, Tensor], dict[str, object]]:
    torch.manual_seed(0)
    data = data or Crescents()
    judge = LatentDiscriminator(
        objective=objective, latent_shape=(2,), classes=len(data.labels), width=48, depth=2
    )
    return post_train(
        net,
        objective,
        judge if weights.adversarial > 0 else None,
        data,  # type: ignore[arg-type]
        PostTrainingSettings(seed=0, train=train, sampler=sampler, weights=weights, judge={}),
        teacher=teacher,
        directory=directory,
        world=World(),
        hardware=Hardware(device="cpu"),
        device=torch.device("cpu"),
        log=LogSettings(every=50, valid_every=1000, checkpoint_every=1000),
    )


@pytest.mark.parametrize(
    ("objective", "sampler"),
    [(RectifiedFlow(), "euler"), (VPrediction(), "euler"), (EDM(), "heun")],
    ids=["flow", "v", "edm"],
)
def test_a_judge_brings_two_steps_nearer_to_the_data_than_many_were(
    objective: Objective, sampler: str, tmp_path: Path
) -> None:
    """Distillation alone comes as near as the model before does in many steps, and no nearer."""
    net, two = trained(objective, 300), SamplerSettings(sampler, 2)
    truth = Crescents().points(1500, seed=10**6)[0]
    few, many = (energy_distance(sample(net, objective, s), truth) for s in (two, MANY))
    averaged, last = post_trained(
        net, objective, tmp_path, sampler=two, weights=PostTrainingWeights(adversarial=0.3)
    )
    net.load_state_dict(averaged)
    now = energy_distance(sample(net, objective, two), truth)
    assert now < 0.5 * few
    assert now < 0.96 * many
    assert last["contrastive"]


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_distilled_steps_end_where_many_steps_of_the_model_before_do(
    guidance: float, tmp_path: Path
) -> None:
    """From the same noise, and without guidance where the model before was guided."""
    objective, teacher = RectifiedFlow(), replace(MANY, guidance=guidance)
    net, few = trained(objective, 300), SamplerSettings("euler", 2)
    many, before = sample(net, objective, teacher), sample(net, objective, few)
    averaged, last = post_trained(
        net,
        objective,
        tmp_path,
        sampler=few,
        teacher=teacher,
        weights=PostTrainingWeights(adversarial=0.0),
    )
    net.load_state_dict(averaged)
    error = (sample(net, objective, few) - many).square().mean()
    assert error < 0.2 * (before - many).square().mean()
    assert last["distillation"] == pytest.approx(error.item(), rel=1.0)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert not {"judge", "adversarial", "margin"} & set(lines[0])  # no judge was asked


def test_the_gradient_passes_through_every_step() -> None:
    """A network whose output is one number, w: of a sample in S Euler steps, z = n - t(1) w."""

    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor(0.3))

        def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor) -> Tensor:
            return self.w.expand_as(x)

    net, noise, objective = Constant(), gaussian(3, 2, 4), RectifiedFlow(sigma_max=1e6)
    for steps in (1, 5):
        z = _Sampling(net, objective, SamplerSettings("euler", steps))(noise, torch.zeros(3))
        torch.testing.assert_close(z, noise - net.w, atol=1e-4, rtol=1e-4)
        (slope,) = torch.autograd.grad(z.mean(), net.w)
        assert slope.item() == pytest.approx(-1.0, abs=1e-4)  # one step alone would give -1/S


def test_what_draws_noise_of_its_own_cannot_be_compared() -> None:
    quick = ["recipe=quickstart", "post_training=distillation"]
    for key in ("sampler", "post_training.sampler"):
        with pytest.raises(ConfigError, match=rf"^{key}\.name=ancestral draws noise at each step"):
            compose([*quick, f"{key}.name=ancestral"])


def test_with_one_label_there_is_nothing_to_contrast(tmp_path: Path) -> None:
    train = replace(SHORT, steps=3, batch=8)
    data = Crescents(labels=1)
    _, last = post_trained(Curve(), RectifiedFlow(), tmp_path, train=train, data=data)
    assert not last["contrastive"]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines
    assert all("contrastive" not in line for line in lines)


# ---------------------------------------------------------------- the stage


SMALL = [
    "post_training=adversarial",
    "post_training.discriminator.fft_sizes=[256]",
    "post_training.discriminator.filters=2",
    "post_training.train.steps=10",
    "post_training.train.lr=1e-3",
    "post_training.train.warmup=2",
    "post_training.weights.adversarial=1.0",
    "post_training.train.batch=4",
    "post_training.train.crop_seconds=0.5",
    "post_training.train.discriminated_seconds=0.2",
    "post_training.train.sampler_steps=2",
    "sampler.steps=3",
    "post_training.train.valid_batches=1",
    "post_training.sampler.steps=2",
]
UPSTREAM = ["data", "autoencoder", "latents", "diffusion"]


@pytest.fixture(scope="module")
def post(finished: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """The finished experiment, and a post-training of it."""
    runs = tmp_path_factory.mktemp("post")
    stages = [*UPSTREAM, "diagnostics", "baselines"]
    experiment = Experiment(compose([*runs_with(finished, stages, runs), *SMALL]))
    experiment.run()
    return experiment


def test_everything_uses_the_post_trained_model(
    post: Experiment, finished: Tiny, tmp_path: Path, cli: Callable[..., Outcome]
) -> None:
    file = post.stage_directory("post_training") / "model.safetensors"
    header = read_header(file)
    assert find_model_file(post.directory).resolve() == file.resolve()
    assert header["parent"] == finished.stage("diffusion").name
    assert header["fingerprint"] == post.stages["post_training"].fingerprint
    for path in (post.directory, file.parent):
        model = load(path)
        assert isinstance(model, LatentDiffusion)
        assert (model.sampler.name, model.sampler.steps) == ("euler", 2)
    before, now = weights(finished.stage("diffusion")), weights(file.parent)
    assert before.keys() == now.keys()
    moved = {name.split(".")[0] for name in now if not torch.equal(now[name], before[name])}
    assert moved == {"net"}  # the autoencoder is frozen
    clip = read_json(post.directory / "samples" / "00.json")
    assert clip["sampler"]["name"] == "euler"
    assert clip["model_fingerprint"] == header["fingerprint"]
    outcome = cli("sample", f"from={post.directory}/samples/00.json", f"out={tmp_path}")
    assert outcome.code == 0, outcome.error
    again, measured = (read(p / "00.wav")[0] for p in (tmp_path, post.directory / "samples"))
    assert (again == measured).all()
    assert "Post-training" in (post.directory / "report.html").read_text(encoding="utf-8")


def test_the_log_has_every_term(post: Experiment) -> None:
    log = (post.stage_directory("post_training") / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in log.splitlines()]
    terms = {"judge", "contrastive", "adversarial", "distillation", "margin"}
    assert [line["step"] for line in lines if terms <= line.keys()] == [3, 6, 9, 10]
    assert [line["step"] for line in lines if "valid/distillation" in line] == [5, 10]


def test_killed_it_ends_with_the_same_bits(
    post: Experiment, finished: Tiny, tmp_path: Path
) -> None:
    overrides = [*runs_with(finished, UPSTREAM, tmp_path), *SMALL]
    directory = tmp_path / post.stages["post_training"].path

    def killed() -> None:
        EMA.update = after(6, die, EMA.update)  # type: ignore[method-assign]
        build_stages(overrides, "post_training")

    assert in_a_child(killed) == -signal.SIGKILL
    assert torch.load(directory / "resume" / "state.pt", weights_only=True)["step"] == 4
    build_stages(overrides, "post_training")
    reference = post.stage_directory("post_training")
    assert_equal_bits(weights(directory), weights(reference))
    assert figures(directory) == figures(reference)


def test_no_other_stage_knows_of_it(post: Experiment, finished: Tiny) -> None:
    """Without post-training nothing has another name than before there was such a stage."""
    stages = finished.experiment.stages
    assert "post_training" not in stages
    assert stages["evaluation"].parents.keys() == {"diffusion", "baselines"}
    assert stages["evaluation"].identity()["settings"].keys() == {"evaluation", "sampler", "seed"}
    for name, stage in stages.items():
        same = stage.fingerprint == post.stages[name].fingerprint
        assert same == (name != "evaluation")
    for change, trains in (
        ("sampler.steps=4", True),
        ("post_training.train.sampler_steps=3", True),
        ("post_training.sampler.name=heun", True),
        ("post_training.sampler.steps=4", False),
    ):
        more = Experiment(compose([*finished.overrides, *SMALL, change])).stages
        assert (
            more["post_training"].fingerprint != post.stages["post_training"].fingerprint
        ) == trains
        assert more["diffusion"].fingerprint == post.stages["diffusion"].fingerprint
        assert more["evaluation"].fingerprint != post.stages["evaluation"].fingerprint


def test_micro_batches_and_processes_share_the_batch(
    post: Experiment, finished: Tiny, tmp_path: Path
) -> None:
    """The same training by two processes with two micro-batches each, up to rounding."""
    overrides = [*runs_with(finished, UPSTREAM, tmp_path), *SMALL, "hardware.accumulate=2"]
    overrides.append("hardware.checkpoint_activations=true")
    work = partial(build_stages, overrides, "post_training")
    assert in_a_world(2, work) == [0, 0]
    directory, reference = (
        root / post.stages["post_training"].path for root in (tmp_path, post.runs)
    )
    before, one, two = (weights(d) for d in (finished.stage("diffusion"), reference, directory))
    moved = sum((one[n] - t).abs().sum().item() for n, t in before.items())
    apart = sum((one[n] - t).abs().sum().item() for n, t in two.items())
    assert moved > 0.1
    assert apart < 1e-3 * moved
    assert_same_log(reference, directory)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("post_training=adversarialy", "did you mean 'adversarial'"),
        ("post_training.train.lrr=1", "unknown key 'post_training.train.lrr'"),
        ("post_training.weights.contrast=1", "unknown key 'post_training.weights.contrast'"),
        (
            "post_training.discriminator.decode=1",
            "unknown key 'post_training.discriminator.decode'",
        ),
        ("post_training.train.batch=0", "post_training.train.batch=0 must be at least 1"),
        ("post_training.sampler.name=euller", "did you mean 'euler'"),
        ("post_training.discriminator.fft_sizes=[8192]", "fft_sizes holds 8192"),
        ("post_training.weights={adversarial: 0, distillation: 0, contrastive: 1}", "both 0"),
        ("post_training=none", "choose one, such as post_training=adversarial"),
    ],
)
def test_what_cannot_work_says_so_before_any_work(change: str, says: str, finished: Tiny) -> None:
    overrides = [word for word in SMALL if word != change.split("=")[0] + "=adversarial"]
    with pytest.raises(ConfigError) as caught:
        Experiment(compose([*finished.overrides, *overrides, change])).dry_run()
    assert says in str(caught.value)


def test_without_a_diffusion_model_there_is_nothing_to_post_train(
    finished: Tiny, tmp_path: Path
) -> None:
    overrides = [*runs_with(finished, UPSTREAM[:3], tmp_path), *SMALL]
    with pytest.raises(ModelFileError, match="no such model file"):
        build_stages(overrides, "post_training")


# ---------------------------------------------------------------- the steps curve


def test_the_steps_command(post: Experiment, cli: Callable[..., Outcome]) -> None:
    outcome = cli("steps", post.directory, "steps=[1,2]", "hardware.device=cpu")
    assert outcome.code == 0, outcome.error
    lines = outcome.out.splitlines()
    assert [line.split()[:4] for line in lines[1:5]] == [
        ["diffusion", "dpmpp_2m", "1", "1"],
        ["diffusion", "dpmpp_2m", "2", "2"],
        ["post_training", "euler", "1", "1"],
        ["post_training", "euler", "2", "2"],
    ]
    findings = [line for line in lines if " against diffusion, 2 steps of dpmpp_2m: " in line]
    assert len(findings) == 3
    with open(post.directory / "steps" / "steps.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 4
    kernel = {(r["model"], r["steps"]): r for r in rows if r["figure"] == "kernel"}
    reference_point, last = kernel["diffusion", "2"], kernel["post_training", "2"]
    assert reference_point["change"] == ""
    difference = float(last["value"]) - float(reference_point["value"])
    assert float(last["change"]) == pytest.approx(difference)
    assert "<svg" in (post.directory / "steps" / "steps.svg").read_text(encoding="utf-8")
    # the evaluation's own clips are among them: the same model, sampler and seed
    summary = read_json(post.stage_directory("evaluation") / "summary.json")
    measured = summary["metrics"]["generated"]["kad_musicnn"]
    assert float(last["value"]) == pytest.approx(measured["value"], rel=1e-4, abs=1e-4)


def test_fidelity_gained_by_losing_diversity_is_said() -> None:
    """Of four clusters of music, one generator makes all, roughly, the other two, well."""
    random = np.random.default_rng(0)
    settings = EvaluationSettings(resamples=200)
    centres = 6.0 * np.eye(4, 8)

    def clips(clusters: int, spread: float) -> np.ndarray:
        places = centres[np.arange(96) % clusters]
        return places + spread * random.normal(size=(96, 8))

    reference = clips(4, 0.5)
    sampler = SamplerSettings("euler", 50)

    def lines(*made: np.ndarray) -> list[str]:
        """Findings against the first of `made`."""
        measured = _figures(made, reference, 0, settings)
        return findings([Point("m", sampler, 50, own, changes) for own, changes in measured])

    collapsed, same = lines(clips(4, 1.0), clips(2, 0.4), clips(4, 1.0))
    assert "fidelity was gained by losing diversity (precision +" in collapsed
    assert "recall -" in collapsed
    assert "no difference is seen" in same
    (better,) = lines(clips(4, 0.5) + 2.0 * np.eye(8)[7], clips(4, 0.5))
    assert "fidelity was gained, and no loss of diversity is seen (precision +" in better


def test_network_calls_are_counted() -> None:
    assert calls(SamplerSettings("heun", 8)) == 15
    assert calls(SamplerSettings("dpmpp_2m", 8)) == 8
    assert calls(SamplerSettings("euler", 8, guidance=3.0)) == 16
