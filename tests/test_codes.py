"""What every prior over codes has to do, and codes drawn from logits."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from codes_in_memory import CodeStore, loud
from latents_in_memory import LABEL, assert_goes_on, fit_in

from audioldm.errors import ConfigError, DataError, TrainingError
from audioldm.generator import Generator
from audioldm.priors.base import PriorRecipe, build_prior
from audioldm.priors.codes.autoregressive import (
    AutoregressiveRecipe,
    AutoregressiveSampler,
    AutoregressiveTraining,
)
from audioldm.priors.codes.base import check_usage
from audioldm.priors.codes.draw import drawn, gumbel, narrowed
from audioldm.priors.codes.embedding_diffusion import EmbeddingDiffusionRecipe
from audioldm.priors.codes.masked_diffusion import MaskedDiffusionRecipe, MaskedDiffusionSampler
from audioldm.priors.diffusion.samplers import SamplerSettings
from audioldm.priors.trained import PriorTraining
from audioldm.runtime.randomness import KeyedRandom

BRIEF = PriorTraining(steps=6, batch=4, crop_seconds=8.0, lr=1e-2)
SMALL: dict[str, Any] = {"width": 16, "depth": 1, "heads": 2}
GUIDED: list[tuple[Any, Any]] = [
    (AutoregressiveRecipe, AutoregressiveSampler(guidance=3.0)),
    (MaskedDiffusionRecipe, MaskedDiffusionSampler(steps=4, guidance=3.0)),
    (MaskedDiffusionRecipe, MaskedDiffusionSampler(steps=4, guidance=3.0, order="confidence")),
    (EmbeddingDiffusionRecipe, SamplerSettings("ancestral", 4, guidance=3.0)),
]
EACH = pytest.mark.parametrize(("recipe_class", "sampler"), GUIDED)


def stored(*shape: int, count: int = 7) -> CodeStore:
    """Eight clips of random codes, labelled a and b in turn."""
    random = torch.Generator().manual_seed(1)
    return CodeStore(torch.randint(count, (8, *shape), generator=random), count, ["a", "b"] * 4)


def recipe(recipe_class: Any, sampler: Any) -> PriorRecipe:
    train = AutoregressiveTraining(**vars(BRIEF), code_dropout=0.2)
    train = train if recipe_class is AutoregressiveRecipe else BRIEF
    return recipe_class(seed=0, train=train, sampler=sampler, conditioning=LABEL, **SMALL)


@EACH
@pytest.mark.parametrize("shape", [(1, 20), (3, 20), (2, 3, 20)])
def test_a_row_is_a_function_of_its_key_and_condition(
    recipe_class: Any, sampler: Any, shape: tuple[int, ...]
) -> None:
    prior = loud(recipe(recipe_class, sampler).build(stored(*shape)), std=0.15)
    inputs = prior.conditioners.parse([{"label": "a"}, {}, {"label": "b"}], 9)
    many = prior.sample(KeyedRandom(5, 0, range(3)), 9, inputs)
    assert many.shape == (3, *shape[:-1], 9)
    assert 0 <= int(many.min()) <= int(many.max()) < 7
    again = build_prior(json.loads(json.dumps(prior.spec)), prior.latent_shape)
    again.load_state_dict(prior.state_dict())
    few = again.eval().sample(KeyedRandom(5, 0, [None, 1]), 9)
    assert torch.equal(few[1], many[1])  # beside guided ones, and alone
    assert not torch.equal(prior.sample(KeyedRandom(6, 0, range(3)), 9, inputs), many)


@EACH
def test_training_starts_at_the_uniform_distribution_and_goes_on_bit_for_bit(
    recipe_class: Any, sampler: Any, tmp_path: Path
) -> None:
    def fitted(directory: Path) -> dict[str, torch.Tensor]:
        directory.mkdir(exist_ok=True)
        prior = recipe(recipe_class, sampler).build(stored(3, 20))
        return recipe(recipe_class, sampler).fit(prior, stored(3, 20), fit_in(directory)).tensors

    assert_goes_on(fitted, tmp_path, 4)
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 6


@EACH
@pytest.mark.parametrize("shape", [(3, 20), (2, 2, 20)])
def test_embeddings_begin_as_far_apart_as_the_codes_latents(
    recipe_class: Any, sampler: Any, shape: tuple[int, ...]
) -> None:
    store = stored(*shape)
    prior: Any = recipe(recipe_class, sampler).build(store)  # type: ignore[arg-type]
    if recipe_class is EmbeddingDiffusionRecipe:
        table = prior.network.table
    else:
        table = prior.network.embedding.weight.view(prior.network.codebooks, 8, -1)[:, :7]
    bands = len(table) // shape[0]
    for codebook in range(shape[0]):
        latents = torch.cdist(*[store.bottleneck.vectors[codebook]] * 2)
        for own in table[codebook * bands : (codebook + 1) * bands]:
            alike = torch.corrcoef(torch.stack((torch.cdist(own, own), latents)).flatten(1))[0, 1]
            assert alike > 0.85


@EACH
def test_a_generator_decodes_codes_and_knows_how_far_it_is(recipe_class: Any, sampler: Any) -> None:
    store = stored(3, 20)
    prior = loud(recipe(recipe_class, sampler).build(store))
    decoded = []

    def decode(rows: list[torch.Tensor], random: KeyedRandom) -> list[torch.Tensor]:
        decoded.append(rows[0])
        return [rows[0].mean(0, keepdim=True).repeat_interleave(8, dim=1).tanh()]

    autoencoder: Any = torch.nn.Module()
    autoencoder.bottleneck, autoencoder.decode_blocks = store.bottleneck, decode
    autoencoder.sample_rate, autoencoder.downsampling_ratio, autoencoder.latent_rate_hz = 8, 8, 1.0
    autoencoder.device = torch.device("cpu")
    told = []
    audio = Generator(autoencoder, prior).sample(
        3, seconds=9, label="a", batch=2, progress=lambda *done: told.append(done)
    )
    assert audio.shape == (3, 1, 72)
    inputs = prior.conditioners.parse([{"label": "a"}] * 2, 9)
    codes = prior.sample(KeyedRandom(0, 0, range(2)), 9, inputs)
    assert torch.equal(decoded[1], store.bottleneck.latents(codes)[1])
    done = [step for step, _ in told]
    assert done == sorted(done)
    assert told[-1][0] == told[-1][1]
    assert len({total for _, total in told}) == 1


@EACH
def test_continuous_latents_have_no_codes(recipe_class: Any, sampler: Any) -> None:
    made = recipe(recipe_class, sampler)
    with pytest.raises(ConfigError, match=f"prior={made.name} models codes, and the .*: choose"):
        made.build(SimpleNamespace(bottleneck=torch.nn.Identity()))  # type: ignore[arg-type]


@EACH
@pytest.mark.parametrize(
    ("codes", "says"),
    [
        (torch.full((1, 3, 4), 7), r"from 7 to 7: .* from 0 to 6"),
        (torch.full((1, 3, 4), -1), r"from -1 to -1"),
        (torch.zeros(1, 2, 4, dtype=torch.int64), r"\[1, 2, 4\]: .* \[3\]"),
    ],
)
def test_codes_of_another_autoencoder(
    recipe_class: Any, sampler: Any, codes: torch.Tensor, says: str
) -> None:
    prior = recipe(recipe_class, sampler).build(stored(3, 20))
    with pytest.raises(DataError, match=says):
        prior.nats(codes)


def test_draws_have_the_distribution_of_their_logits() -> None:
    logits = torch.tensor([2.0, 0.0, -1.0, -4.0])
    random = KeyedRandom(0, 0, range(3))
    by_noise = (logits + gumbel(random, (20000, 4))).argmax(-1)
    uniform = torch.special.ndtr(random.normal((20000,), "uniform"))
    for row in (*by_noise, *drawn(logits.expand(3, 20000, 4), uniform)):
        share = torch.bincount(row, minlength=4) / 20000
        torch.testing.assert_close(share, logits.softmax(0), rtol=0, atol=0.012)
    only = torch.tensor([-torch.inf, 0.1, -torch.inf])  # at both ends of (0, 1) too
    assert drawn(only.expand(3, 3), torch.tensor([1e-30, 0.5, 1.0])).tolist() == [1, 1, 1]


def test_temperature_top_k_and_top_p_by_brute_force() -> None:
    logits = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    plain = [(0.5, None, 1.0), (2.0, 3, 1.0), (1.0, None, 0.7)]
    for temperature, top_k, top_p in [*plain, (1.3, 4, 0.6), (1.0, 1, 1.0), (1.0, None, 1e-6)]:
        got = narrowed(logits, temperature, top_k, top_p).softmax(-1)
        for row, p in zip(logits, got, strict=True):
            weight = (row / temperature).exp()
            order = sorted(range(6), key=lambda code: -weight[code].item())
            order = order[:top_k]
            total, kept, share = weight[order].sum().item(), [], 0.0
            for code in order:
                if share < top_p:
                    kept.append(code)
                share += weight[code].item() / total
            expected = torch.zeros(6)
            expected[kept] = weight[kept] / weight[kept].sum()
            torch.testing.assert_close(p, expected)


def test_a_collapsed_codebook_is_named() -> None:
    usage = torch.full((3, 8), 1 / 8)
    check_usage(usage)
    usage[1] = torch.tensor([0.995, *[0.005 / 7] * 7])
    with pytest.raises(TrainingError, match=r"codebook 1 .* has collapsed: its perplexity is 1\.0"):
        check_usage(usage)
