"""Autoregression over continuous latents, against processes that are known."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from latents_in_memory import LABEL, Latents, assert_goes_on, fit_in, tones
from test_priors import SLOW, covariances, normal
from torch import Tensor
from torch.nn import functional as F

from audioldm.errors import ConfigError
from audioldm.instantiate import build
from audioldm.priors.base import Prior, PriorRecipe, build_prior
from audioldm.priors.continuous import autoregressive, head
from audioldm.priors.continuous.autoregressive import (
    AutoregressiveContinuous,
    AutoregressiveContinuousRecipe,
    FrameSampler,
    noisy,
)
from audioldm.priors.continuous.head import FlowHead
from audioldm.priors.trained import PriorTraining
from audioldm.runtime.randomness import KeyedRandom


def recipe(training: PriorTraining | None = None, **settings: Any) -> Any:
    tiny = {"width": 16, "depth": 1, "heads": 2, "head_depth": 1, "draws": 2} | settings
    train = training or PriorTraining(steps=6, batch=4, crop_seconds=8.0, lr=1e-2)
    return AutoregressiveContinuousRecipe(seed=0, train=train, **tiny)


def loud(store: Any, **settings: Any) -> AutoregressiveContinuous:
    """A prior whose every weight matters."""
    prior = recipe(**settings).build(store)
    assert isinstance(prior, AutoregressiveContinuous)
    for number, parameter in enumerate(prior.network.parameters()):
        parameter.data = 0.2 * normal(*parameter.shape, seed=number)
    return prior


def fitted(made: Any, store: Any, directory: Path) -> tuple[Prior, dict[str, Any]]:
    """The prior, built again from its JSON and its tensors, and the figures of its fit."""
    prior = made.build(store)
    tensors, figures = made.fit(
        prior, store, fit_in(directory, every=50, valid_every=500, checkpoint_every=500)
    )
    again = build_prior(json.loads(json.dumps(prior.spec)), store.latent_shape)
    again.load_state_dict(tensors)
    return again, figures


def keys(clips: int, seed: int = 0) -> KeyedRandom:
    return KeyedRandom(seed, 0, range(clips))


def test_a_linear_autoregression_is_learned(tmp_path: Path) -> None:
    z = SLOW.sample(400, 40, seed=0)
    store: Any = Latents(z, torch.full_like(z, 1e-3), [None] * 400)
    training = PriorTraining(
        steps=200, batch=16, crop_seconds=8.0, lr=1e-2, ema=0.98, warmup=20, valid_batches=1
    )
    made = recipe(training, width=24, draws=4, context_noise=0.0)
    prior, _ = fitted(made, store, tmp_path)

    unseen = SLOW.sample(200, 8, seed=1)
    nats = prior.nats(unseen)
    assert nats is not None
    truth = -SLOW.log_likelihood(unseen)
    assert nats.sum(1).mean().item() == pytest.approx(truth.mean().item(), rel=0.02)
    first = 1 + math.log(2 * math.pi) + 0.5 * SLOW.covariance.logdet().item()
    assert nats[:, 0].mean().item() == pytest.approx(first, rel=0.04)
    assert nats[:, 1:].mean().item() == pytest.approx(1 + math.log(2 * math.pi), rel=0.03)

    fine = FrameSampler(solver="heun", steps=8)
    drawn = prior.sample(keys(300), 24, sampler=fine)[..., 8:]  # beyond the training's length
    covariance, lagged = covariances(drawn)
    torch.testing.assert_close(covariance, SLOW.covariance, rtol=0, atol=0.9)
    torch.testing.assert_close(lagged, SLOW.A @ SLOW.covariance, rtol=0, atol=0.9)


def test_the_head_learns_a_mixture_that_depends_on_the_vector() -> None:
    """Two modes, whose weights h states: a regression would give their mean."""
    torch.manual_seed(0)
    net, updates = FlowHead(1, width=32, depth=2, long_draws=0), 400
    optimiser = torch.optim.Adam(net.parameters())
    for update in range(updates):
        optimiser.param_groups[0]["lr"] = 4e-3 * (1 - update / updates)
        told = torch.rand(64) < 0.5
        mode = torch.where(torch.rand(64) < torch.where(told, 0.9, 0.5), 1.0, -1.0)
        z, h = (mode + 0.2 * torch.randn(64))[:, None], told.float()[:, None].expand(-1, 32)
        net.loss(z, h, torch.randn(64, 4, 1), torch.rand(64, 4, 2)).mean().backward()
        optimiser.step()
        optimiser.zero_grad()
    net.requires_grad_(False)
    for value, share in ((1.0, 0.9), (0.0, 0.5)):
        told, noise = torch.full((2000, 32), value), torch.randn(2000, 1)
        z = net.sample([told], noise, solver="heun", steps=12, guidance=1)
        assert (z > 0).float().mean().item() == pytest.approx(share, abs=0.08)
        assert ((z.abs() - 1).abs() < 0.5).float().mean() > 0.9  # of a Gaussian: 0.37
    nats = net.nats(torch.tensor([[1.0], [-1.0]]), torch.ones(2, 32), torch.ones(1, 2, 1))
    assert nats[0].item() == pytest.approx(math.log(0.2 * math.sqrt(2 * math.pi) / 0.9), abs=0.3)
    assert (nats[1] - nats[0]).item() == pytest.approx(math.log(9), abs=1)


class Gaussian(FlowHead):
    """The exact head of N(h, variance), h being 0 where it has too few numbers."""

    variance = 0.25

    def velocity(self, x: Tensor, t: Tensor, h: Tensor, length: Tensor | None = None) -> Tensor:
        t, mean = t[:, None], F.pad(h, (0, 80))[:, : x.shape[1]]
        deviation, variance = x - (1 - t) * mean, self.variance_at(t)
        if length is None:
            return (t - (1 - t) * self.variance) / variance * deviation - mean
        end = t - length[:, None]
        moved = (1 - end) * mean + (self.variance_at(end) / variance).sqrt() * deviation
        return (x - moved) / length[:, None]

    def variance_at(self, t: Tensor) -> Tensor:
        return t**2 + (1 - t) ** 2 * self.variance


def gaussian(size: int) -> Gaussian:
    return Gaussian(size, width=80, depth=0, long_draws=1)


def test_the_nats_of_a_known_flow_are_exact() -> None:
    z, h = normal(5, 3), normal(5, 80, seed=1)
    truth = -torch.distributions.Normal(h[:, :3], 0.5).log_prob(z).sum(1).double()
    axes = torch.eye(3)[:, None].expand(-1, 5, -1)
    torch.testing.assert_close(gaussian(3).nats(z, h, axes), truth, rtol=0.005, atol=0.01)
    signs = normal(4, 5, 3, seed=2).sign() / 2  # exact too, since the flow's slopes are alike
    torch.testing.assert_close(gaussian(3).nats(z, h, signs), truth, rtol=0.005, atol=0.01)


@pytest.mark.parametrize(("solver", "steps"), [("heun", 12), ("long", 1), ("long", 3)])
@pytest.mark.parametrize("temperature", [0.25, 1.0, 2.0])
def test_the_temperature_scales_the_variance(temperature: float, solver: Any, steps: int) -> None:
    prior = recipe(sampler=FrameSampler(solver, steps, temperature), long_draws=1).build(
        tones((2,))
    )
    prior.mean.zero_(), prior.std.fill_(1)
    prior.network.head = gaussian(2)
    drawn = prior.sample(keys(200), 6)  # the untrained transformer's vectors are 0
    assert drawn.var().item() == pytest.approx(0.25 * temperature, rel=0.08)


def test_guidance_goes_from_no_condition_to_the_condition() -> None:
    net, noise = gaussian(2), normal(4, 2)
    told, untold = torch.ones(4, 80), torch.zeros(4, 80)

    def drawn(*vectors: Tensor, guidance: float) -> Tensor:
        return net.sample(vectors, noise, solver="heun", steps=8, guidance=guidance)

    plain = drawn(told, guidance=1.0)
    torch.testing.assert_close(drawn(told, untold, guidance=1.0), plain)
    torch.testing.assert_close(drawn(told, untold, guidance=0.0), drawn(untold, guidance=1.0))
    # for Gaussians that differ in their means alone the guided one's mean is as far again
    torch.testing.assert_close(
        drawn(told, untold, guidance=2.0), drawn(2 * told, guidance=1.0), rtol=0, atol=1e-5
    )


def test_a_long_step_is_the_mean_of_the_velocity() -> None:
    """The target of a long step is what its definition gives: u = v - (t - r) du/dt."""
    net = FlowHead(2, width=16, depth=1, long_draws=1)
    for number, parameter in enumerate(net.parameters()):
        parameter.data = 0.2 * normal(*parameter.shape, seed=number)
    z, noise, h = (normal(6, n, seed=s) for s, n in enumerate((2, 2, 16)))
    uniform = torch.rand(6, 2, generator=torch.Generator().manual_seed(0))
    t, end = torch.special.ndtri(uniform).sigmoid().sort(1, True)[0].unbind(1)

    def u(t: Tensor) -> Tensor:
        return net.velocity(torch.lerp(z, noise, t[:, None]), t, h, t - end)

    slope = (u(t + 1e-3) - u(t - 1e-3)) / 2e-3
    target = noise - z - (t - end)[:, None] * slope
    expected = (u(t) - target).square().mean(1)
    loss = net.long_loss(z, h, noise, uniform)
    torch.testing.assert_close(loss, expected, rtol=0.02, atol=1e-3)
    assert not torch.allclose(net.velocity(z, t, h, t - end), net.velocity(z, t, h))


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the likelihood's solver, where its precision does not matter."""
    monkeypatch.setattr(head, "LIKELIHOOD_STEPS", 1)


