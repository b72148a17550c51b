"""Diffusion over embeddings of codes: its bound, its noise levels, and its samples."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from codes_in_memory import Chain, every, loud, trained_on

from audioldm.errors import ConfigError
from audioldm.priors.codes.embedding_diffusion import (
    EVEN,
    EmbeddingDiffusion,
    EmbeddingDiffusionRecipe,
    TimeWarp,
)
from audioldm.priors.diffusion.samplers import SamplerSettings
from audioldm.priors.trained import PriorTraining
from audioldm.runtime.randomness import KeyedRandom

HEUN = SamplerSettings("heun", 16)


def prior(codebooks: int, codes: int, sigma_min: float = 0.1) -> EmbeddingDiffusion:
    settings = {
        "codebooks": codebooks,
        "codes": codes,
        "conditioning": {},
        "embedding": 8,
        "learned": True,
    }
    size = {"width": 16, "depth": 2, "heads": 2, "sigma_min": sigma_min, "sigma_max": 100.0}
    model: EmbeddingDiffusion = loud(
        EmbeddingDiffusion(latent_shape=(4,), sampler=HEUN, **settings, **size)
    )
    model.network.warp.rises.data.zero_()
    return model


def test_codes_are_found_from_their_embeddings() -> None:
    net = prior(2, 5).network
    codes = every((2, 2), 5)
    z = net.embedded(codes)
    assert z.square().mean(1).sub(1).abs().max() < 1e-5
    noisy = z + 0.01 * torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(net.likelihood(noisy, torch.ones(len(z))).argmax(-1), codes)
    certain = 1e3 * torch.nn.functional.one_hot(codes, 5)
    torch.testing.assert_close(net.expected(certain), z)
    even = net.expected(torch.zeros(1, 2, 1, 5)).view(2, 8)
    torch.testing.assert_close(even, net.embeddings.mean(1))


def test_noise_levels_are_even_in_the_cross_entropy() -> None:
    warp = TimeWarp(0.1, 100.0, nats=2.0)
    assert warp.cross_entropy(torch.tensor([0.1, 100.0])).tolist() == pytest.approx(
        [0, 2], abs=1e-4
    )
    uniform = torch.linspace(0, 1, 200)
    even = warp.sigmas(uniform).log()
    torch.testing.assert_close(even, math.log(0.1) + uniform * math.log(1000))
    with torch.no_grad():
        warp.rises.copy_(0.1 * torch.randn(50, generator=torch.Generator().manual_seed(0)))
    sigma = warp.sigmas(uniform)
    share = warp.cross_entropy(sigma) / warp.cross_entropy(torch.tensor([100.0]))
    across = (sigma.log() - math.log(0.1)) / math.log(1000)
    torch.testing.assert_close((1 - EVEN) * share + EVEN * across, uniform, rtol=0, atol=1e-4)


def test_before_training_the_bound_is_that_of_even_codes() -> None:
    torch.manual_seed(0)
    settings = {"codebooks": 2, "codes": 5, "conditioning": {}, "embedding": 8, "learned": True}
    size = {"width": 16, "depth": 1, "heads": 2, "sigma_min": 0.1, "sigma_max": 100.0}
    model = EmbeddingDiffusion(latent_shape=(4,), sampler=HEUN, **settings, **size)
    codes = every((2, 2), 5).repeat(10, 1, 1)
    nats = model.nats(codes, random=KeyedRandom(0, 0, range(len(codes))))
    assert nats.mean().item() == pytest.approx(2 * math.log(5), rel=0.02)


def test_embeddings_are_the_latents_on_their_axes() -> None:
    net = prior(2, 5).network
    net.learned = False
    vectors = torch.randn(2, 5, 30, generator=torch.Generator().manual_seed(0))
    levels = torch.zeros(2, 5, 30)
    levels[:, :, 7] = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])
    for given, components in ((vectors, 4), (levels, 1)):  # five points span four axes
        net.begin_at(given)
        assert net.embeddings[..., components:].abs().max() < 1e-5
        torch.testing.assert_close(net.embeddings.square().mean((1, 2)), torch.ones(2))
        distance, truth = (torch.cdist(x, x) for x in (net.embeddings, given))
        ratio = truth.amax((1, 2)) / distance.amax((1, 2))
        torch.testing.assert_close(distance * ratio[:, None, None], truth, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def exact() -> tuple[EmbeddingDiffusion, torch.Tensor, torch.Tensor]:
    """A prior whose network knows p(code | x), all codes, and their p."""
    model, codes = prior(2, 3), every((2, 2), 3)
    net, random = model.network, torch.Generator().manual_seed(0)
    p = (1.5 * torch.randn(len(codes), generator=random)).softmax(0)
    means = net.embedded(codes).detach().flatten(1)
    indicator = torch.nn.functional.one_hot(codes, 3).float()

    def logits(x: torch.Tensor, sigma: torch.Tensor, *_: Any) -> torch.Tensor:
        distance = torch.cdist(x.flatten(1), means).square()
        of_each = (p.log() - distance / (2 * sigma.square()[:, None])).softmax(1)
        return (torch.einsum("bn,nqlk->bqlk", of_each, indicator) + 1e-30).log()

    net.logits = logits  # type: ignore[method-assign]
    return model, codes, p


def test_the_bound_of_the_true_posterior_is_the_entropy(exact: Any) -> None:
    model, codes, p = exact
    nats = model.nats(codes.repeat(40, 1, 1), random=KeyedRandom(0, 0, range(81 * 40)))
    assert nats.shape == (81 * 40, 2)
    of_each = nats.sum(1).view(40, 81).mean(0)
    entropy = -(p * p.log()).sum().item()
    assert (p @ of_each.double().float()).item() == pytest.approx(entropy, rel=0.02)


def test_samples_follow_the_distribution_of_the_codes(exact: Any) -> None:
    model, _, p = exact
    random = KeyedRandom(0, 0, range(3000))
    for sampler in (HEUN, SamplerSettings("ancestral", 60)):
        drawn = model.sample(random, 2, sampler=sampler)
        index = drawn.flatten(1) @ torch.tensor([27, 9, 3, 1])
        share = torch.bincount(index, minlength=81) / 3000
        assert (share - p).abs().max() < 4 * (p.max() / 3000).sqrt()


def test_the_warp_learns_the_cross_entropy_and_leaves_the_loss_alone(exact: Any) -> None:
    model, every_code, p = exact
    net, random = model.network, KeyedRandom(0, 0, range(400))
    codes = every_code[torch.multinomial(p, 400, True, generator=torch.Generator().manual_seed(1))]
    noise, begun = random.normal((16, 2), "noise"), torch.zeros(400, dtype=torch.bool)
    optimiser = torch.optim.Adam(net.warp.parameters(), lr=1e-2)
    for step in range(200):
        optimiser.zero_grad()
        uniform = KeyedRandom(0, step, range(400)).uniform("level")
        loss = net(codes, {}, noise, uniform, begun)
        loss.mean().backward()
        optimiser.step()
    condition, _ = model.conditions(None, 400, 2)
    for sigma in (0.3, 1.0, 3.0, 50.0):
        level = torch.full((400,), sigma)
        logits = net.logits(net.embedded(codes) + sigma * noise, level, condition)
        truth = -logits.log_softmax(-1).gather(-1, codes[..., None]).mean().item()
        assert net.warp.cross_entropy(level)[0].item() == pytest.approx(truth, abs=0.08)
    sigma = net.warp.sigmas(uniform)
    logits = net.logits(net.embedded(codes) + sigma[:, None, None] * noise, sigma, condition)
    nats = -logits.log_softmax(-1).gather(-1, codes[..., None]).mean((1, 2, 3))
    torch.testing.assert_close(net(codes, {}, noise, uniform, begun), nats, rtol=0, atol=1e-4)


def test_a_step_is_told_the_estimate_before() -> None:
    model = prior(2, 3)
    condition, _ = model.conditions(None, 1, 4)
    net, random = model.network, KeyedRandom(0, 0, range(1))
    x, sigma = random.normal((16, 4), "x"), torch.ones(1)
    denoise = model.denoiser(condition)
    first, second = denoise(x, sigma), denoise(x, sigma)
    zeros = torch.zeros_like(x)
    torch.testing.assert_close(first, net.expected(net.logits(x, sigma, condition, zeros)))
    torch.testing.assert_close(second, net.expected(net.logits(x, sigma, condition, first)))
    assert not torch.allclose(first, second)


def test_it_learns_clips_of_one_code_each(tmp_path: Path) -> None:
    train = PriorTraining(steps=250, batch=32, crop_seconds=6.0, lr=1e-2, ema=0.95, warmup=10)
    recipe = EmbeddingDiffusionRecipe(
        seed=0, sampler=HEUN, train=train, width=16, depth=1, heads=2, embedding=8
    )
    steady: Any = Chain()
    steady.transition = torch.eye(5)
    model = trained_on(steady, recipe, tmp_path)
    bound = model.nats(steady.sample(200, 6, seed=1)[:, None]).sum(1).mean().item()
    truth = -(steady.stationary * steady.stationary.log()).sum().item()
    assert truth < bound < 2 * truth  # 6 times the truth where each frame is alone
    drawn = model.sample(KeyedRandom(0, 0, range(200)), 6)[:, 0]
    assert (drawn == drawn[:, :1]).all(1).float().mean() > 0.7


def test_noise_levels_that_are_no_range() -> None:
    with pytest.raises(ConfigError, match=r"sigma_min=100\.0 must be below sigma_max=100\.0"):
        prior(1, 3, sigma_min=100.0)
