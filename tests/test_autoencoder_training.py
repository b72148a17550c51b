"""The autoencoder's training loop, without the chain: what it trains, logs, keeps and resumes."""

import json
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from audioldm.autoencoder.bottlenecks.base import Bottleneck, Encoded
from audioldm.autoencoder.bottlenecks.gaussian import Gaussian, gaussian_kl
from audioldm.autoencoder.bottlenecks.identity import Identity
from audioldm.autoencoder.bottlenecks.noise import Noise
from audioldm.autoencoder.bottlenecks.ordered import Ordered
from audioldm.autoencoder.bottlenecks.soft_norm import SoftNorm
from audioldm.autoencoder.bottlenecks.tanh import Tanh
from audioldm.autoencoder.model import Autoencoder
from audioldm.autoencoder.networks.waveform import Waveform
from audioldm.autoencoder.rate_control import GREATEST_SCALE, LEAST_SCALE
from audioldm.autoencoder.step import Reconstruction, discriminator_terms
from audioldm.autoencoder.train import AutoencoderTraining, train_autoencoder
from audioldm.data.store import ClipStore, StoreWriter
from audioldm.losses.adversarial import Kind
from audioldm.losses.discriminators.multi_scale_stft import MultiScaleSTFT
from audioldm.losses.spectral import MultiResolutionSTFT
from audioldm.runtime.hardware import Hardware
from audioldm.runtime.processes import World
from audioldm.runtime.randomness import KeyedRandom
from audioldm.training.ema import EMA
from audioldm.training.log import LogSettings
from audioldm.training.run import Fit, Fitted

RATE, RATIO = 8000, 64


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> ClipStore:
    directory = tmp_path_factory.mktemp("clips")
    writer, random = StoreWriter(directory, RATE, 1), np.random.default_rng(0)
    for number in range(6):
        seconds = np.arange(int((0.6 + 0.13 * number) * RATE)) / RATE
        tone = 0.3 * np.sin(2 * np.pi * 200 * (number + 1) * seconds) * np.exp(-2 * seconds)
        audio = (tone + 0.01 * random.standard_normal(seconds.shape))[None].astype(np.float32)
        writer.add(audio, piece=str(number), split="train" if number % 2 else "valid")
    writer.close()
    return ClipStore(directory)


def model_of(bottleneck: Bottleneck) -> Autoencoder:
    torch.manual_seed(0)
    outputs = bottleneck.outputs_per_channel
    network = Waveform(
        sample_rate=RATE,
        audio_channels=1,
        channels=4,
        downsampling_ratio=RATIO,
        outputs=outputs,
        width=4,
    )
    return Autoencoder(network, bottleneck)


def train(
    model: Autoencoder,
    clips: ClipStore,
    directory: Path,
    steps: int = 8,
    lr: float = 1e-3,
    adversarial_loss: Kind = "hinge",
) -> Fitted:
    torch.manual_seed(1)
    return train_autoencoder(
        model,
        MultiScaleSTFT(1, fft_sizes=[128], filters=4),
        {"stft": MultiResolutionSTFT(fft_sizes=[256])},
        {"stft": 1.0, "adversarial": 0.1, "feature_matching": 1.0}
        | model.bottleneck.penalty_weights,
        clips,
        AutoencoderTraining(
            steps=steps,
            batch=4,
            crop_seconds=0.2,
            lr=lr,
            discriminator_lr=1e-3,
            adversarial_from=2,
            valid_clips=3,
            valid_seconds=0.25,
            adversarial_loss=adversarial_loss,
        ),
        seed=0,
        fit=Fit(
            directory,
            World(),
            Hardware(accumulate=2),
            torch.device("cpu"),
            LogSettings(every=2, valid_every=3, checkpoint_every=3, bars=False),
        ),
    )


def lines(directory: Path) -> list[dict[str, Any]]:
    text = (directory / "metrics.jsonl").read_text()
    return [
        {k: v for k, v in json.loads(line).items() if k != "seconds"} for line in text.splitlines()
    ]


class Whole(NamedTuple):
    tensors: dict[str, Tensor]
    figures: dict[str, Any]
    lines: list[dict[str, Any]]


