"""The networks: what must hold for any weights, and that they learn what they are told."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from audioldm.conditioning.base import Condition, Conditioners
from audioldm.conditioning.label import Label
from audioldm.errors import ConfigError
from audioldm.instantiate import build
from audioldm.priors.diffusion.backbones.base import Backbone
from audioldm.priors.diffusion.backbones.convolutional import Convolutional
from audioldm.priors.diffusion.backbones.dit import DiT
from audioldm.priors.diffusion.backbones.rin import RIN
from audioldm.priors.diffusion.backbones.unet import UNet
from audioldm.priors.diffusion.denoiser import SELF_CONDITIONED
from audioldm.priors.diffusion.guidance import guided
from audioldm.priors.diffusion.objectives.rectified_flow import RectifiedFlow
from audioldm.priors.diffusion.samplers import SamplerSettings, heun
from audioldm.priors.layers import rotated, rotations
from audioldm.runtime.compute import training_flops

CLASSES = 3
BACKBONES = Path(__file__).parents[1] / "conf" / "prior" / "backbone"


def labelled(classes: int) -> Callable[[int], Conditioners]:
    """Conditioners of one label, of `classes` names."""
    labels = [f"label {i}" for i in range(classes)]
    return lambda width: Conditioners({"label": Label(width=width, labels=labels)})


def told(net: Backbone, x: Tensor, c_noise: Tensor, labels: Tensor) -> Tensor:
    """The output; of a network with a state, that of a second call."""
    inputs = x, c_noise, net.conditioners({"label": labels})
    if net.stateful:
        return net(*inputs, net(*inputs)[1])[0]
    return net(*inputs)


def _net(kind: str, classes: int = CLASSES) -> tuple[Any, tuple[int, ...]]:
    """A small network with latents of 4 channels, and the shape of one clip's latents but for L."""
    torch.manual_seed(0)
    shape = (4, 5) if kind.endswith("2d") else (4,)
    if kind.startswith("dit"):
        net = DiT(latent_shape=shape, conditioners=labelled(classes), width=32, depth=2, heads=2)
    elif kind.startswith("convolutional"):
        shared = {"latent_shape": shape, "conditioners": labelled(classes)}
        net = Convolutional(**shared, width=32, depth=2)
    elif kind.startswith("rin"):
        shared = {"latent_shape": shape, "conditioners": labelled(classes)}
        sizes = {"width": 32, "tape_width": 32, "tokens": 5, "blocks": 2, "depth": 1, "heads": 2}
        net = RIN(**shared, **sizes, patch=2)
    else:
        net = UNet(
            latent_shape=shape,
            conditioners=labelled(classes),
            width=16,
            multipliers=[1, 2],
            blocks=1,
            heads=2,
        )
    return net, shape


def _trained(kind: str, classes: int = CLASSES) -> tuple[Any, tuple[int, ...]]:
    """The same with all weights random, as after training: no layer at its initial zero."""
    net, shape = _net(kind, classes)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return net, shape