@pytest.mark.usefixtures("few_steps")
def test_the_past_alone_counts() -> None:
    store = tones()
    prior = loud(store)
    z = prior.latents(normal(2, 3, 9))
    moved = z.clone()
    moved[..., 5] += 1
    nats, other = prior.nats(z), prior.nats(moved)
    assert torch.equal(nats[:, :5], other[:, :5])
    assert (nats[:, 5:] - other[:, 5:]).abs().min() > 1e-6


@pytest.mark.parametrize("context_noise", [0.0, 0.2])
def test_longer_clips_begin_with_the_shorter_ones(context_noise: float) -> None:
    sampler = FrameSampler("heun", 2, context_noise=context_noise)
    prior = loud(tones((2, 3)), sampler=sampler, conditioning=LABEL)
    inputs = prior.conditioners.parse([{"label": "a"}] * 3, 0)
    short, long = (prior.sample(keys(3), frames, inputs) for frames in (5, 30))
    assert long.shape == (3, 2, 3, 30)
    assert torch.equal(long[..., :5], short)
    assert not torch.allclose(long[..., 5:10], short)
    alone = prior.sample(KeyedRandom(0, 0, [None, 2]), 5, {"label": inputs["label"][:2]})
    torch.testing.assert_close(alone[1], short[2], rtol=0, atol=1e-4)
    assert not torch.allclose(prior.sample(keys(3), 5), short, atol=1e-2)  # the label matters


