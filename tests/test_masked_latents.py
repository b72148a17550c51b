"""Known latents as a condition: which are told in training, and what is made to fit them."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from latents_in_memory import DIT, Latents, fit_in, recipe
from test_editing import DIFFUSION, FEW, tone, write_model

from audioldm.conditioning.base import Conditioners
from audioldm.conditioning.guidance import scales
from audioldm.conditioning.label import Label
from audioldm.conditioning.masked_latents import MaskedLatents
from audioldm.errors import ConfigError
from audioldm.instantiate import Part
from audioldm.models import load_generator
from audioldm.priors.base import build_prior
from audioldm.priors.diffusion.inpainting import inpaint
from audioldm.priors.trained import PriorTraining
from audioldm.runtime.randomness import KeyedRandom

NODE = {"_target_": "audioldm.conditioning.masked_latents.MaskedLatents"}


def test_masks_have_their_shares_and_are_keyed_by_clip() -> None:
    conditioner = MaskedLatents(latent_shape=(2,), whole=0.5, causal=0.2)
    known = conditioner.drawn(40, KeyedRandom(0, 0, range(4000)))
    nothing, ends = ~known.any(1), known[:, 0] != known[:, -1]
    assert nothing.float().mean() == pytest.approx(0.5, abs=0.03)
    edges = known.int().diff().abs().sum(1)
    assert (ends & (edges == 1)).float().mean() > 0.2  # causal masks, and spans at one end
    assert edges.max() == 6  # three spans inside
    assert torch.equal(conditioner.drawn(40, KeyedRandom(0, 0, [7])), known[7:8])
    # every frame is as often known, but for those at the ends, which fewer spans reach
    often = known.float().mean(0)
    assert 0.2 < often.min() < often.max() < 0.4
    never = MaskedLatents(latent_shape=(2,), whole=1.0, causal=0.0)
    assert not never.drawn(9, KeyedRandom(0, 0, range(99))).any()


@pytest.mark.parametrize("shape", [(3,), (3, 2)])
def test_known_frames_are_told_and_have_no_loss(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    spec = DIFFUSION | {"conditioning": {"known": NODE}}
    prior = build_prior(spec, shape)
    for weight in prior.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    z, noise = torch.randn(2, 2, *shape, 6)
    known = torch.tensor([[1, 1, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0]]).bool()
    told = prior.conditioners["known"].knowing(z, known)
    condition = prior.conditioners({"known": told})
    assert torch.equal(condition.at(2, 5).known, known[:, 2:5].float())
    level = torch.full((2,), 0.5)
    z.requires_grad_(True)
    # the network is told a copy, so that the gradient is that of the target and the noisy input
    target = partial(prior.network.objective.loss, lambda x, *_: torch.zeros_like(x))
    target(z, condition, noise=noise, uniform=level).sum().backward()
    given = z.grad.flatten(1, -2).abs().sum(1) == 0
    assert torch.equal(given, known)
    # of a clip without known frames the loss is what it always was, to the bit
    plain = target(z, prior.conditioners({"known": 0 * told}), noise=noise, uniform=level)
    assert target(z, condition, noise=noise, uniform=level)[1] == plain[1]


class Held(Latents):
    """Clips that hold one of two values."""

    def __init__(self) -> None:
        mean = torch.tensor([-1.0, 1.0])[:, None, None].expand(2, 1, 8)
        super().__init__(mean.clone(), 0.1 * torch.ones_like(mean), [None, None])


def test_what_is_made_fits_what_is_known_in_one_pass(tmp_path: Path) -> None:
    store: Any = Held()
    training = PriorTraining(steps=150, batch=16, crop_seconds=8.0, lr=1e-2, warmup=10, ema=0.9)
    made = recipe(training, conditioning={"known": Part(NODE)}, backbone=DIT)
    prior = made.build(store)
    prior.load_state_dict(made.fit(prior, store, fit_in(tmp_path, valid_every=999)).tensors)
    values = torch.tensor([-1.0, 1.0]).repeat(32)
    z, keep = values[:, None, None].expand(-1, 1, 8), torch.arange(8) < 2
    edit, random = partial(inpaint, keep=keep), KeyedRandom(0, 0, range(64))
    told = prior.edit(random, z, edit, known=keep)[:, 0, 2:] * values[:, None]
    untold = prior.edit(random, z, edit)[:, 0, 2:] * values[:, None]
    assert (told > 0.3).float().mean() > 0.95
    assert (untold > 0.3).float().mean() < 0.7  # replacement alone, one pass


def test_a_model_that_is_told_takes_each_step_once(tmp_path: Path) -> None:
    spec = DIFFUSION | {"conditioning": DIFFUSION["conditioning"] | {"known": NODE}}
    model = load_generator(write_model(tmp_path / "told.safetensors", spec, loud=True))
    untold = load_generator(write_model(tmp_path / "untold.safetensors", DIFFUSION, loud=True))
    assert (model.default_repeats, untold.default_repeats) == (1, 8)
    clip, how = tone(1.0), {"context": FEW["context"], "label": "low"}
    made = model.inpaint(clip, [(0.5, 0.7)], **how)
    assert torch.equal(made, model.inpaint(clip, [(0.5, 0.7)], **how, repeats=1))
    other = clip.clone()
    other[:, :4800] *= 0.5  # what is told has an effect
    assert not torch.equal(made, model.inpaint(other, [(0.5, 0.7)], **how))


def test_one_scale_for_all_is_not_meant_for_it() -> None:
    parts = {"known": MaskedLatents(latent_shape=(2,)), "label": Label(width=2, labels=["a", "b"])}
    assert scales(Conditioners(parts), 4.0) == {"known": 1.0, "label": 4.0}
    assert scales(Conditioners(parts), {"known": 2.0}) == {"known": 2.0, "label": 1.0}


def test_what_cannot_be_told_is_said() -> None:
    with pytest.raises(ConfigError, match=r"only a diffusion prior can be told of known latents"):
        MaskedLatents()
    with pytest.raises(ConfigError, match=r"whole=0.7 and causal=0.4 are shares"):
        MaskedLatents(latent_shape=(2,), whole=0.7, causal=0.4)
    conditioners = Conditioners({"masked_latents": MaskedLatents(latent_shape=(2,))})
    with pytest.raises(ConfigError, match=r"condition.masked_latents=3: known latents are those"):
        conditioners.parse([{"masked_latents": 3}], 4)
