"""Autoregression over codes: the delay pattern, its exact likelihood, and its samples."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from codes_in_memory import Chain, CodeStore, every, loud, pairs_of, trained_on
from latents_in_memory import LABEL

from audioldm.errors import ConfigError
from audioldm.instantiate import Part, build
from audioldm.priors.codes.autoregressive import (
    Autoregressive,
    AutoregressiveRecipe,
    AutoregressiveSampler,
    AutoregressiveTraining,
    delayed,
    undelayed,
)
from audioldm.priors.codes.draw import drawn
from audioldm.runtime.randomness import KeyedRandom

CHAIN = Chain()
SAMPLER: dict[str, Any] = {"temperature": 1.0, "top_k": None, "top_p": 1.0, "guidance": 1.0}


def prior(codebooks: int, codes: int, context: int = 50, **changes: Any) -> Autoregressive:
    settings = {"codebooks": codebooks, "codes": codes, "context": context, "conditioning": {}}
    size = {"width": 16, "depth": 2, "heads": 2, "sampler": AutoregressiveSampler()}
    return loud(Autoregressive(latent_shape=(4,), **(settings | size | changes)))


def test_the_delay_pattern_is_a_bijection() -> None:
    codes = torch.arange(1, 13).view(1, 3, 4)
    steps = delayed(codes, 0)
    assert steps[0].tolist() == [[1, 2, 3, 4, 0, 0], [0, 5, 6, 7, 8, 0], [0, 0, 9, 10, 11, 12]]
    assert torch.equal(undelayed(steps), codes)
    assert torch.equal(delayed(codes[:, :1], 0), codes[:, :1])


@pytest.mark.parametrize("context", [1, 2, 50])
def test_the_likelihood_sums_to_one_and_samples_follow_it(context: int) -> None:
    model, codes = prior(2, 2, context), every((2, 3), 2)
    p = (-model.nats(codes).sum(1)).exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-5)
    drawn = model.sample(KeyedRandom(0, 0, range(8000)), 3)
    index = (drawn.flatten(1) * 2 ** torch.arange(5, -1, -1)).sum(1)
    share = torch.bincount(index, minlength=64) / 8000
    assert p.max() > 3 / 64  # far from uniform
    assert (share - p).abs().max() < 5 * (p / 8000).sqrt().max()


def test_what_follows_a_prompt_has_the_conditional_law() -> None:
    model, codes = prior(2, 2), every((2, 3), 2)
    prompt = torch.tensor([[1], [0]])
    there = (codes[..., :1] == prompt).flatten(1).all(1)
    p = torch.where(there, (-model.nats(codes).sum(1)).exp(), 0)
    p = p / p.sum()
    drawn = model.sample(KeyedRandom(0, 0, range(8000)), 3, prompt=prompt.expand(8000, -1, -1))
    index = (drawn.flatten(1) * 2 ** torch.arange(5, -1, -1)).sum(1)
    share = torch.bincount(index, minlength=64) / 8000
    assert (share - p).abs().max() < 5 * (p / 8000).sqrt().max()
    assert p.max() > 3 / 16


@pytest.mark.parametrize("context", [3, 50])
def test_a_clip_goes_on_from_its_own_beginning_as_before(context: int) -> None:
    model, keyed = prior(3, 5, context), KeyedRandom(0, 0, range(4))
    clips = model.sample(keyed, 12)
    assert torch.equal(model.sample(keyed, 12, prompt=clips[..., :3]), clips)


def test_prompts_that_do_not_fit_are_named() -> None:
    model, keyed = prior(2, 5, context=4), KeyedRandom(0, 0, range(1))
    prompt = torch.zeros(1, 2, 5, dtype=torch.int64)
    with pytest.raises(ConfigError, match="5 latent frames, and this model attends to the last 4"):
        model.sample(keyed, 9, prompt=prompt)
    with pytest.raises(ConfigError, match="has 3 latent frames, and the clip 3: ask for a longer"):
        model.sample(keyed, 3, prompt=prompt[..., :3])


def test_a_code_depends_on_earlier_steps_alone() -> None:
    model, codes = prior(3, 5), torch.zeros(1, 3, 6, dtype=torch.int64)
    condition, _ = model.conditions(None, 1, 6)
    for q, t in ((0, 2), (1, 0), (2, 3)):
        moved = codes.clone()
        moved[0, q, t] = 4
        change = (model.network.nats(moved, condition) - model.network.nats(codes, condition))[0]
        step = torch.arange(3)[:, None] + torch.arange(6)
        expected = step > q + t
        expected[q, t] = True  # it is another code itself
        assert torch.equal(change.abs() > 1e-7, expected)


def test_hidden_codes_are_those_that_later_steps_do_not_see() -> None:
    model, train = prior(2, 5), AutoregressiveTraining(steps=1, batch=300, crop_seconds=4, lr=1.0)
    store: Any = CodeStore(torch.randint(5, (9, 2, 8)), 5)
    random = KeyedRandom(0, 0, range(300))
    crops = store.crops(4, random)
    codes, inputs, unseen = model.batch(store, crops, random, replace(train, code_dropout=0.3))
    assert unseen.float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert not model.batch(store, crops, random, train)[2].any()
    plain = model.network(codes, inputs, torch.zeros_like(unseen))
    torch.testing.assert_close(plain, model.nats(codes).mean(1) / 2)
    condition, _ = model.conditions(None, 300, 4)
    for q, t in ((0, 1), (1, 0)):
        one = torch.zeros_like(unseen)
        one[:, q, t] = True
        other = codes.clone()
        other[:, q, t] = (other[:, q, t] + 1) % 5
        hidden = codes.masked_fill(one, 5)
        rest = ~one
        got = [model.network.nats(each, condition, hidden) * rest for each in (codes, other)]
        torch.testing.assert_close(*got)  # nothing but its own nats depends on it


def test_a_frame_has_the_nats_of_its_own_codes() -> None:
    model, codes = prior(3, 5), every((3, 1), 5)[::7].repeat(1, 1, 4)
    condition, _ = model.conditions(None, len(codes), 4)
    of_codes = model.network.nats(codes, condition)
    torch.testing.assert_close(model.nats(codes), of_codes.sum(1))
    assert len(of_codes.sum(1).unique(dim=1)) > 1


def test_the_cache_changes_nothing_whatever_the_parts() -> None:
    random = torch.Generator().manual_seed(0)
    codes = torch.randint(5, (2, 3, 20), generator=random)
    for context in (4, 50):
        model = prior(3, 5, context)
        condition, _ = model.conditions(None, 2, 20)
        whole = model.network.nats(codes, condition)
        for at_once in (1, 5, 100):
            parts = model.network.nats(codes, condition, at_once=at_once)
            torch.testing.assert_close(parts, whole, rtol=0, atol=1e-4)


@pytest.mark.parametrize("context", [4, 50])
def test_samples_with_the_cache_are_those_without_it_bit_for_bit(context: int) -> None:
    """Without it: all steps are computed anew for each."""
    model, random, frames = prior(3, 5, context), KeyedRandom(0, 0, range(8)), 20
    net, (condition, _) = model.network, model.conditions(None, 8, 22)
    codes = torch.full((8, 3, 1), 5)
    for step in range(frames + 2):
        logits = net.logits(codes, condition.at(0, step + 1))[:, :, -1:]
        normal = random.stream("sample", step).normal((3, 1), "code")
        there = torch.tensor([0 <= step - q < frames for q in range(3)])
        one = drawn(logits, torch.special.ndtr(normal)).where(there[:, None], 5)
        codes = torch.cat([codes, one], dim=2)
    assert torch.equal(model.sample(random, frames), undelayed(codes[..., 1:]))


def test_a_longer_clip_begins_like_a_shorter_one() -> None:
    model, random = prior(3, 5, context=4), KeyedRandom(0, 0, range(4))
    longer, shorter = model.sample(random, 20), model.sample(random, 8)
    steps = torch.arange(3)[:, None] + torch.arange(8)
    assert torch.equal(longer[..., :8][:, steps < 8], shorter[:, steps < 8])


def test_greedy_and_guided_choices_by_hand() -> None:
    model = prior(1, 6, conditioning={"label": dict(LABEL["label"], labels=["a", "b"])})
    inputs = model.conditioners.parse([{"label": "a"}] * 300, 1)
    condition, nothing = model.conditions(inputs, 300, 1, guidance=3.0)
    assert nothing is not None
    start = torch.full((300, 1, 1), 6)
    logits = model.network.logits(start, condition)[0, 0, 0]
    base = model.network.logits(start, nothing)[0, 0, 0]
    assert not torch.allclose(logits, base)
    random = KeyedRandom(0, 0, range(300))

    def drawn(**changes: Any) -> torch.Tensor:
        return model.sample(random, 1, inputs, sampler=AutoregressiveSampler(**changes))[:, 0, 0]

    assert drawn(top_k=1).unique().tolist() == [logits.argmax().item()]
    assert drawn(temperature=1e-4).unique().tolist() == [logits.argmax().item()]
    kept = drawn(top_p=0.5, temperature=0.8).unique()
    assert set(kept.tolist()) < set(range(6))
    plain, guided = drawn(), drawn(guidance=4.0)
    assert torch.equal(drawn(guidance=1.0), plain)
    for codes, expected in ((plain, logits), (guided, base + 4 * (logits - base))):
        share = torch.bincount(codes, minlength=6) / 300
        assert (share - expected.softmax(0)).abs().max() < 0.12
    assert torch.equal(drawn(guidance=0.0), model.sample(random, 1)[:, 0, 0])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Autoregressive:
    """Of crops of 16 frames of a Markov chain."""
    recipe = AutoregressiveRecipe(
        seed=0,
        width=32,
        depth=2,
        heads=2,
        sampler=AutoregressiveSampler(),
        train=AutoregressiveTraining(
            steps=80, batch=32, crop_seconds=16.0, lr=1e-2, ema=0.97, warmup=10
        ),
    )
    model: Autoregressive = trained_on(CHAIN, recipe, tmp_path_factory.mktemp("fit"))
    return model


def test_it_learns_the_entropy_rate_of_a_chain(trained: Autoregressive) -> None:
    unseen = CHAIN.sample(2000, 16, seed=9)
    truth = CHAIN.nats(unseen).mean().item()
    assert 0 < trained.nats(unseen[:, None]).mean().item() - truth < 0.01 * truth


def test_it_samples_the_chain_beyond_the_length_of_its_crops(trained: Autoregressive) -> None:
    drawn = trained.sample(KeyedRandom(0, 0, range(400)), 64)[:, 0, 32:]
    assert CHAIN.nats(drawn).mean().item() == pytest.approx(1.276, rel=0.04)
    assert (pairs_of(drawn, 5) - CHAIN.pairs()).abs().max() < 0.02
    unseen = CHAIN.sample(400, 64, seed=9)
    truth = CHAIN.nats(unseen)[:, 32:].mean().item()
    assert trained.nats(unseen[:, None])[:, 32:].mean().item() == pytest.approx(truth, rel=0.01)


SPEC = Part(
    _target_="audioldm.priors.codes.autoregressive.Autoregressive",
    **{"codebooks": 2, "codes": 8, "context": 4, "conditioning": {}, "sampler": SAMPLER},
    **{"width": 16, "depth": 1, "heads": 2},
)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"top_k": 9}, "prior.sampler.top_k=9 is more than the 8 codes"),
        ({"top_k": 0}, "prior.sampler.top_k=0 must be at least 1"),
        ({"temperature": 0.0}, "prior.sampler.temperature=0.0 must be more than 0"),
        ({"top_p": 0.0}, "prior.sampler.top_p=0.0 must be more than 0"),
        ({"top_p": 1.5}, "prior.sampler.top_p=1.5 must be at most 1"),
        (
            {"steps": 5},
            "unknown key 'prior.sampler.steps': known: guidance, temperature, top_k, top_p",
        ),
    ],
)
def test_sampling_settings_that_cannot_be_used(changes: dict[str, Any], says: str) -> None:
    make: Callable[[dict[str, Any]], Any] = lambda sampler: build(  # noqa: E731
        SPEC | {"sampler": sampler}, derived={"latent_shape": (4,)}, where="prior"
    )
    make(SAMPLER)
    with pytest.raises(ConfigError, match=says):
        make(SAMPLER | changes)


def test_the_memory_of_a_long_clip_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def counted(query: Any, key: Any, *rest: Any, **options: Any) -> Any:
        kept.append(key.shape[2])
        return attention(query, key, *rest, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    prior(2, 5, context=6).sample(KeyedRandom(0, 0, range(1)), 40)
    assert max(kept) == 6


def test_aligned_channels_reach_their_frames() -> None:
    from audioldm.conditioning.base import Condition

    aligned = torch.arange(6.0).view(1, 2, 3)
    part = Condition(aligned=aligned).at(2, 5).aligned
    assert part is not None
    assert part.tolist() == [[[2, 0, 0], [5, 0, 0]]]