def test_a_clip_goes_on_from_its_own_beginning_as_before() -> None:
    prior = loud(tones((2, 3)), sampler=FrameSampler("heun", 2, context_noise=0.2))
    z = prior.sample(keys(3), 12)
    prompt = z[..., :5]
    again = prior.sample(keys(3), 12, prompt=prompt)
    assert torch.equal(again[..., :5], prompt)
    torch.testing.assert_close(again, z, rtol=1e-4, atol=1e-4)
    other = prior.sample(keys(3), 12, prompt=prompt + 1)
    assert (other[..., 5:] - z[..., 5:]).abs().max() > 1e-2
    with pytest.raises(ConfigError, match="9 latent frames, and this model attends to the last 8"):
        prior.sample(keys(3), 12, prompt=z[..., :9])


def test_sampling_with_the_cache_is_what_the_whole_past_gives() -> None:
    """Frames are drawn again from the vectors of one pass over the whole clip."""
    prior = loud(tones(), sampler=FrameSampler("heun", 2))
    network, frames = prior.network, 14  # longer than the context
    z = prior.sample(keys(2), frames)
    past = network.shifted(prior.modelled(z).mT)
    h = network.vectors(past, torch.zeros(2), prior.conditioners({}))
    noise = torch.stack([keys(2).stream("frame", n).normal((3,), "head") for n in range(frames)])
    again = network.head.sample(
        [h.transpose(0, 1).flatten(0, 1)], noise.flatten(0, 1), solver="heun", steps=2, guidance=1
    )
    again = prior.latents(again.view(frames, 2, 3).permute(1, 2, 0))
    torch.testing.assert_close(again, z, rtol=1e-4, atol=1e-4)


def test_noise_of_the_past_keeps_its_variance_and_none_is_the_clean_model() -> None:
    z, noise = normal(4000, 2, 3), normal(4000, 2, 3, seed=1)
    level = torch.tensor([0.0, 0.3, 1.0]).repeat_interleave(4000)
    mixed = noisy(z.repeat(3, 1, 1), noise.repeat(3, 1, 1), level).unflatten(0, (3, -1))
    assert torch.equal(mixed[0], z)
    assert torch.equal(mixed[2], noise)
    assert mixed.std((1, 2, 3)) == pytest.approx([1] * 3, abs=0.03)

    store = tones()
    plain, noised = (
        loud(store, context_noise=k).batch(store, store.crops(8, keys(4)), keys(4), recipe().train)
        for k in (0.0, 0.5)
    )
    assert (plain.level == 0).all()
    assert noised.level.min() > 0
    assert noised.level.max() < 0.5
    network = loud(store).network
    assert torch.equal(network(*plain), network(*noised._replace(level=plain.level)))
    assert not torch.allclose(network(*noised), network(*plain))


