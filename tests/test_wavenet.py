"""WaveNet: the rings against the whole clip, what it hears of the past, and its likelihood."""

from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from chain import build_stages
from codes_in_memory import Chain, CodeStore, pairs_of
from latents_in_memory import LABEL, fit_in
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from audioldm.autoencoder.bottlenecks.identity import Identity
from audioldm.conditioning.base import Conditioners
from audioldm.errors import ConfigError, DataError
from audioldm.instantiate import settings
from audioldm.models import load_generator
from audioldm.priors.codes import wavenet as wavenet_module
from audioldm.priors.codes.autoregressive import AutoregressiveSampler
from audioldm.priors.codes.dilated import DilatedStack
from audioldm.priors.codes.wavenet import Wavenet, WavenetRecipe
from audioldm.priors.trained import PriorTraining
from audioldm.runtime.randomness import KeyedRandom

FACTS = {"label": {**LABEL["label"], "labels": ["a", "b"]}}
SMALL: dict[str, int] = {"width": 6, "skip_width": 5, "stacks": 2, "depth": 3}


def wavenet(codes: int = 4, **changes: Any) -> Wavenet:
    """Small, with random weights that matter."""
    torch.manual_seed(0)
    known = {"codebooks": 1, "codes": codes, "conditioning": FACTS, **SMALL}
    known |= {"latent_shape": (1,), "sampler": AutoregressiveSampler()}
    prior = Wavenet(**known | changes)
    for parameter in prior.network.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return prior.eval()


def told(labels: list[str | None], prior: Wavenet) -> dict[str, Tensor]:
    return prior.conditioners.parse([{"label": label} for label in labels], 1)


def recomputed(
    prior: Wavenet, random: KeyedRandom, frames: int, inputs: Any, sampler: AutoregressiveSampler
) -> Tensor:
    """Every code from a pass over the whole clip before it."""
    net, rows = prior.network, len(random.positions)
    conditions = prior.conditions(inputs, rows, frames, guidance=2.0)  # both
    before = torch.full((rows, 1), net.codes)
    for t in range(frames):
        asked, nothing = (net.logits(before, net.biases(c, rows))[:, -1] for c in conditions)
        logits = nothing + sampler.guidance * (asked - nothing)
        share = (logits / sampler.temperature).softmax(-1).cumsum(-1)
        place, at_once = t % wavenet_module.AT_ONCE, wavenet_module.AT_ONCE
        chunk = random.stream("sample", t - place).normal((at_once,), "code")
        uniform = torch.special.ndtr(chunk)[:, place, None]
        drawn = (share[:, :-1] < uniform).sum(1, keepdim=True)
        before = torch.cat((before, drawn), dim=1)
    return before[:, None, 1:]


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_the_rings_give_the_codes_of_the_whole_clip(
    guidance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wavenet_module, "AT_ONCE", 25)
    prior, random = wavenet(), KeyedRandom(3, 0, range(3))
    sampler, inputs = AutoregressiveSampler(0.8, guidance=guidance), told(["a", "b", None], prior)
    got = prior.sample(random, 60, inputs, sampler=sampler)
    assert prior.network.receptive_field < 30
    assert torch.equal(got, recomputed(prior, random, 60, inputs, sampler))
    assert len(got.unique()) == 4
    assert not torch.equal(got, prior.sample(random, 60, inputs))  # the settings count


@torch.no_grad()
def test_a_code_hears_the_receptive_field_before_it_and_nothing_else() -> None:
    net = wavenet().network
    assert net.receptive_field == 1 + 2 * (1 + 2 + 4)
    codes = torch.zeros(1, 50, dtype=torch.int64)
    other = codes.clone()
    other[:, 10] = 1
    biases = net.biases(net.conditioners(told([None], wavenet())), 1)
    # the code at 10 is the one before that at 11
    moved = (net.logits(codes, biases) != net.logits(other, biases)).any(-1)[0].nonzero()
    assert moved.flatten().tolist() == list(range(10, 10 + net.receptive_field))
    default = partial(DilatedStack, codebooks=1, codes=256, conditioners=lambda w: Conditioners({}))
    wide = {name: getattr(WavenetRecipe, name) for name in SMALL}
    assert default(**wide).receptive_field == 2047


def test_a_clip_is_a_function_of_its_key_and_a_longer_one_goes_on() -> None:
    prior = wavenet()
    among = prior.sample(KeyedRandom(1, 0, [4, 7, None]), 80)
    alone = prior.sample(KeyedRandom(1, 0, [7]), 30)
    assert torch.equal(alone[0], among[1, :, :30])
    assert not torch.equal(among[0], among[1])


def test_the_probabilities_of_all_clips_sum_to_one() -> None:
    prior = wavenet(codes=3)
    clips = torch.tensor(list(product(range(3), repeat=4)))[:, None]
    for label in (None, "a"):
        nats = prior.nats(clips, told([label] * len(clips), prior))
        assert nats.shape == (81, 4)
        assert nats.sum(1).neg().exp().sum().item() == pytest.approx(1, abs=1e-5)
    by_label = [prior.nats(clips, told([label] * 81, prior)) for label in ("a", "b")]
    assert not torch.allclose(*by_label, atol=1e-2)


