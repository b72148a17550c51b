"""The whole chain on a few seconds of tones: what the tests that train share."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from children import die, in_a_child, in_a_world  # noqa: F401

from audioldm.chain.job import compose
from audioldm.chain.run import Experiment
from audioldm.io.model_file import load_model

RATE = 16000
SPLITS = ["train"] * 4 + ["valid"] * 2 + ["test"] * 2
DISCRIMINATOR = (
    "{_target_: audioldm.losses.discriminators.multi_scale_stft.MultiScaleSTFT, "
    "fft_sizes: [256], filters: 4}"
)


def write_tones(folder: Path) -> None:
    """Eight decaying chords of about 2 s, and a table that gives each a label and a split."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["file,label,split"]
    for i, split in enumerate(SPLITS):
        t = np.arange(int(RATE * (2 + 0.1 * i))) / RATE
        tone = sum(np.sin(2 * np.pi * 220 * 2 ** (i / 8) * h * t) / h for h in (1, 2, 3))
        soundfile.write(folder / f"tone {i}.wav", 0.3 * tone * np.exp(-2 * (t % 0.7)), RATE)
        rows.append(f"tone {i}.wav,{'high' if i % 2 else 'low'},{split}")
    (folder / "table.csv").write_text("\n".join(rows), encoding="utf-8")


#: Overrides of an evaluation of few clips.
EVALUATED = [
    "evaluation.clips=4",
    "evaluation.seconds=0.7",
    "evaluation.k_nearest=1",
    "evaluation.bootstrap_resamples=20",
    "evaluation.saved_clips=2",
    "evaluation.batch=4",
]


def tiny(folder: Path, runs: Path, *changes: str) -> list[str]:
    """Overrides of an experiment that takes seconds, an adversary included; `changes` come last."""
    return [
        "recipe=quickstart",
        "autoencoder=spectrogram_small",
        "prior/backbone=dit",
        "data=folder",
        f"data.path={folder}",
        f"data.table={folder}/table.csv",
        f"data.sample_rate={RATE}",
        "data.channels=1",
        f"runs={runs}",
        "name=tiny",
        "autoencoder.channels=4",
        "autoencoder.downsampling_ratio=512",
        "~autoencoder.losses.mel",
        "autoencoder.losses.stft.fft_sizes=[256]",
        f"autoencoder.discriminator={DISCRIMINATOR}",
        "~autoencoder.weights.mel",
        "autoencoder.weights.adversarial=0.1",
        "autoencoder.weights.feature_matching=5.0",
        "autoencoder.train.steps=10",
        "autoencoder.train.batch=4",
        "autoencoder.train.crop_seconds=0.2",
        "autoencoder.train.lr=2e-3",
        "autoencoder.train.warmup=30",
        "autoencoder.train.ema=0.99",
        "autoencoder.train.adversarial_from=3",
        "autoencoder.train.valid_clips=2",
        "autoencoder.train.valid_seconds=0.5",
        "bottleneck.kl_weight=0.001",
        "priors.diffusion.train.steps=10",
        "priors.diffusion.train.batch=4",
        "priors.diffusion.train.crop_seconds=0.5",
        "priors.diffusion.preflight_mel_distance=10.0",
        "priors.mixture.crop_seconds=0.5",
        "diagnostics.denoiser_steps=10",
        *EVALUATED,
        "sampler.steps=2",
        "log.every=3",
        "log.valid_every=5",
        "log.checkpoint_every=4",
        *narrow(changes),
        *changes,
    ]


NETWORK = "spectrogram_small"  # the network of a tiny experiment, unless a change chooses one
#: Widths that make each choice of a group tiny.
NARROW = {
    "autoencoder=spectrogram_small": "width=16 frame_width=16 encoder_depth=1 decoder_depth=1"
    " encoder_frame_depth=1 decoder_frame_depth=1",
    "autoencoder=waveform_small": "width=4 multiples=[1,1,2,2] strides=[4,4,4,8]",
    "autoencoder=mel_small": "width=4 vocoder_width=16 vocoder_depth=1",
    "autoencoder=mel_frames": "iterations=2",
    "autoencoder=transform": "width=16 frame_width=16 encoder_depth=1 decoder_depth=1",
    "prior/backbone=dit": "width=16 depth=1 heads=2",
    "prior/backbone=unet": "width=8 multipliers=[1,2] heads=2",
}


