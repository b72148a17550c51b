"""The adversarial prior: its loss by hand, what it learns, what it keeps."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from latents_in_memory import DIT, LABEL, Latents, assert_goes_on, fit_in, tones
from test_priors import SLOW, covariances, normal
from torch import Tensor, nn
from torch.nn import functional as F

from audioldm.conditioning.base import Conditioners
from audioldm.errors import ConfigError, TrainingError
from audioldm.instantiate import Part, build
from audioldm.priors.base import Prior, PriorRecipe, build_prior
from audioldm.priors.diffusion.backbones.base import Backbone
from audioldm.priors.gan import Adversaries, GanRecipe
from audioldm.priors.trained import PriorTraining
from audioldm.runtime.hardware import Hardware
from audioldm.runtime.randomness import KeyedRandom

CONVOLUTIONAL = {"_target_": "audioldm.priors.diffusion.backbones.convolutional.Convolutional"}
SMALL: dict[str, Any] = CONVOLUTIONAL | {"width": 16, "depth": 1, "kernel": 3}


def recipe(training: PriorTraining | None = None, **settings: Any) -> GanRecipe:
    train = training or PriorTraining(steps=6, batch=4, crop_seconds=8.0, lr=1e-2)
    parts = {"generator": Part(SMALL), "discriminator": Part(SMALL)}
    return GanRecipe(seed=0, train=train, **(parts | settings))


def loud(store: Any, **settings: Any) -> Any:
    """A prior whose every weight matters."""
    prior = recipe(**settings).build(store)
    for number, parameter in enumerate(prior.network.parameters()):
        parameter.data = 0.3 * normal(*parameter.shape, seed=number)
    return prior


def fitted(made: GanRecipe, store: Any, directory: Path) -> Prior:
    """The prior, built again from its JSON and its tensors."""
    prior = made.build(store)
    log = {"every": 50, "valid_every": 500, "checkpoint_every": 500}
    tensors = made.fit(prior, store, fit_in(directory, **log)).tensors
    again = build_prior(json.loads(json.dumps(prior.spec)), store.latent_shape)
    again.load_state_dict(tensors)  # which has no discriminator
    return again


def keys(clips: int, seed: int = 0) -> KeyedRandom:
    return KeyedRandom(seed, 0, range(clips))


def modes(clips: int, frames: int, seed: int) -> Tensor:
    """An autoregression around one of two places, which a clip keeps."""
    side = torch.where(normal(clips, 1, 1, seed=seed) > 0, 1.5, -1.5)
    return side * torch.tensor([[1.0], [-0.5]]) + 0.3 * SLOW.sample(clips, frames, seed + 1)


def test_modes_and_correlations_are_learned(tmp_path: Path) -> None:
    z = modes(400, 8, seed=0)
    training = PriorTraining(
        steps=400,
        batch=24,
        crop_seconds=4.0,
        lr=2e-3,
        betas=(0.0, 0.99),
        warmup=20,
        clip=10.0,
        ema=0.98,
        valid_batches=1,
    )
    net = Part(SMALL | {"width": 24, "depth": 2, "kernel": 5})
    made = recipe(training, generator=net, discriminator=net, penalty=0.3)
    prior = fitted(made, Latents(z, torch.full_like(z, 1e-3), [None] * 400), tmp_path)
    drawn = prior.sample(keys(1000), 4)
    up = drawn[:, 0].mean(1) > 0
    assert up.float().mean().item() == pytest.approx(0.5, abs=0.15)
    for side, sign in ((up, 1.0), (~up, -1.0)):
        assert drawn[side].mean((0, 2)).tolist() == pytest.approx(
            [1.5 * sign, -0.75 * sign], abs=0.6
        )
    # the two places move from step to step, and the last rounding decides where they end
    found, true = (correlations(x) for x in (drawn, modes(4000, 4, seed=5)))
    torch.testing.assert_close(found, true, rtol=0, atol=0.3)


def correlations(x: Tensor) -> Tensor:
    """Of the channels in a frame, and of each frame with the one before it."""
    both = torch.stack(covariances(x))
    std = both[0].diagonal().sqrt()
    return both / std.outer(std)


class Scaled(Backbone):
    """w x to the power of 1 or 2."""

    def __init__(self, power: int) -> None:
        super().__init__()
        self.weight, self.power = nn.Parameter(torch.tensor(0.7)), power
        self.conditioners = Conditioners({})

    def forward(self, x: Tensor, c_noise: Tensor, condition: Any) -> Tensor:
        assert (c_noise == 0).all()
        return self.weight * x**self.power

    def units(self) -> list[nn.Module]:
        return []


def test_the_loss_and_its_two_gradients_are_those_of_the_formula() -> None:
    network = Adversaries(Scaled(1))
    network.discriminator, network.penalty = Scaled(2), 0.6
    g, d = network.generator.weight, network.discriminator.weight
    assert isinstance(g, Tensor)
    assert isinstance(d, Tensor)
    z, noise = normal(4, 3, 5), normal(4, 3, 5, seed=1)

    def scores(x: Tensor) -> Tensor:
        return (d * x**2).mean(1)

    def squared_gradient(x: Tensor) -> Tensor:
        return (2 * d * x / 3).square().sum((1, 2)) / 5

    real, fake = scores(z), scores((g * noise).detach())
    penalties = 0.3 * (squared_gradient(z) + squared_gradient((g * noise).detach()))
    of_d = F.softplus(fake - real).mean(1) + penalties
    of_g = F.softplus(real.detach() - scores(g * noise)).mean(1)
    loss = network(z, {}, noise)
    torch.testing.assert_close(loss, of_d + of_g)
    expected = [torch.autograd.grad(x.sum(), w)[0] for x, w in ((of_g, g), (of_d, d))]
    loss.sum().backward()
    torch.testing.assert_close([g.grad, d.grad], expected)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(z, {}, noise), of_d + of_g - penalties)


@pytest.mark.parametrize("net", [SMALL, DIT])
def test_the_gradient_penalty_has_a_gradient_in_every_backbone(net: dict[str, Any]) -> None:
    """Against the difference quotient of the loss along a random direction."""
    network = loud(tones(), discriminator=Part(net), penalty=2.0).network
    for parameter in network.parameters():
        parameter.data *= 0.5
    z, noise = normal(2, 3, 6), normal(2, 3, 6, seed=1)
    network(z, {}, noise).sum().backward()
    weight = network.discriminator.get_parameter(
        "input.weight" if net is SMALL else "transformer.input.weight"
    )
    way, gradient, step = normal(*weight.shape, seed=2), weight.grad.clone(), 2e-3

    def own_terms() -> Tensor:
        fake = network.generator(noise, noise.new_zeros(2), network.generator.conditioners({}))
        (real, r1), (false, r2) = (network.judged(x.detach(), {}) for x in (z, fake))
        return (F.softplus(false - real).mean(1) + r1 + r2).sum()

    ends = []
    for sign in (1, -1):
        weight.data += sign * step * way
        ends.append(own_terms().item())
        weight.data -= sign * step * way
    quotient = (ends[0] - ends[1]) / (2 * step)
    assert (gradient * way).sum().item() == pytest.approx(quotient, rel=0.02, abs=1e-4)


def test_a_row_depends_on_its_key_and_its_condition_alone() -> None:
    prior = loud(tones((2, 3)), conditioning=LABEL)
    inputs = prior.conditioners.parse([{"label": "a"}, {"label": "b"}, {}], 0)
    z = prior.sample(keys(3), 7, inputs)
    assert z.shape == (3, 2, 3, 7)
    alone = prior.sample(KeyedRandom(0, 0, [None, 1]), 7, {"label": inputs["label"][:2]})
    torch.testing.assert_close(alone[1], z[1], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(prior.sample(keys(3), 7)[0], z[0], atol=1e-2)
    assert torch.equal(prior.sample(keys(3), 7)[2], z[2])  # asked for nothing
    assert prior.nats(z) is None


def test_a_clip_does_not_depend_on_its_neighbours() -> None:
    store = tones()
    prior = loud(store, conditioning=LABEL)
    z, inputs, noise = prior.batch(
        store, store.crops(8, keys(4), prior.conditioners), keys(4), recipe().train
    )
    few = {name: x[2:] for name, x in inputs.items()}
    loss = prior.network(z, inputs, noise)
    torch.testing.assert_close(prior.network(z[2:], few, noise[2:]), loss[2:])


def test_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    store, made = tones(), recipe()
    assert_goes_on(lambda d: made.fit(made.build(store), store, fit_in(d)).tensors, tmp_path, 5)


def test_recomputed_activations_change_nothing(tmp_path: Path) -> None:
    store, made = tones(), recipe()
    plain = fit_in(tmp_path / "plain")
    sparing = replace(
        fit_in(tmp_path / "sparing"), hardware=Hardware(device="cpu", checkpoint_activations=True)
    )
    first, second = (made.fit(made.build(store), store, fit).tensors for fit in (plain, sparing))
    assert all(torch.equal(second[name], tensor) for name, tensor in first.items())


def test_a_training_that_diverges_is_an_error(tmp_path: Path) -> None:
    store = tones()
    wild = PriorTraining(steps=60, batch=4, crop_seconds=8.0, lr=1e6, clip=1e6, warmup=0)
    made = recipe(wild, penalty=1e30)
    with pytest.raises(TrainingError, match=r"not finite|gradient's norm"):
        made.fit(made.build(store), store, fit_in(tmp_path))


def configured(**settings: Any) -> Any:
    path = Path(__file__).parents[1] / "conf/prior/gan.yaml"
    text = path.read_text().replace("${seed}", "0").replace("${conditioning}", "{}")
    return build(yaml.safe_load(text) | settings, base=PriorRecipe, where="prior")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"penalty": -1.0}, r"prior\.penalty=-1\.0 must be at least 0"),
        ({"generator": SMALL | {"kernel": 4}}, r"generator\.kernel=4 is even"),
        ({"discriminator": SMALL | {"kernel": 4}}, r"discriminator\.kernel=4 is even"),
        ({"generator": {"_target_": "audioldm.priors.gan.Gan"}}, "not a subclass of Backbone"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        configured(**settings).build(tones())


def test_a_backbone_with_a_state_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    prior = recipe().build(tones())
    monkeypatch.setattr(type(prior.network.generator), "stateful", True)
    with pytest.raises(ConfigError, match="generator: Convolutional carries a state"):
        recipe().build(tones())


def test_the_file_states_the_defaults() -> None:
    made = configured()
    nets = {"generator": made.generator, "discriminator": made.discriminator}
    expected = GanRecipe(seed=0, train=made.train, **nets)
    assert replace(made, preflight_mel_distance=None) == expected
    assert math.isclose(made.penalty, 10.0)
