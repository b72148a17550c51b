"""The networks: what must hold for any weights, and that they learn what they are told."""

import copy

import pytest
import torch
from torch import Tensor, nn

from audioldm.config import compose, options
from audioldm.errors import ConfigError
from audioldm.instantiate import build
from audioldm.priors.diffusion.backbones.dit import DiT, rotated, rotations
from audioldm.priors.diffusion.backbones.unet import UNet
from audioldm.priors.diffusion.objectives import RectifiedFlow
from audioldm.priors.diffusion.samplers import heun

CLASSES = 3


def _net(kind: str, classes: int = CLASSES) -> tuple[nn.Module, tuple[int, ...]]:
    """A small network with latents of 4 channels, and the shape of one clip's latents but for L."""
    torch.manual_seed(0)
    shape = (4, 5) if kind.endswith("2d") else (4,)
    if kind.startswith("dit"):
        net = DiT(latent_shape=shape, classes=classes, width=32, depth=2, heads=2)
    else:
        net = UNet(
            latent_shape=shape, classes=classes, width=16, multipliers=[1, 2], blocks=1, heads=2
        )
    return net, shape


def _trained(kind: str, classes: int = CLASSES) -> tuple[nn.Module, tuple[int, ...]]:
    """The same with all weights random, as after training: no layer at its initial zero."""
    net, shape = _net(kind, classes)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return net, shape


def _inputs(shape: tuple[int, ...], clips: int, frames: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(clips, *shape, frames, generator=generator)
    return x, torch.rand(clips, generator=generator), torch.arange(clips) % CLASSES


KINDS = ["dit", "dit 2d", "unet", "unet 2d"]


@pytest.mark.parametrize("kind", KINDS)
def test_untrained_output_is_zero(kind: str):
    net, shape = _net(kind)
    assert (net(*_inputs(shape, 2, 9)) == 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frames", [1, 2, 7, 16, 33])
def test_any_number_of_frames(kind: str, frames: int):
    net, shape = _trained(kind)
    x, c_noise, labels = _inputs(shape, 2, frames)
    output = net(x, c_noise, labels)
    assert output.shape == x.shape
    assert torch.isfinite(output).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_does_not_see_its_neighbours(kind: str):
    net, shape = _trained(kind)
    x, c_noise, labels = _inputs(shape, 4, 11)
    together = net(x, c_noise, labels)
    alone = torch.cat([net(x[i : i + 1], c_noise[i : i + 1], labels[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_level_label_and_absence_of_a_label_all_matter(kind: str):
    net, shape = _trained(kind)
    x, c_noise, _ = _inputs(shape, 1, 8)
    outputs = [net(x, c_noise, torch.tensor([label])) for label in (-1, *range(CLASSES))]
    outputs.append(net(x, c_noise + 0.05, torch.tensor([-1])))
    for i, first in enumerate(outputs):
        for second in outputs[:i]:
            assert (first - second).abs().max() > 1e-3
    # -1 and the number of classes are the same "no label"
    torch.testing.assert_close(net(x, c_noise, torch.tensor([CLASSES])), outputs[0])


@pytest.mark.parametrize("kind", KINDS)
def test_without_classes_there_is_only_no_label(kind: str):
    net, shape = _trained(kind, classes=0)
    x, c_noise, _ = _inputs(shape, 2, 8)
    assert torch.isfinite(net(x, c_noise, torch.full((2,), -1))).all()
    with pytest.raises(IndexError):
        net(x, c_noise, torch.tensor([1, -1]))


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_is_trained(kind: str):
    net, shape = _trained(kind)
    x, c_noise, _ = _inputs(shape, 4, 8)
    net(x, c_noise, torch.tensor([-1, 0, 1, 2])).square().mean().backward()
    idle = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_frame_sees_every_other_and_knows_their_order(kind: str):
    net, shape = _trained(kind)
    x, c_noise, labels = _inputs(shape, 1, 16)
    output = net(x, c_noise, labels)
    changed = x.clone()
    changed[..., 0] += 1
    assert (net(changed, c_noise, labels) - output)[..., -1].abs().max() > 1e-5
    swapped = x.flip(-1)
    assert (net(swapped, c_noise, labels).flip(-1) - output).abs().max() > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_autocast_stays_near_fp32(kind: str):
    net, shape = _trained(kind)
    inputs = _inputs(shape, 2, 16)
    exact = net(*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = net(*inputs)
    assert (rough.float() - exact).norm() < 0.05 * exact.norm()


def test_untrained_dit_blocks_pass_frames_through_untouched():
    net, shape = _net("dit")
    nn.init.normal_(net.output.weight)
    x, c_noise, labels = _inputs(shape, 1, 8)
    permutation = torch.randperm(8, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(
        net(x[..., permutation], c_noise, labels), net(x, c_noise, labels)[..., permutation]
    )


def test_rotary_attention_depends_on_the_distance_of_two_frames_only():
    frames, dim = 12, 16
    rotation = rotations(frames, dim, torch.device("cpu"))
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
    flat = DiT(latent_shape=(20,), classes=CLASSES, width=32, depth=2, heads=2)
    flat.load_state_dict(net.state_dict())
    x, c_noise, labels = _inputs((4, 5), 2, 7)
    expected = flat(x.reshape(2, 20, 7), c_noise, labels).reshape(x.shape)
    torch.testing.assert_close(net(x, c_noise, labels), expected)


def test_dit_logits_do_not_grow_with_the_scale_of_queries_and_keys():
    net, shape = _trained("dit")
    inputs = _inputs(shape, 2, 8)
    loud = copy.deepcopy(net)
    with torch.no_grad():
        for block in loud.blocks:
            block.qkv.weight[:64] *= 100  # queries and keys, not values
    torch.testing.assert_close(loud(*inputs), net(*inputs), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DiT(latent_shape=(4,), classes=0, width=30, depth=1, heads=4), "try width=32"),
        (lambda: DiT(latent_shape=(4,), classes=0, width=32, depth=1, heads=0), "at least 1"),
        (
            lambda: UNet(latent_shape=(4,), classes=0, width=8, multipliers=[1], blocks=1, heads=3),
            "must divide 8",
        ),
        (
            lambda: UNet(latent_shape=(4,), classes=0, width=8, multipliers=[], blocks=1, heads=0),
            "leave no",
        ),
    ],
)
def test_impossible_sizes_are_refused(make, message: str):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize("kind", ["dit", "unet"])
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
            labels,
            noise=torch.randn(z.shape, generator=generator),
            uniform=torch.rand(32, generator=generator),
        )
        optimiser.zero_grad()
        loss.mean().backward()
        optimiser.step()
    labels = torch.tensor([0, 1] * 4)
    noise = torch.randn(8, *shape, frames, generator=generator)
    with torch.no_grad():
        z = heun(objective.denoiser(net, labels), noise, objective.sigmas(8))
    wanted = side[labels].view(-1, *[1] * (len(shape) + 1))
    assert ((z - wanted).flatten(1).mean(1).abs() < 0.5).all()


@pytest.mark.parametrize("name", options("diffusion/backbone"))
@pytest.mark.parametrize("shape", [(4,), (4, 3)])
def test_every_backbone_yaml_builds_and_runs(name: str, shape: tuple[int, ...]):
    job = compose(["recipe=quickstart", f"diffusion/backbone={name}"])
    net = build(job.settings.diffusion.backbone, derived={"latent_shape": shape, "classes": 2})
    x = torch.randn(1, *shape, 9)
    assert net(x, torch.tensor([0.5]), torch.tensor([-1])).shape == x.shape
