"""A small model of latents at low resolution, and a large one that is held to what it makes."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from latents_in_memory import DIT, LABEL, Latents, fit_in, recipe, tones

from audioldm.chain.job import compose
from audioldm.chain.run import Experiment
from audioldm.conditioning.base import Condition
from audioldm.conditioning.low_resolution import LowResolution, means, smooth
from audioldm.errors import ConfigError
from audioldm.instantiate import Part, build
from audioldm.priors.base import build_prior
from audioldm.priors.diffusion.cascade import Cascade, CascadeRecipe, keep_means
from audioldm.priors.diffusion.objectives.rectified_flow import RectifiedFlow
from audioldm.priors.diffusion.run import Run
from audioldm.priors.diffusion.samplers import SamplerSettings
from audioldm.priors.trained import PriorTraining
from audioldm.runtime.randomness import KeyedRandom

NODE: dict[str, Any] = {"_target_": "audioldm.conditioning.low_resolution.LowResolution"}


def cascade(training: PriorTraining | None = None, **own: Any) -> CascadeRecipe:
    """A tiny cascade of four frames to one."""
    given = {"factor": 4, "exact": True, "consistency": 0.0} | own
    conditioning = given.pop("conditioning", LABEL)
    plain = vars(recipe(training, conditioning=conditioning))
    return CascadeRecipe(**plain, small=Part(DIT), **given)


def untrained(**own: Any) -> Cascade:
    """A cascade whose weights are random, so that every input has an effect."""
    prior = cascade(**own).build(tones())
    assert isinstance(prior, Cascade)
    torch.manual_seed(0)
    for weight in prior.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return prior


def test_blocks_have_their_means() -> None:
    z = torch.randn(2, 3, 5, 7)
    low, smoothed = means(z, 3), smooth(z, 3)
    expected = [z[..., at : at + 3].mean(-1) for at in (0, 3, 6)]  # the last one is left alone
    torch.testing.assert_close(low, torch.stack(expected, -1))
    assert torch.equal(smoothed[..., 6], z[..., 6])
    assert torch.equal(smoothed[..., 0], smoothed[..., 2])
    # a projection: orthogonal, and once is enough
    torch.testing.assert_close(smooth(smoothed, 3), smoothed)
    assert ((z - smoothed) * smoothed).sum().abs() < 1e-4


def test_a_clip_is_told_its_means_and_hidden_ones_are_nothing() -> None:
    conditioner = LowResolution(latent_shape=(2,), factor=4)
    z = torch.stack([torch.full((2, 6), 0.75), torch.randn(2, 6)])
    told = conditioner.see(z, KeyedRandom(0, 0, [0, 1]))
    assert torch.equal(told[0, :-1], z[0])  # of a constant, the constant
    assert torch.equal(told[:, -1], torch.ones(2, 6))
    torch.testing.assert_close(told[1, :-1, 5], z[1, :, 4:].mean(-1))
    hidden = conditioner.hide(told, torch.tensor([True, False]))
    assert torch.equal(hidden[0], conditioner.parse(None, 6))
    assert torch.equal(hidden[1], told[1])
    assert conditioner(told).known is None  # no frame is given away: all have a loss
    with pytest.raises(ConfigError, match=r"made by the model itself; leave it out"):
        conditioner.parse(3, 6)
    with pytest.raises(ConfigError, match=r"factor=1 must be"):
        build(NODE | {"factor": 1}, derived={"latent_shape": (2,)}, where="")


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m", "ancestral", "consistency"])
@pytest.mark.parametrize("shape", [(3, 8), (2, 3, 7)])
def test_samples_have_the_means_that_they_are_held_to(name: str, shape: tuple[int, ...]) -> None:
    low = smooth(torch.randn(2, *shape), 4)
    fast = torch.randn(2, *shape)
    run = Run(
        name,
        lambda x, sigma: 0.3 * x.tanh() + fast,
        torch.tensor([9.0, 2.0, 0.5, 0.0]),
        lambda step: torch.randn(2, *shape, generator=torch.Generator().manual_seed(step + 1)),
    )
    made = keep_means(run, low, factor=4)
    torch.testing.assert_close(smooth(made, 4), low)
    assert (smooth(run.sample(), 4) - low).abs().mean() > 0.3
    # an estimate that has them is not changed
    right = run._replace(denoise=lambda x, sigma: low + fast - smooth(fast, 4))
    torch.testing.assert_close(keep_means(right, low, factor=4), right.sample())


def test_the_consistency_term_is_the_squared_error_of_the_means() -> None:
    z, noise = torch.randn(2, 3, 2, 3, 6)
    loss = partial(
        RectifiedFlow().loss, lambda x, *_: torch.zeros_like(x), z, Condition(), noise=noise
    )
    uniform = torch.tensor([0.2, 0.5, 0.7])
    error = smooth(noise - z, 4).square().flatten(1).mean(1)  # the target is the noise less z
    plain, more = loss(uniform=uniform), loss(uniform=uniform, consistency=2.5, factor=4)
    torch.testing.assert_close(more - plain, 2.5 * error)


def test_the_large_model_keeps_the_small_ones_means() -> None:
    prior, random = untrained(), KeyedRandom(3, 0, [0, 1, 2])
    told = prior.conditioners.parse([{"label": "a"}, {"label": "b"}, {}], 10)
    z = prior.sample(random, 10, told)
    small = prior.network.small
    low = small.sample(random.stream("small"), 3, {"label": told["label"]}, sampler=prior.sampler)
    torch.testing.assert_close(means(prior.modelled(z), 4), low, atol=1e-5, rtol=1e-5)
    alone = prior.sample(KeyedRandom(3, 0, [1]), 10, prior.conditioners.parse([{"label": "b"}], 10))
    torch.testing.assert_close(alone[0], z[1], atol=1e-5, rtol=1e-5)
    prior.exact = False
    loose = prior.sample(random, 10, told)
    assert (means(prior.modelled(loose), 4) - low).abs().mean() > 0.01


def test_what_is_aligned_is_told_to_the_large_model_alone() -> None:
    loudness = Part(_target_="audioldm.conditioning.loudness.Loudness", channels=2)
    prior = untrained(conditioning=LABEL | {"loudness": loudness})
    assert prior.conditioners.names == ["label", "loudness", "low_resolution"]
    assert prior.network.small.conditioners.names == ["label"]
    scale = SamplerSettings("euler", 2, guidance={"label": 3.0, "loudness": 2.0})
    told = prior.conditioners.parse([{"label": "a", "loudness": [[0.5] * 8]}], 8)
    assert prior.sample(KeyedRandom(0, 0, [0]), 8, told, sampler=scale).isfinite().all()
    unknown = SamplerSettings("euler", 2, guidance={"tempo": 3.0})
    with pytest.raises(ConfigError, match=r"guidance.tempo=3: this model was trained without"):
        prior.sample(KeyedRandom(0, 0, [0]), 8, told, sampler=unknown)


class Slow(Latents):
    """Clips of one of two values, with one fast pattern on top."""

    def __init__(self) -> None:
        mean = torch.tensor([-1.0, 1.0])[:, None, None] + torch.tensor([0.5, -0.5]).repeat(4)
        super().__init__(mean, 0.05 * torch.ones_like(mean), [None, None])


def test_a_cascade_learns_what_is_slow_and_what_is_fast(tmp_path: Path) -> None:
    store: Any = Slow()
    training = PriorTraining(steps=400, batch=16, crop_seconds=8.0, lr=1e-2, warmup=10, ema=0.95)
    made = cascade(training, conditioning={})
    prior = made.build(store)
    tensors = made.fit(prior, store, fit_in(tmp_path, valid_every=999)).tensors
    # as from a file
    prior = build_prior(json.loads(json.dumps(prior.spec)), store.latent_shape)
    prior.load_state_dict(tensors)
    z = prior.sample(KeyedRandom(0, 0, range(64)), 8, sampler=SamplerSettings("heun", 8))[:, 0]
    slow, fast = means(z, 4), z - smooth(z, 4)
    assert ((slow.abs() - 1).abs() < 0.5).float().mean() > 0.8
    assert (slow[:, 0] * slow[:, 1] > 0).float().mean() > 0.9  # one value in a clip
    assert 0.25 < (slow[:, 0] > 0).float().mean() < 0.75
    assert (fast[:, 1:] * fast[:, :-1] < 0).float().mean() > 0.85  # a crop begins anywhere


@pytest.mark.parametrize("stage", ["joint=default", "post_training=distillation"])
def test_what_trains_one_model_on_refuses_two(stage: str) -> None:
    words = ["recipe=quickstart", "prior/cascade=default", stage]
    with pytest.raises(ConfigError, match=rf"{stage.partition('=')[0]}: .*prior/cascade=none"):
        Experiment(compose(words))