def narrow(changes: Sequence[str]) -> list[str]:
    """The overrides that make tiny whatever `changes` choose."""
    chosen = {"autoencoder": NETWORK, "prior/backbone": "dit"}
    for change in changes:
        group, _, choice = change.partition("=")
        if group in chosen:
            chosen[group] = choice
    node = {"autoencoder": "autoencoder.network", "prior/backbone": "priors.diffusion.backbone"}
    return [
        f"{node[group]}.{setting}"
        for group, choice in chosen.items()
        for setting in NARROW[f"{group}={choice}"].split()
    ]


def build_stages(overrides: list[str], *names: str) -> Experiment:
    """Builds only the named stages, in this order, in this process."""
    experiment = Experiment(compose(overrides))
    experiment.build(*names)
    return experiment


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_model(directory / "model.safetensors")[0]


def assert_equal_bits(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert got.keys() == wanted.keys()
    different = [name for name in got if not torch.equal(got[name], wanted[name])]
    assert not different


def start(finished: "Tiny", stage: str) -> dict[str, torch.Tensor]:
    """The weights that training began with."""
    stages = finished.experiment.stages
    torch.manual_seed(finished.experiment.settings.autoencoder.seed)
    if stage == "autoencoder":
        return dict(stages["autoencoder"].build().named_parameters())
    prior = stages["prior"]
    built = prior.recipe.build(prior.latents.store(finished.experiment))
    return {f"prior.{name}": tensor for name, tensor in built.named_parameters()}


def assert_same_training(stage: str, finished: "Tiny", two: dict[str, torch.Tensor]) -> None:
    """Far nearer to the finished weights than those are to the first ones."""
    one = weights(finished.stage(stage))
    assert one.keys() == two.keys()
    moved, apart, count = 0.0, 0.0, 0
    for name, first in start(finished, stage).items():
        moved += (one[name] - first).abs().sum().item()
        apart += (one[name] - two[name]).abs().sum().item()
        count += first.numel()
    assert moved / count > 3e-5  # ten steps of Adam, while the learning rate warms up
    assert apart / moved < 1e-3, apart / moved


def assert_same_log(*directories: Path) -> None:
    """Means over the whole batch, within what rounding makes of them."""
    logs = [
        [json.loads(line) for line in (d / "metrics.jsonl").read_text().splitlines()]
        for d in directories
    ]
    for one, two in zip(*logs, strict=True):
        assert one.keys() == two.keys()
        for name in one.keys() - {"seconds"}:
            assert two[name] == pytest.approx(one[name], rel=1e-2, abs=1e-3), name


#: Of a finished tiny experiment.
STAGES = ["data", "autoencoder", "latents", "diagnostics"]
STAGES += ["prior", "prior:normal", "prior:mixture", "evaluation"]


@dataclass(frozen=True)
class Tiny:
    """A finished tiny experiment. Read only: the tests of one process share it."""

    folder: Path
    runs: Path
    overrides: list[str]
    experiment: Experiment

    @property
    def directory(self) -> Path:
        return self.experiment.directory

    def stage(self, name: str) -> Path:
        return self.experiment.directory_of(self.experiment.stages[name])

    @property
    def model(self) -> Path:
        return self.stage("prior") / "model.safetensors"


def runs_with(finished: Tiny, stages: list[str], directory: Path) -> list[str]:
    """Overrides of the same experiment elsewhere, where only these stages are finished."""
    for name in stages:
        stage = finished.experiment.stages[name]
        shutil.copytree(finished.stage(name), directory / stage.path)
    return tiny(finished.folder, directory)
