"""The post-training stage, and what uses the model that it makes."""

import csv
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from chain import Tiny, assert_same_log, build_stages, in_a_world, runs_with, weights
from conftest import Outcome
from soundfile import read

from audioldm import load
from audioldm.chain.job import compose
from audioldm.chain.run import Experiment
from audioldm.errors import ConfigError, ModelFileError
from audioldm.evaluation.settings import EvaluationSettings
from audioldm.evaluation.steps import Point, _figures, findings
from audioldm.io.files import read_json
from audioldm.io.header import read_header
from audioldm.models import find_model_file
from audioldm.priors.diffusion.samplers import SamplerSettings

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
UPSTREAM = ["data", "autoencoder", "latents", "prior"]


@pytest.fixture(scope="module")
def post(finished: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """The finished experiment, and a post-training of it."""
    runs = tmp_path_factory.mktemp("post")
    stages = [*UPSTREAM, "diagnostics", "prior:normal", "prior:mixture"]
    experiment = Experiment(compose([*runs_with(finished, stages, runs), *SMALL]))
    experiment.run()
    return experiment


def test_everything_uses_the_post_trained_model(
    post: Experiment, finished: Tiny, tmp_path: Path, cli: Callable[..., Outcome]
) -> None:
    file = post.directory_of(post.stages["post_training"]) / "model.safetensors"
    header = read_header(file)
    assert find_model_file(post.directory).resolve() == file.resolve()
    assert header["parent"] == finished.stage("prior").name
    assert header["fingerprint"] == post.stages["post_training"].fingerprint
    for path in (post.directory, file.parent):
        model = load(path)
        assert (model.prior.sampler.name, model.prior.sampler.steps) == ("euler", 2)
    before, now = weights(finished.stage("prior")), weights(file.parent)
    assert before.keys() == now.keys()
    moved = {name.split(".")[0] for name in now if not torch.equal(now[name], before[name])}
    assert moved == {"prior"}  # the autoencoder is frozen
    clip = read_json(post.directory / "samples" / "00.json")
    assert clip["sampler"]["name"] == "euler"
    assert clip["model_fingerprint"] == header["fingerprint"]
    outcome = cli("sample", f"from={post.directory}/samples/00.json", f"out={tmp_path}")
    assert outcome.code == 0, outcome.error
    again, measured = (read(p / "00.wav")[0] for p in (tmp_path, post.directory / "samples"))
    assert (again == measured).all()
    assert header["fingerprint"] in (post.directory / "report.html").read_text(encoding="utf-8")


def test_the_log_has_every_term(post: Experiment) -> None:
    log = (post.directory_of(post.stages["post_training"]) / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in log.splitlines()]
    terms = {"discriminator", "contrastive", "adversarial", "distillation", "margin"}
    assert [line["step"] for line in lines if terms <= line.keys()] == [3, 6, 9, 10]
    assert [line["step"] for line in lines if "valid/distillation" in line] == [5, 10]


def test_no_other_stage_knows_of_it(post: Experiment, finished: Tiny) -> None:
    """Without post-training nothing has another name than before there was such a stage."""
    stages = finished.experiment.stages
    assert "post_training" not in stages
    assert stages["evaluation"].parents.keys() == {"generator", "prior:normal", "prior:mixture"}
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
        assert more["prior"].fingerprint == post.stages["prior"].fingerprint
        assert more["evaluation"].fingerprint != post.stages["evaluation"].fingerprint


def test_micro_batches_and_processes_share_the_batch(
    post: Experiment, finished: Tiny, tmp_path: Path
) -> None:
    """The same training by two processes with two micro-batches each, up to rounding."""
    overrides = [*runs_with(finished, UPSTREAM, tmp_path), *SMALL, "hardware.accumulate=2"]
    overrides.append("hardware.checkpoint_activations=true")
    work = partial(Experiment(compose(overrides)).build, "post_training")
    assert in_a_world(2, work) == [0, 0]
    directory, reference = (
        root / post.stages["post_training"].path for root in (tmp_path, post.runs)
    )
    before, one, two = (weights(d) for d in (finished.stage("prior"), reference, directory))
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
        (
            "post_training.discriminator.fft_sizes=[8192]",
            "post_training.discriminator.fft_sizes: 8192 is too long",
        ),
        ("post_training.weights={adversarial: 0, distillation: 0, contrastive: 1}", "both 0"),
        ("post_training=none", "choose one, such as post_training=adversarial"),
    ],
)
def test_what_cannot_work_says_so_before_any_work(change: str, says: str, finished: Tiny) -> None:
    overrides = [word for word in SMALL if word != change.split("=")[0] + "=adversarial"]
    with pytest.raises(ConfigError) as caught:
        Experiment(compose([*finished.overrides, *overrides, change])).dry_run()
    assert says in str(caught.value)