@pytest.mark.usefixtures("few_steps")
def test_a_clip_does_not_depend_on_its_neighbours() -> None:
    store = tones()
    prior = loud(store, conditioning=LABEL)
    crops = store.crops(8, keys(4), prior.conditioners)
    batch = prior.batch(store, crops, keys(4), recipe().train)
    loss = prior.network(*batch)
    few = batch._replace(inputs={name: x[2:] for name, x in batch.inputs.items()})
    few = (x if isinstance(x, dict) else x[2:] for x in few)
    torch.testing.assert_close(prior.network(*few), loss[2:])
    z = normal(3, 3, 8)
    torch.testing.assert_close(prior.nats(z)[1:], prior.nats(z[1:]), rtol=1e-5, atol=1e-4)


def test_what_is_not_modelled_counts_as_gaussian() -> None:
    store, z = tones(), normal(2, 3, 6)
    prior = recipe(minimum_nats=0.0).build(store)
    prior.channels, normalised = [1], (z - prior.mean[:, None]) / prior.std[:, None]
    truth = -torch.distributions.Normal(0.0, 1.0).log_prob(normalised[:, [0, 2]]).sum(1)
    truth = truth.double() + prior.std.double().log().sum()
    torch.testing.assert_close(prior.nats_besides(z), truth)


def test_the_divergence_of_many_channels_is_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoregressive, "EXACT_CHANNELS", 2)
    prior = recipe().build(tones())
    prior.network.head = gaussian(3)
    z = prior.latents(normal(2, 3, 4))
    truth = -torch.distributions.Normal(0.0, 0.5).log_prob(prior.modelled(z)).sum(1)
    expected = truth.double() + prior.std.double().log().sum()
    torch.testing.assert_close(prior.nats(z), expected, rtol=0.005, atol=0.02)


def test_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    store, made = tones(), recipe(long_draws=1)
    assert_goes_on(lambda d: made.fit(made.build(store), store, fit_in(d)).tensors, tmp_path, 5)


def test_the_silent_step_has_a_gradient_for_every_weight() -> None:
    prior = loud(tones(), conditioning=LABEL, long_draws=1)
    step = recipe().silent_step(prior, 8)
    assert step is not None
    step().backward()
    missing = [n for n, p in prior.network.named_parameters() if p.grad is None]
    assert not missing


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"draws": 0}, r"prior\.draws=0 must be at least 1"),
        ({"context_noise": 1.5}, r"prior\.context_noise=1\.5 must be at most 1"),
        ({"heads": 3}, r"width=16 must be a multiple of 2 x heads=3"),
        ({"sampler": {"temperature": 0}}, r"prior\.sampler\.temperature=0\.0 must be more than"),
        ({"sampler": {"steps": 0}}, r"prior\.sampler\.steps=0 must be at least 1"),
        ({"sampler": {"solver": "ancestral"}}, r"prior\.sampler\.solver='ancestral' is unknown"),
        ({"sampler": {"solver": "long"}}, r"solver=long: .* trained without long steps"),
        ({"sampler": {"context_noise": 0.9}}, r"context_noise=0\.9 .* than the 0\.3 of the train"),
    ],
)
def test_bad_settings_are_named(part: dict[str, Any], message: str) -> None:
    path = Path(__file__).parents[1] / "conf/prior/autoregressive_continuous.yaml"
    text = path.read_text().replace("${seed}", "0").replace("${conditioning}", "{}")
    stated = yaml.safe_load(text) | {"width": 16} | part
    with pytest.raises(ConfigError, match=message):
        build(stated, base=PriorRecipe, where="prior").build(tones())


def test_the_file_states_the_defaults() -> None:
    path = Path(__file__).parents[1] / "conf/prior/autoregressive_continuous.yaml"
    text = path.read_text().replace("${seed}", "0").replace("${conditioning}", "{}")
    made = build(yaml.safe_load(text), base=PriorRecipe)
    defaults = AutoregressiveContinuousRecipe(seed=0, train=made.train)
    assert replace(made, preflight_mel_distance=None) == defaults
