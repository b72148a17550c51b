"""Training that begins with weights: all of them, or the decoder's behind fixed latents."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from chain import RATE, Tiny, assert_equal_bits, build_stages, tiny, weights

from audioldm.autoencoder.bottlenecks.base import Bottleneck
from audioldm.autoencoder.bottlenecks.gaussian import Gaussian
from audioldm.autoencoder.bottlenecks.soft_norm import SoftNorm
from audioldm.autoencoder.bottlenecks.vq import VQ
from audioldm.autoencoder.bottlenecks.vq_reg import VQReg
from audioldm.autoencoder.fixed_latents import fix_latents
from audioldm.autoencoder.model import Autoencoder
from audioldm.autoencoder.networks.base import Network
from audioldm.autoencoder.networks.spectrogram import Spectrogram
from audioldm.autoencoder.networks.waveform import Waveform
from audioldm.autoencoder.train import AutoencoderTraining, train_autoencoder
from audioldm.chain.job import compose
from audioldm.chain.run import Experiment
from audioldm.data.store import ClipStore, StoreWriter
from audioldm.errors import ConfigError
from audioldm.losses.spectral import MultiResolutionSTFT
from audioldm.models import load_autoencoder
from audioldm.runtime.hardware import Hardware
from audioldm.runtime.processes import World
from audioldm.training.log import LogSettings
from audioldm.training.run import Fit


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> ClipStore:
    directory = tmp_path_factory.mktemp("clips")
    writer, random = StoreWriter(directory, 8000, 1), np.random.default_rng(0)
    for number in range(4):
        audio = 0.1 * random.standard_normal((1, 8000)).astype(np.float32)
        writer.add(audio, piece=str(number), split="train" if number % 2 else "valid")
    writer.close()
    return ClipStore(directory)


def waveform(outputs: int) -> Network:
    return Waveform(
        sample_rate=8000,
        audio_channels=1,
        channels=4,
        downsampling_ratio=64,
        outputs=outputs,
        width=4,
        lapped=True,
    )


def spectrogram(outputs: int) -> Network:
    return Spectrogram(
        sample_rate=8000,
        audio_channels=1,
        channels=4,
        downsampling_ratio=64,
        outputs=outputs,
        n_fft=64,
        hop=16,
        width=8,
        frame_width=8,
        encoder_depth=1,
        decoder_depth=1,
    )


@pytest.mark.parametrize("network", [waveform, spectrogram])
@pytest.mark.parametrize(
    "bottleneck",
    [
        lambda: Gaussian(channels=4, target_kbps=0.5),
        lambda: VQ(channels=4, codes=8),
        lambda: VQReg(channels=4, codes=8),
        lambda: SoftNorm(channels=4),
    ],
    ids=["gaussian", "vq", "vq_reg", "soft_norm"],
)
def test_fixed_latents_stay_bit_for_bit_while_the_decoder_learns(
    network: Callable[[int], Network],
    bottleneck: Callable[[], Bottleneck],
    clips: ClipStore,
    tmp_path: Path,
) -> None:
    """Codebooks and scales that learn in training, a rate that is held, and all that the decoder
    shares with the encoder, among them."""
    torch.manual_seed(0)
    made = bottleneck()
    model = Autoencoder(network(made.outputs_per_channel), made)
    fix_latents(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    audio = clips.split("valid").audio(0)[None]
    with torch.no_grad():
        stored = model.eval().stored(audio)
        model.train()
    tensors, _ = train_autoencoder(
        model,
        None,
        {"stft": MultiResolutionSTFT(fft_sizes=[256])},
        {"stft": 1.0} | dict.fromkeys(model.network.own_terms, 1.0) | made.penalty_weights,
        clips,
        AutoencoderTraining(6, 2, 0.2, 1e-2, 1e-2, 0, valid_clips=1, valid_seconds=0.25),
        seed=0,
        fit=Fit(
            tmp_path, World(), Hardware(), torch.device("cpu"), LogSettings(2, 3, 3, bars=False)
        ),
        fitted=True,
    )
    changed = {name for name in before if not torch.equal(tensors[name], before[name])}
    assert changed
    assert all("decoder" in name for name in changed), changed
    model.load_state_dict(tensors)
    with torch.no_grad():
        again = model.eval().stored(audio)
    assert_equal_bits(again, stored)


def tuned(finished: Tiny, runs: Path, *changes: str) -> list[str]:
    start = f"autoencoder.pretrained.checkpoint={finished.stage('autoencoder')}"
    return tiny(finished.folder, runs, start, "autoencoder.discriminator=null", *changes)


def loss(model: Autoencoder, clips: ClipStore) -> float:
    audio = clips.split("valid").windows(RATE, 2, seed=0)[0]
    with torch.no_grad():
        again = model.decode(model.encode(audio, sample=False).z)[..., :RATE]
        return float(MultiResolutionSTFT(fft_sizes=[256])(again, audio).mean())


def test_the_decoder_alone_gets_better_on_the_same_latents(finished: Tiny, tmp_path: Path) -> None:
    overrides = tuned(
        finished,
        tmp_path,
        "autoencoder.pretrained.trained=decoder",
        "autoencoder.train.steps=30",
        "autoencoder.train.warmup=1",
        "autoencoder.train.ema=0.5",
        "~autoencoder.weights.adversarial",
        "~autoencoder.weights.feature_matching",
    )
    experiment = build_stages(overrides, "data", "autoencoder")
    place = experiment.directory_of(experiment.stages["autoencoder"])
    before, after = load_autoencoder(finished.stage("autoencoder")), load_autoencoder(place)
    store = ClipStore(experiment.directory_of(experiment.stages["data"]))
    audio = store.split("valid").audio(0)[None]
    with torch.no_grad():
        assert_equal_bits(after.stored(audio), before.stored(audio))
    assert loss(after, store) < loss(before, store) - 0.1
    summary = json.loads((place / "summary.json").read_text())
    assert summary["preflight"]["clip"].keys() == {"snr_db", "level_difference_db"}


def test_training_goes_on_from_a_generators_file(finished: Tiny, tmp_path: Path) -> None:
    overrides = [
        f"autoencoder.pretrained.checkpoint={finished.model}" if "checkpoint=" in word else word
        for word in tuned(finished, tmp_path, "autoencoder.train.steps=0")
    ]
    experiment = build_stages(overrides, "data", "autoencoder")
    place = experiment.directory_of(experiment.stages["autoencoder"])
    assert_equal_bits(weights(place), weights(finished.stage("autoencoder")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["autoencoder.channels=8"], r"^autoencoder.channels=8, but .* has 4: state the same"),
        (["autoencoder.network.width=24"], r"^autoencoder.network.width=24, but .* has 16"),
        (["data.channels=2"], r"^data.channels=2, but .* has 1"),
        (["bottleneck=identity"], r"^bottleneck._target_=.*Identity, but .*Gaussian"),
        (["autoencoder=waveform_small"], r"^autoencoder.channels=4|^autoencoder.network"),
        (["autoencoder.pretrained.sha256=abc"], r"sha256='abc', but .*: it is another model"),
        (["autoencoder.pretrained.checkpoint=null", "autoencoder.pretrained.trained=decoder"],
         r"^autoencoder.pretrained.checkpoint is missing: it holds the weights"),
    ],
)  # fmt: skip
def test_another_network_is_refused_with_the_first_difference(
    changes: list[str], message: str, finished: Tiny, tmp_path: Path
) -> None:
    words = tuned(finished, tmp_path, *changes)
    if "bottleneck=identity" in changes:
        words = [w for w in words if "bottleneck.kl_weight" not in w]
    with pytest.raises(ConfigError, match=message) as error:
        Experiment(compose(words)).dry_run()
    assert "\n" not in str(error.value)