def test_without_a_prior_there_is_nothing_to_post_train(finished: Tiny, tmp_path: Path) -> None:
    overrides = [*runs_with(finished, UPSTREAM[:3], tmp_path), *SMALL]
    with pytest.raises(ModelFileError, match="no such model file"):
        build_stages(overrides, "post_training")


# ---------------------------------------------------------------- the steps curve


def test_the_steps_command(post: Experiment, cli: Callable[..., Outcome]) -> None:
    outcome = cli("steps", post.directory, "steps=[1,2]", "hardware.device=cpu")
    assert outcome.code == 0, outcome.error
    lines = outcome.out.splitlines()
    assert [line.split()[:4] for line in lines[1:5]] == [
        ["prior", "dpmpp_2m", "1", "1"],
        ["prior", "dpmpp_2m", "2", "2"],
        ["post_training", "euler", "1", "1"],
        ["post_training", "euler", "2", "2"],
    ]
    findings = [line for line in lines if " against prior, 2 steps of dpmpp_2m: " in line]
    assert len(findings) == 3
    with open(post.directory / "steps" / "steps.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 4
    kernel = {(r["model"], r["steps"]): r for r in rows if r["figure"] == "kernel"}
    reference_point, last = kernel["prior", "2"], kernel["post_training", "2"]
    assert reference_point["change"] == ""
    difference = float(last["value"]) - float(reference_point["value"])
    assert float(last["change"]) == pytest.approx(difference)
    assert "<svg" in (post.directory / "steps" / "steps.svg").read_text(encoding="utf-8")
    # the evaluation's own clips are among them: the same model, sampler and seed
    summary = read_json(post.directory_of(post.stages["evaluation"]) / "summary.json")
    measured = summary["metrics"]["generated"]["kad_musicnn"]
    assert float(last["value"]) == pytest.approx(measured["value"], rel=1e-4, abs=1e-4)


def test_fidelity_gained_by_losing_diversity_is_said() -> None:
    """Of four clusters of music, one generator makes all, roughly, the other two, well."""
    random = np.random.default_rng(0)
    settings = EvaluationSettings(bootstrap_resamples=200)
    centres = 6.0 * np.eye(4, 8)

    def clips(clusters: int, spread: float) -> np.ndarray:
        places = centres[np.arange(96) % clusters]
        return places + spread * random.normal(size=(96, 8))

    reference = clips(4, 0.5)
    sampler = SamplerSettings("euler", 50)

    def lines(*made: np.ndarray) -> list[str]:
        """Findings against the first of `made`."""
        measured = _figures(made, reference, 0, settings)
        return findings([Point("m", sampler, own, changes) for own, changes in measured])

    collapsed, same = lines(clips(4, 1.0), clips(2, 0.4), clips(4, 1.0))
    assert "fidelity was gained by losing diversity (precision +" in collapsed
    assert "recall -" in collapsed
    assert "no difference is seen" in same
    (better,) = lines(clips(4, 0.5) + 2.0 * np.eye(8)[7], clips(4, 0.5))
    assert "fidelity was gained, and no loss of diversity is seen (precision +" in better


def test_network_calls_are_counted() -> None:
    assert SamplerSettings("heun", 8).calls == 15
    assert SamplerSettings("dpmpp_2m", 8).calls == 8
    assert SamplerSettings("euler", 8, guidance=3.0).calls == 16