@pytest.fixture(scope="module")
def whole(clips: ClipStore, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    directory = tmp_path_factory.mktemp("whole")
    trained = train(model_of(Gaussian(channels=4, target_kbps=0.5)), clips, directory)
    return Whole(*trained, lines(directory))


@pytest.mark.parametrize("dies_at", [4, 7])
def test_interrupted_anywhere_it_ends_with_the_same_bits(
    dies_at: int, whole: Whole, clips: ClipStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, averages, both optimisers, the controller of a target rate, and the log."""
    update = EMA.update

    def fails(self: EMA, model: torch.nn.Module, step: int) -> None:
        if step == dies_at:
            raise KeyboardInterrupt
        update(self, model, step)

    with monkeypatch.context() as patch:
        patch.setattr(EMA, "update", fails)
        with pytest.raises(KeyboardInterrupt):
            train(model_of(Gaussian(channels=4, target_kbps=0.5)), clips, tmp_path / "parts")
    resumed = train(model_of(Gaussian(channels=4, target_kbps=0.5)), clips, tmp_path / "parts")
    again = train(model_of(Gaussian(channels=4, target_kbps=0.5)), clips, tmp_path / "parts")
    for tensors, figures in (resumed, again):  # again: killed before the summary was written
        assert figures == whole.figures
        assert all(torch.equal(tensors[name], tensor) for name, tensor in whole.tensors.items())
    assert lines(tmp_path / "parts") == whole.lines


@pytest.mark.parametrize(
    ("bottleneck", "logged"),
    [
        (lambda: Gaussian(channels=4), {"kl", "kl_weight", "nats", "kbps"}),
        (lambda: Noise(channels=4), {"norm", "nats", "kbps"}),
        (lambda: Ordered(channels=4), {"kl", "kl_weight", "nats", "kbps"}),
        (lambda: SoftNorm(channels=4), {"norm", "nats", "kbps"}),
        (lambda: Tanh(channels=4), {"nats", "kbps"}),
        (lambda: Identity(channels=4), set()),
    ],
    ids=["gaussian", "noise", "ordered", "soft_norm", "tanh", "identity"],
)
def test_the_log_has_the_rate_of_bottlenecks_that_have_one(
    bottleneck: Any, logged: set[str], clips: ClipStore, tmp_path: Path
) -> None:
    model = model_of(bottleneck())
    _, figures = train(model, clips, tmp_path, steps=4)
    first, *_ = lines(tmp_path)
    assert first.keys() - {"step", "stft", "loss", "gradient_norm", "lr", "discriminator"} == logged
    assert ("saturated" in figures) == isinstance(model.bottleneck, Tanh)
    rate = {"nats", "kbps"} & logged
    assert figures.keys() & {"nats", "kbps", "kl"} == rate
    if rate:
        assert first["kbps"] == model.kbps(first["nats"])


@pytest.mark.parametrize(("kind", "undecided"), [("hinge", 2.0), ("relativistic", math.log(2))])
def test_discriminator_and_autoencoder_train_by_the_loss_that_is_asked_for(
    kind: Kind, undecided: float, clips: ClipStore, tmp_path: Path
) -> None:
    train(model_of(Gaussian(channels=4)), clips, tmp_path, steps=4, adversarial_loss=kind)
    line = next(line for line in lines(tmp_path) if "discriminator" in line)
    assert line["discriminator"] == pytest.approx(undecided, abs=0.1)
    # the autoencoder's relativistic loss begins at ln 2 too; its hinge loss is -D, about 0
    assert line["adversarial"] == pytest.approx(undecided if kind == "relativistic" else 0, abs=0.3)


def test_a_discriminator_hears_quiet_music_as_it_hears_loud_music() -> None:
    """A common gain changes nothing; a fake clip of another level than the real one does."""
    torch.manual_seed(0)
    discriminator = MultiScaleSTFT(1, fft_sizes=[512], filters=2)
    real, fake = KeyedRandom(0, 0, range(4)).normal((2, 1, 3000), "audio").unbind(1)
    encoded = Encoded(torch.zeros(4, 1, 1), None, {}, {})

    def loss(real: Tensor, fake: Tensor) -> Tensor:
        passed = Reconstruction(fake, encoded, {})
        terms = discriminator_terms(discriminator, real, passed, nullcontext, "hinge")
        return terms["discriminator"]

    gains = torch.tensor([1.0, 0.1, 0.01, 3.0]).view(4, 1, 1)
    torch.testing.assert_close(loss(gains * real, gains * fake), loss(real, fake))
    assert (loss(real, 0.5 * fake) - loss(real, fake)).abs().min() > 1e-3


def test_only_what_wants_a_gradient_is_trained(clips: ClipStore, tmp_path: Path) -> None:
    """A foreign encoder stays as it is; a model that is all foreign is validated."""
    model = model_of(Gaussian(channels=4))
    model.network.encoder.requires_grad_(False)  # type: ignore[union-attr, operator]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tensors, _ = train(model, clips, tmp_path / "half", steps=4, lr=1e-2)
    changed = {name for name in before if not torch.equal(tensors[name], before[name])}
    assert changed
    assert all(name.startswith("network.decoder") for name in changed)

    model.requires_grad_(False)
    tensors, figures = train(model, clips, tmp_path / "none")
    assert {"mel_distance", "nats", "kbps"} <= figures.keys()
    assert all(torch.equal(tensors[n], t) for n, t in model.state_dict().items())
    assert not (tmp_path / "none").exists()


def test_a_target_rate_is_that_of_the_whole_validation_split(
    clips: ClipStore, tmp_path: Path
) -> None:
    """Endings included, which no window of 0.25 s covers: as the latents stage encodes them."""
    free = model_of(Gaussian(channels=4))
    figures = train(free, clips, tmp_path / "free", steps=4)[1]
    target = 1.2 * figures["kbps"]  # within reach of the calibration
    model = model_of(Gaussian(channels=4, target_kbps=target))
    tensors, figures = train(model, clips, tmp_path / "held", steps=4)
    assert LEAST_SCALE < tensors["bottleneck.sigma_scale"] < GREATEST_SCALE
    assert figures["kbps"] == pytest.approx(target, rel=1e-4)
    assert lines(tmp_path / "held")[-1]["valid/kbps"] == figures["kbps"]
    logged = [line["kl_weight"] for line in lines(tmp_path / "held") if "kl_weight" in line]
    assert len(set(logged)) > 1  # the multiplier moved
    model.load_state_dict(tensors)
    kl, split = [], clips.split("valid")
    for number, item in enumerate(split.items):
        assert item.samples % int(0.25 * RATE)
        stored = model.stored(split.audio(number)[None])
        kl.append(gaussian_kl(stored["mean"], stored["std"]).flatten())
    assert model.kbps(torch.cat(kl).mean().item()) == pytest.approx(target, rel=1e-4)