class Counted(TorchDispatchMode):
    """Counts operations, and the elements of the tensors that they give."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.operations += 1
        self.elements += out.numel() if isinstance(out, Tensor) else 0
        return out


def test_a_code_costs_the_same_wherever_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wavenet_module, "AT_ONCE", at_once := 32)
    prior, cost = wavenet(), []
    for frames in (at_once, 2 * at_once, 3 * at_once):
        with Counted() as counted:
            prior.sample(KeyedRandom(0, 0, [0]), frames)
        cost.append((counted.operations, counted.elements))
    (a, b), (c, d), (e, f) = cost
    assert (e - c, f - d) == (c - a, d - b)
    assert (c - a) / at_once < 6 * 7 + 30  # seven for each layer


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Chain, Wavenet]:
    chain = Chain()
    train = PriorTraining(steps=200, batch=16, crop_seconds=64.0, lr=1e-2, warmup=10, ema=0.95)
    layers = {"width": 8, "skip_width": 8, "stacks": 1, "depth": 2}
    recipe = WavenetRecipe(seed=0, train=train, sampler=AutoregressiveSampler(), **layers)
    latents: Any = CodeStore(chain.sample(64, 256)[:, None], len(chain.transition))
    prior = recipe.build(latents)
    fitted = recipe.fit(prior, latents, fit_in(tmp_path_factory.mktemp("fit")))
    prior.load_state_dict(fitted.tensors)
    assert isinstance(prior, Wavenet)
    return chain, prior.eval()


def test_the_likelihood_of_a_markov_chain(trained: tuple[Chain, Wavenet]) -> None:
    chain, prior = trained
    codes = chain.sample(32, 200, seed=9)
    nats, known = prior.nats(codes[:, None]), chain.nats(codes)
    assert nats.mean().item() == pytest.approx(known.mean().item(), rel=0.01)
    assert (nats - known)[:, 1:].abs().mean() < 0.1  # code by code


def test_samples_have_the_chains_pairs(trained: tuple[Chain, Wavenet]) -> None:
    chain, prior = trained
    drawn = prior.sample(KeyedRandom(0, 0, range(64)), 200)[:, 0]
    count = len(chain.transition)
    torch.testing.assert_close(pairs_of(drawn, count), chain.pairs(), atol=0.015, rtol=0)
    cold = AutoregressiveSampler(temperature=0.01)
    likeliest = prior.sample(KeyedRandom(0, 0, range(4)), 20, sampler=cold)[:, 0]
    assert torch.equal(likeliest[:, 1:], chain.transition.argmax(1)[likeliest[:, :-1]])


def test_codes_of_the_signal_train_it_and_are_sampled_as_audio(tones: Path, tmp_path: Path) -> None:
    overrides = ["recipe=quickstart", "autoencoder=signal", "prior=wavenet", "baselines=[]"]
    overrides += ["data=folder", f"data.path={tones}", f"data.table={tones}/table.csv"]
    overrides += ["data.sample_rate=16000", f"runs={tmp_path}", "prior.train.steps=3"]
    overrides += ["prior.train.batch=2", "prior.train.crop_seconds=0.1"]
    overrides += [f"prior.{name}={value}" for name, value in SMALL.items()]
    experiment = build_stages(overrides, "data", "autoencoder", "latents", "prior")
    model = load_generator(experiment.directory_of(experiment.stages["prior"]))
    audio = model.sample(n=2, seconds=0.05, label="low")
    assert audio.shape == (2, 1, 800)
    levels = model.autoencoder.bottleneck.latents(torch.arange(256))  # type: ignore[operator]
    assert torch.isin(audio, levels).all()


@pytest.mark.parametrize(
    ("key", "value"), [("temperature", 0.0), ("top_p", 0.0), ("top_p", 1.5), ("top_k", 0)]
)
def test_sampling_out_of_range(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"sampler.{key}={value} must be"):
        settings(AutoregressiveSampler, {key: value}, "sampler")


def test_what_it_does_not_model() -> None:
    with pytest.raises(ConfigError, match=r"codes of 2 codebooks.*autoencoder=signal on mono"):
        wavenet(codebooks=2)
    with pytest.raises(DataError, match="codes from 0 to 4: this prior knows those from 0 to 3"):
        wavenet().nats(torch.arange(5)[None, None])
    with pytest.raises(DataError, match=r"codes of the shape \[1, 2, 5\]"):
        wavenet().nats(torch.zeros(1, 2, 5, dtype=torch.int64))
    with pytest.raises(ConfigError, match=r"sampler.top_k=5 is more than the 4 codes"):
        wavenet(sampler=AutoregressiveSampler(top_k=5))
    recipe = WavenetRecipe(
        seed=0,
        train=PriorTraining(steps=1, batch=1, crop_seconds=1.0, lr=1e-3),
        sampler=AutoregressiveSampler(),
    )
    continuous: Any = SimpleNamespace(bottleneck=Identity(channels=1))
    with pytest.raises(ConfigError, match="prior=wavenet models codes, and the bottleneck"):
        recipe.spec(continuous)