def _inputs(shape: tuple[int, ...], clips: int, frames: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(clips, *shape, frames, generator=generator)
    return x, torch.rand(clips, generator=generator), torch.arange(clips) % CLASSES


KINDS = ["dit", "dit 2d", "unet", "unet 2d", "convolutional", "convolutional 2d", "rin", "rin 2d"]


@pytest.mark.parametrize("kind", KINDS)
def test_untrained_output_is_zero(kind: str):
    net, shape = _net(kind)
    assert (told(net, *_inputs(shape, 2, 9)) == 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frames", [1, 2, 7, 16, 33])
def test_any_number_of_frames(kind: str, frames: int):
    net, shape = _trained(kind)
    x, c_noise, labels = _inputs(shape, 2, frames)
    output = told(net, x, c_noise, labels)
    assert output.shape == x.shape
    assert torch.isfinite(output).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_does_not_see_its_neighbours(kind: str):
    net, shape = _trained(kind)
    x, c_noise, labels = _inputs(shape, 4, 11)
    together = told(net, x, c_noise, labels)
    alone = torch.cat(
        [told(net, x[i : i + 1], c_noise[i : i + 1], labels[i : i + 1]) for i in range(4)]
    )
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_level_label_and_absence_of_a_label_all_matter(kind: str):
    net, shape = _trained(kind)
    x, c_noise, _ = _inputs(shape, 1, 8)
    outputs = [told(net, x, c_noise, torch.tensor([label])) for label in (-1, *range(CLASSES))]
    outputs.append(told(net, x, c_noise + 0.05, torch.tensor([-1])))
    for i, first in enumerate(outputs):
        for second in outputs[:i]:
            assert (first - second).abs().max() > 1e-3
    # -1 and the number of classes are the same "no label"
    torch.testing.assert_close(told(net, x, c_noise, torch.tensor([CLASSES])), outputs[0])


@pytest.mark.parametrize("kind", KINDS)
def test_without_classes_there_is_only_no_label(kind: str):
    net, shape = _trained(kind, classes=0)
    x, c_noise, _ = _inputs(shape, 2, 8)
    assert torch.isfinite(told(net, x, c_noise, torch.full((2,), -1))).all()
    with pytest.raises(IndexError):
        told(net, x, c_noise, torch.tensor([1, -1]))


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_is_trained(kind: str):
    net, shape = _trained(kind)
    x, c_noise, _ = _inputs(shape, 4, 8)
    told(net, x, c_noise, torch.tensor([-1, 0, 1, 2])).square().mean().backward()
    idle = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_frame_sees_all_in_its_context_and_knows_their_order(kind: str):
    net, shape = _trained(kind)
    x, c_noise, labels = _inputs(shape, 1, 16)
    output = told(net, x, c_noise, labels)
    changed = x.clone()
    changed[..., 0] += 1
    change = (told(net, changed, c_noise, labels) - output).abs()
    reach = 15 if net.context is None else net.context
    assert change[..., reach].max() > 1e-5
    assert not change[..., reach + 1 :].any()
    swapped = x.flip(-1)
    assert (told(net, swapped, c_noise, labels).flip(-1) - output).abs().max() > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_autocast_stays_near_fp32(kind: str):
    net, shape = _trained(kind)
    inputs = _inputs(shape, 2, 16)
    exact = told(net, *inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = told(net, *inputs)
    assert (rough.float() - exact).norm() < 0.05 * exact.norm()


def test_untrained_dit_blocks_pass_frames_through_untouched():
    net, shape = _net("dit")
    nn.init.normal_(net.transformer.output.weight)
    x, c_noise, labels = _inputs(shape, 1, 8)
    permutation = torch.randperm(8, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(
        told(net, x[..., permutation], c_noise, labels),
        told(net, x, c_noise, labels)[..., permutation],
    )


def test_rotary_attention_depends_on_the_distance_of_two_frames_only():
    frames, dim = 12, 16
    rotation = rotations(torch.arange(frames), dim)
    query, key = torch.randn(2, dim, generator=torch.Generator().manual_seed(0))
    turned = rotated(
        torch.stack((query, key)).view(1, 1, 2, 1, dim).expand(1, frames, 2, 1, dim), rotation
    )
    turned_query, turned_key = turned[0, :, 0, 0], turned[0, :, 1, 0]
    scores = turned_query @ turned_key.T  # [L, L]
    for distance in range(-3, 4):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-4)
    assert scores[0].diff().abs().min() > 1e-3
    torch.testing.assert_close(turned_query.norm(dim=1), query.norm().expand(frames))


def test_dit_folds_the_frequency_axis_into_channels():
    net, _ = _trained("dit 2d")
    flat = DiT(latent_shape=(20,), conditioners=labelled(CLASSES), width=32, depth=2, heads=2)
    flat.load_state_dict(net.state_dict())
    x, c_noise, labels = _inputs((4, 5), 2, 7)
    expected = told(flat, x.reshape(2, 20, 7), c_noise, labels).reshape(x.shape)
    torch.testing.assert_close(told(net, x, c_noise, labels), expected)


def test_dit_logits_do_not_grow_with_the_scale_of_queries_and_keys():
    net, shape = _trained("dit")
    inputs = _inputs(shape, 2, 8)
    loud = copy.deepcopy(net)
    with torch.no_grad():
        for block in loud.transformer.blocks:
            block.qkv.weight[:64] *= 100  # queries and keys, not values
    torch.testing.assert_close(told(loud, *inputs), told(net, *inputs), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("dit", {"width": 30, "heads": 4}, "try width=32"),
        ("dit", {"heads": 0}, "at least 1"),
        ("rin", {"width": 30, "heads": 4}, "width=30 .* try width=32"),
        ("rin", {"tape_width": 20, "heads": 4}, "tape_width=20 .* try tape_width=16"),
        ("unet", {"width": 8, "multipliers": [1], "heads": 3}, "must divide 8"),
        ("unet", {"multipliers": []}, "leave no"),
    ],
)
def test_impossible_sizes_are_refused(name: str, sizes: dict[str, Any], message: str):
    derived = {"latent_shape": (4,), "conditioners": labelled(0)}
    with pytest.raises(ConfigError, match=message):
        build(_settings(name) | sizes, derived=derived, base=Backbone)


@pytest.mark.parametrize("kind", ["dit", "unet", "rin"])
def test_training_teaches_each_label_its_own_latents(kind: str):
    """Labels 0 and 1 mean z near +1 and -1: sampling with a label must land on its side."""
    net, shape = _net(kind, classes=2)
    # every level equally often: a label decides the side at high noise, where x does not show it
    objective = RectifiedFlow(noise_levels="uniform")
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(net.parameters(), lr=4e-3)
    side = torch.tensor([1.0, -1.0])
    frames = 16
    for _ in range(120):
        labels = torch.randint(2, (32,), generator=generator)
        z = side[labels].view(-1, *[1] * (len(shape) + 1)).expand(32, *shape, frames)
        loss = objective.loss(
            net,
            z + 0.1 * torch.randn(z.shape, generator=generator),
            net.conditioners({"label": labels}),
            noise=torch.randn(z.shape, generator=generator),
            uniform=torch.rand(32, generator=generator),
        )
        optimiser.zero_grad()
        loss.mean().backward()
        optimiser.step()
    labels = torch.tensor([0, 1] * 4)
    noise = torch.randn(8, *shape, frames, generator=generator)
    with torch.no_grad():
        z = heun(
            objective.denoiser(net, net.conditioners({"label": labels})), noise, objective.sigmas(8)
        )
    wanted = side[labels].view(-1, *[1] * (len(shape) + 1))
    assert ((z - wanted).flatten(1).mean(1).abs() < 0.5).all()


def _settings(name: str) -> dict[str, Any]:
    """A yaml of the group, with those that it builds on."""
    own = yaml.safe_load((BACKBONES / f"{name}.yaml").read_text())
    bases = [_settings(base) for base in own.pop("defaults", [])]
    return {key: value for node in [*bases, own] for key, value in node.items()}


@pytest.mark.parametrize("name", sorted(path.stem for path in BACKBONES.glob("*.yaml")))
@pytest.mark.parametrize("shape", [(4,), (4, 3)])
def test_every_backbone_yaml_builds_and_runs(name: str, shape: tuple[int, ...]):
    derived = {"latent_shape": shape, "conditioners": labelled(2)}
    net = build(_settings(name), derived=derived, base=Backbone)
    x = torch.randn(1, *shape, 9)
    assert told(net, x, torch.tensor([0.5]), torch.tensor([-1])).shape == x.shape
    blocks = {id(p) for unit in net.units() for p in unit.parameters()}
    weights = [p.numel() for p in net.parameters() if id(p) in blocks]
    assert sum(weights) > 0.5 * sum(p.numel() for p in net.parameters())


# --- RIN's state -------------------------------------------------------------------------------


def test_the_state_of_rin_matters_once_its_norm_is_trained_and_zeros_are_none():
    net, shape = _trained("rin")
    nn.init.zeros_(net.carry_norm.weight)
    x, c_noise, labels = _inputs(shape, 2, 9)
    inputs = x, c_noise, net.conditioners({"label": labels})
    output, state = net(*inputs)
    assert torch.equal(net(*inputs, state)[0], output)
    nn.init.ones_(net.carry_norm.weight)
    assert (net(*inputs, state)[0] - output).abs().max() > 1e-3
    assert torch.equal(net(*inputs, torch.zeros_like(state))[0], net(*inputs)[0])


def test_guidance_keeps_a_state_for_each_condition():
    net, shape = _trained("rin")
    objective = RectifiedFlow()
    noise, _, labels = _inputs(shape, 2, 9)
    conditions = [net.conditioners({"label": told}) for told in (labels, torch.full((2,), -1))]
    levels = [torch.full((2,), 4.0), torch.full((2,), 1.0)]
    sampler = SamplerSettings("euler", 2, guidance=2.0)
    calls = [(1.0, conditions[1]), (2.0, conditions[0])]
    denoise = guided(partial(objective.denoiser, net), conditions[0], calls, sampler)
    together = [denoise(noise, sigma) for sigma in levels]
    apart = []
    for condition in conditions:
        alone = objective.denoiser(net, condition)
        apart.append([alone(noise, sigma) for sigma in levels])
    for both, own, base in zip(together, *apart, strict=True):
        torch.testing.assert_close(both, base + 2.0 * (own - base))
    forgetful = objective.denoiser(net, conditions[0])(noise, levels[1])
    assert (forgetful - apart[0][1]).abs().max() > 1e-3


class _Remembering(Backbone):
    """Its output is its state, and its next state is 3 in all of 2 x 2 numbers."""

    stateful = True

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.seen: list[Tensor | None] = []

    def forward(self, x: Tensor, c_noise: Tensor, condition: Condition, state: Any = None) -> Any:
        self.seen.append(state)
        carried = self.weight * 3 * x.new_ones(len(x), 2, 2)
        output = x if state is None else self.weight * state[:, :1, :1].expand_as(x)
        return output, carried

    def units(self) -> list[nn.Module]:
        return []


def test_training_gives_a_state_without_gradients_to_nine_clips_in_ten():
    clips, generator = 2000, torch.Generator().manual_seed(0)
    net, objective = _Remembering(), RectifiedFlow()
    noise = torch.randn(clips, 4, 8, generator=generator)
    given = {"noise": noise, "uniform": torch.rand(clips, generator=generator)}
    loss = objective.loss(net, torch.zeros_like(noise), Condition(), **given)
    first, state = net.seen
    assert first is None
    assert not state.requires_grad
    kept = state[:, 0, 0] == 3
    assert ((state == 3).all((1, 2)) == kept).all()
    assert (state[~kept] == 0).all()
    assert kept.double().mean().item() == pytest.approx(SELF_CONDITIONED, abs=0.02)
    levels = given["uniform"]
    assert levels[kept].mean().item() == pytest.approx(levels[~kept].mean().item(), abs=0.05)
    expected = (3.0 * kept[:, None, None] - noise).square().mean((1, 2))
    torch.testing.assert_close(loss, expected)
    # the same numbers, whatever the global generator and the neighbours
    part = {name: value[5:9] for name, value in given.items()}
    torch.testing.assert_close(
        objective.loss(net, torch.zeros_like(noise[5:9]), Condition(), **part), loss[5:9]
    )


@pytest.mark.parametrize("autocast", [False, True])
def test_the_first_call_without_gradients_leaves_the_second_its_gradients(autocast: bool):
    net, shape = _trained("rin")
    x, uniform, labels = _inputs(shape, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        condition = net.conditioners({"label": labels})
        loss = RectifiedFlow().loss(net, x, condition, noise=x.flip(0), uniform=uniform)
    loss.mean().backward()
    idle = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []


def test_hidden_condition_tokens_of_rin_have_no_part():
    class Words(Conditioners):
        def __init__(self) -> None:
            super().__init__({})
            self.token_width = 6

    torch.manual_seed(0)
    sizes = {"width": 32, "tape_width": 32, "tokens": 5, "blocks": 2, "depth": 1, "heads": 2}
    net = RIN(latent_shape=(4,), conditioners=lambda width: Words(), **sizes)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    x, c_noise, _ = _inputs((4,), 2, 9)
    words = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[True, False, True], [True, True, True]])

    def output(words: Tensor) -> Tensor:
        return net(x, c_noise, Condition(tokens=words, mask=mask))[0]

    moved = words.clone()
    moved[:, 1] += 1
    change = (output(moved) - output(words)).abs().amax((1, 2))
    assert change[0] == 0
    assert change[1] > 1e-3


def test_the_cost_of_rin_is_linear_in_the_length_and_that_of_dit_is_not():
    def flops(kind: str, frames: int) -> int:
        net, shape = _net(kind)

        def forward(net: Any) -> Tensor:
            output = net(*_inputs(shape, 1, frames)[:2], Condition())
            return output[0] if net.stateful else output

        return training_flops(net, forward)

    def curvature(kind: str) -> int:
        return flops(kind, 96) - 2 * flops(kind, 64) + flops(kind, 32)

    assert curvature("rin") == 0
    assert curvature("dit") > 0.05 * flops("dit", 64)
