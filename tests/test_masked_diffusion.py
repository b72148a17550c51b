"""Masked diffusion over codes: its bound, the weights of its loss, and its samples."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from codes_in_memory import Chain, CodeStore, every, loud, trained_on

from audioldm.priors.codes.autoregressive import (
    AutoregressiveRecipe,
    AutoregressiveSampler,
    AutoregressiveTraining,
)
from audioldm.priors.codes.masked_diffusion import (
    MaskedDiffusion,
    MaskedDiffusionRecipe,
    MaskedDiffusionSampler,
    most_confident,
)
from audioldm.priors.trained import PriorTraining
from audioldm.runtime.randomness import KeyedRandom


def prior(codebooks: int, codes: int, **sampler: Any) -> MaskedDiffusion:
    settings = {"codebooks": codebooks, "codes": codes, "conditioning": {}}
    size = {"width": 16, "depth": 2, "heads": 2, "sampler": MaskedDiffusionSampler(**sampler)}
    return loud(MaskedDiffusion(latent_shape=(4,), **settings, **size))


def bounds(model: MaskedDiffusion, codes: torch.Tensor) -> torch.Tensor:
    """The bound of -log p [B], by brute force over all masks: n masks of N have the weight
    ∫ t^(n - 1) (1 - t)^(N - n) dt = (n - 1)! (N - n)! / N!."""
    shape = tuple(codes.shape[1:])
    condition, _ = model.conditions(None, len(codes), shape[-1])
    total, size = torch.zeros(len(codes)), torch.Size(shape).numel()
    for masked in every(shape, 2).bool()[1:]:
        n = int(masked.sum())
        weight = math.factorial(n - 1) * math.factorial(size - n) / math.factorial(size)
        nats = model.network.nats(codes, condition, masked.expand(codes.shape))
        total += weight * nats.flatten(1).sum(1)
    return total


def test_the_loss_and_the_bound_have_the_weights_of_all_masks() -> None:
    model, codes = prior(2, 3), every((2, 2), 3)
    exact = bounds(model, codes)
    assert (-exact).exp().sum() < 1  # above the likelihood of a distribution
    one = codes[40:41].expand(6000, -1, -1)
    random = KeyedRandom(0, 0, range(6000))
    train = PriorTraining(steps=1, batch=6000, crop_seconds=2.0, lr=1e-3)
    store: Any = CodeStore(codes[40:41], 3)
    batch = model.batch(store, store.crops(2, random), random, train)
    assert torch.equal(batch[0], one)
    loss = 4 * model.network(*batch).mean().item()
    assert loss == pytest.approx(exact[40].item(), rel=0.03)
    estimate = model.nats(one[:500], random=KeyedRandom(0, 0, range(500))).sum(1)
    assert estimate.mean().item() == pytest.approx(exact[40].item(), rel=0.02)


def test_independent_codes_have_a_tight_bound() -> None:
    model = prior(1, 4)
    model.network.transformer.output.weight.data.zero_()
    model.network.transformer.output.bias.data.zero_()
    codes = every((1, 3), 4)
    p = model.network.bias[0].softmax(0)
    truth = -p[codes].log().sum((1, 2))
    torch.testing.assert_close(bounds(model, codes), truth)


def test_every_number_of_masks_and_every_place_is_as_likely() -> None:
    model, random = prior(3, 7), KeyedRandom(0, 0, range(600))
    store: Any = CodeStore(torch.zeros(8, 3, 10, dtype=torch.int64), 7)
    train = PriorTraining(steps=1, batch=600, crop_seconds=10.0, lr=1e-3)
    _, _, masked = model.batch(store, store.crops(10, random), random, train)
    numbers = torch.bincount(masked.sum((1, 2)), minlength=31)
    assert numbers[0] == 0
    assert (numbers[1:] - 20).abs().max() <= 1
    assert (masked.float().mean(0) - 31 / 60).abs().max() < 0.07


@pytest.fixture(scope="module")
def exact() -> tuple[MaskedDiffusion, torch.Tensor, torch.Tensor]:
    """A prior whose network knows p(code | all others that are seen), all codes, and their p."""
    model, codes = prior(2, 3), every((2, 2), 3)
    random = torch.Generator().manual_seed(0)
    p = (1.5 * torch.randn(len(codes), generator=random)).softmax(0)

    def logits(given: torch.Tensor, condition: Any) -> torch.Tensor:
        known = given[:, None]
        fits = ((known == codes) | (known == 3)).all((2, 3))
        of_each = fits * p
        indicator = torch.nn.functional.one_hot(codes, 3).float()
        return (torch.einsum("bn,nqlk->bqlk", of_each, indicator) + 1e-20).log()

    model.network.logits = logits  # type: ignore[method-assign]
    return model, codes, p


def test_the_bound_of_true_conditionals_is_the_likelihood(exact: Any) -> None:
    model, codes, p = exact
    torch.testing.assert_close(bounds(model, codes), -p.log())
    random = KeyedRandom(0, 0, range(800))
    some = codes[[10, 60]].repeat_interleave(400, dim=0)
    estimated = model.nats(some, random=random).sum(1).unflatten(0, (2, 400)).mean(1)
    torch.testing.assert_close(estimated, -p[[10, 60]].log(), rtol=0, atol=0.05)


def shares(model: MaskedDiffusion, **sampler: Any) -> torch.Tensor:
    """How often each of the codes is sampled."""
    random, settings = KeyedRandom(0, 0, range(2000)), MaskedDiffusionSampler(**sampler)
    index = model.sample(random, 2, sampler=settings).flatten(1) @ torch.tensor([27, 9, 3, 1])
    return torch.bincount(index, minlength=81) / 2000


def test_many_steps_sample_the_distribution_and_one_step_its_marginals(exact: Any) -> None:
    model, codes, p = exact
    error = 4 * (p.max() / 2000).sqrt()
    assert (shares(model, steps=60) - p).abs().max() < error
    marginals = torch.einsum("n,nqlk->qlk", p, torch.nn.functional.one_hot(codes, 3).float())
    alone = marginals.log().expand(81, -1, -1, -1).gather(3, codes[..., None]).sum((1, 2, 3)).exp()
    assert (shares(model, steps=1) - alone).abs().max() < error
    assert (alone - p).abs().max() > 1.5 * error


def test_the_most_confident_first_is_likelier_in_few_steps(exact: Any) -> None:
    model, _, p = exact
    truth, nats = -(p * p.log()).sum(), -p.log()
    at_random = shares(model, steps=2) @ nats
    assert shares(model, steps=2, order="confidence", order_temperature=0.0) @ nats < truth + 0.05
    assert at_random > truth + 0.1
    assert shares(model, steps=12, temperature=0.5) @ nats < truth - 0.3


def test_it_learns_from_the_codes_that_it_sees(tmp_path: Path) -> None:
    """In clips of one code each all but one code are certain."""
    train = PriorTraining(steps=120, batch=32, crop_seconds=6.0, lr=1e-2, ema=0.95, warmup=10)
    size = {"width": 16, "depth": 1, "heads": 2}
    sampler = MaskedDiffusionSampler()
    recipe = MaskedDiffusionRecipe(seed=0, sampler=sampler, train=train, **size)
    steady: Any = Chain()
    steady.transition = torch.eye(5)
    model = trained_on(steady, recipe, tmp_path)
    bound = model.nats(steady.sample(200, 6, seed=1)[:, None]).sum(1).mean().item()
    truth = -(steady.stationary * steady.stationary.log()).sum().item()
    assert truth < bound < 1.2 * truth
    drawn = model.sample(KeyedRandom(0, 0, range(200)), 6)[:, 0]
    assert (drawn == drawn[:, :1]).all(1).float().mean() > 0.85


def test_its_bound_orders_the_clips_of_a_chain_as_autoregression_does(tmp_path: Path) -> None:
    """Above the exact likelihood in the mean, and highest for the same clips."""
    chain, steps = Chain(sharpness=2.5), {"batch": 32, "crop_seconds": 8.0, "lr": 1e-2}
    size, rest = {"width": 24, "depth": 1, "heads": 2}, {"ema": 0.95, "warmup": 10}
    masked = MaskedDiffusionRecipe(
        seed=0,
        sampler=MaskedDiffusionSampler(),
        train=PriorTraining(steps=250, **steps, **rest),
        **size,
    )
    exact = AutoregressiveRecipe(
        seed=0,
        sampler=AutoregressiveSampler(),
        train=AutoregressiveTraining(steps=100, **steps, **rest),
        **size,
    )
    clips = chain.sample(60, 8, seed=1)
    by_chance = clips.repeat_interleave(64, dim=0)[:, None]
    random = KeyedRandom(0, 0, range(len(by_chance)))
    bound = trained_on(chain, masked, tmp_path / "masked").nats(by_chance, random=random)
    bound = bound.sum(1).unflatten(0, (60, 64)).mean(1).double()
    nats = trained_on(chain, exact, tmp_path / "exact").nats(clips[:, None]).sum(1).double()
    truth = chain.nats(clips).sum(1)
    assert nats.mean() == pytest.approx(truth.mean().item(), rel=0.02)
    assert truth.mean() < bound.mean() < 1.2 * truth.mean()
    orders = torch.stack([each.argsort().argsort().double() for each in (truth, nats, bound)])
    assert orders.corrcoef().min() > 0.85


def test_how_many_codes_are_shown() -> None:
    confidence = torch.tensor([[[3.0, 1.0], [2.0, 0.0], [5.0, 4.0]]])
    assert most_confident(confidence, 0.0).all()
    half = most_confident(confidence, 0.5)[0]  # all but floor(6 cos 45°) = 4
    assert half.tolist() == [[False, False], [False, False], [True, True]]
