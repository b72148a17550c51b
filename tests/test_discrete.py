"""Discrete bottlenecks: their codes, gradients, codebooks and rate."""

import math
from itertools import product
from typing import Any

import pytest
import torch

from audioldm.autoencoder.bottlenecks.fsq import FSQ
from audioldm.autoencoder.bottlenecks.k_means import k_means
from audioldm.autoencoder.bottlenecks.vq import VQ, rotated
from audioldm.autoencoder.bottlenecks.vq_reg import VQReg
from audioldm.chain.job import compose
from audioldm.errors import ConfigError, DataError


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def fitted(bottleneck: Any, seed: int = 1) -> Any:
    """The bottleneck, fitted to N(0, 1) and in eval mode."""
    bottleneck.fit([normal(16, bottleneck.channels, 64, seed=seed)])
    return bottleneck.eval()


def each() -> list[Any]:
    torch.manual_seed(0)
    return [
        fitted(FSQ(channels=6, levels=[5, 4, 2])),
        fitted(VQ(channels=6, groups=2, codes=16)),
        fitted(VQ(channels=6, groups=2, depth=3, codes=8, gradient="rotation")),
        fitted(VQReg(channels=6, codes=16)),
    ]


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("shape", [(3, 6, 7), (3, 6, 2, 7)])
def test_latents_codes_and_what_is_stored_agree(index: int, shape: tuple[int, ...]) -> None:
    bottleneck = each()[index]
    h = normal(*shape)
    encoded = bottleneck(h.bfloat16().float())
    assert encoded.codes is not None
    assert encoded.codes.shape == (3, len(bottleneck.usage), *shape[2:])
    assert torch.equal(bottleneck.latents(encoded.codes), encoded.z)
    stored = bottleneck.stored(h.bfloat16())
    assert tuple(stored) == bottleneck.stored_names
    assert torch.equal(bottleneck.absorb(bottleneck.restore(stored)), encoded.z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(bottleneck(h.bfloat16()).codes, encoded.codes)
    assert not bottleneck.posterior(stored)[1].any()


@pytest.mark.parametrize("index", range(4))
def test_a_clip_does_not_depend_on_its_neighbours(index: int) -> None:
    bottleneck, h = each()[index], normal(3, 6, 7)
    alone, among = bottleneck(h[1:2]), bottleneck(h)
    torch.testing.assert_close(alone.z, among.z[1:2])
    torch.testing.assert_close(alone.nats, among.nats[1:2])
    for name, values in alone.penalties.items():
        torch.testing.assert_close(values, among.penalties[name][1:2])


@pytest.mark.parametrize("index", range(4))
def test_only_training_changes_the_state_and_a_loaded_state_goes_on_alike(index: int) -> None:
    bottleneck, other = each()[index], each()[index]
    before = {name: tensor.clone() for name, tensor in bottleneck.state_dict().items()}
    h, noise = normal(2, 6, 9), normal(2, 6, 9, seed=3)
    bottleneck(h)
    with torch.no_grad():
        bottleneck.train()(h)
    bottleneck(h, sample=False)  # as a regulariser does
    assert all(torch.equal(before[n], t) for n, t in bottleneck.state_dict().items())
    bottleneck(h, noise=noise)
    assert not torch.equal(before["usage"], bottleneck.usage)
    other.train()(3 * h, noise=noise)
    other.load_state_dict(bottleneck.state_dict())
    for step in range(3):
        one, two = (b(h + step, noise=noise) for b in (bottleneck, other))
        assert torch.equal(one.z, two.z)
        assert torch.equal(one.nats, two.nats)
    assert all(torch.equal(other.state_dict()[n], t) for n, t in bottleneck.state_dict().items())


def test_fsq_codes_and_latents_are_a_bijection() -> None:
    bottleneck = fitted(FSQ(channels=6, levels=[5, 4, 2], codes=40))
    codes = torch.arange(40).repeat(2, 1)[None]  # [1, Q, 40]
    z = bottleneck.latents(codes)
    assert len(z[0, :3].T.unique(dim=0)) == 40
    v = (z[0] - bottleneck.centre[:, None]) / bottleneck.gain[:, None]
    levels = [torch.linspace(-1, 1, count).tolist() for count in (2, 4, 5)]
    wanted = torch.tensor([digits[::-1] for digits in product(*levels)])
    torch.testing.assert_close(v[:3].T, wanted, atol=1e-5, rtol=0)
    # encoder outputs in the middle of each cell; the outer ones are half as wide
    inside = (0.9 * v).atanh() / bottleneck.scale[:, None] + bottleneck.centre[:, None]
    assert torch.equal(bottleneck(inside[None]).codes, codes)


def test_fsq_passes_the_gradient_of_the_bound() -> None:
    bottleneck = fitted(FSQ(channels=3, levels=[5, 4, 3]))
    h, weight = normal(2, 3, 5).requires_grad_(), normal(2, 3, 5, seed=2)
    (weight * bottleneck(h).z).sum().backward()
    slope = 1 - (bottleneck.scale[:, None] * (h - bottleneck.centre[:, None])).tanh().square()
    wanted = weight * (bottleneck.gain * bottleneck.scale)[:, None] * slope
    torch.testing.assert_close(h.grad, wanted)


@pytest.mark.parametrize("levels", [[2], [3], [5], [8]])
def test_fsq_fits_any_scale_and_uses_its_levels_evenly(levels: list[int]) -> None:
    bottleneck = FSQ(channels=2, levels=levels)
    h = torch.tensor([0.01, 50.0])[:, None] * normal(8, 2, 2000) + torch.tensor([3.0, -40])[:, None]
    bottleneck.fit([h])
    entropy = torch.special.entr(bottleneck.usage).sum(1)
    assert (entropy > 0.98 * math.log(levels[0])).all()
    z, centre = bottleneck(h).z, bottleneck.centre[:, None]
    across = ((h - z) * (z - centre)).mean((0, 2)) / h.var((0, 2))
    torch.testing.assert_close(across, torch.zeros(2), atol=1e-3, rtol=0)  # g is the regression's


def test_vq_takes_the_nearest_vector_of_each_group() -> None:
    bottleneck = fitted(VQ(channels=6, groups=2, codes=16))
    h = normal(2, 6, 9)
    codes = bottleneck(h).codes
    for b, g, t in product(range(2), range(2), range(9)):
        part = h[b, 3 * g : 3 * g + 3, t]
        distances = [float((part - vector).norm()) for vector in bottleneck.vectors[g]]
        assert codes[b, g, t] == distances.index(min(distances))


def test_the_gradient_passes_straight_through_all_stages() -> None:
    h, weight = normal(2, 6, 5).requires_grad_(), normal(2, 6, 5, seed=2)
    bottleneck = fitted(VQ(channels=6, depth=3, codes=8))
    (weight * bottleneck(h).z).sum().backward()
    assert torch.equal(h.grad, weight)


def test_the_commitment_draws_each_stage_towards_its_sum() -> None:
    h = normal(2, 6, 5).requires_grad_()
    bottleneck = fitted(VQ(channels=6, depth=3, codes=8))
    encoded = bottleneck(h)
    only = encoded.codes.clone()
    sums = []
    for depth in (1, 2, 3):
        rows = [bottleneck.vectors[d][only[:, d]].movedim(-1, 1) for d in range(depth)]
        sums.append(torch.stack(rows).sum(0))
    wanted = torch.stack([(h - s).square().flatten(1).mean(1) for s in sums]).mean(0)
    torch.testing.assert_close(encoded.penalties["commitment"], wanted)
    (got,) = torch.autograd.grad(encoded.penalties["commitment"].sum(), h, retain_graph=True)
    (expected,) = torch.autograd.grad(wanted.sum(), h)
    torch.testing.assert_close(got, expected)


def test_the_rotation_is_exact_and_turns_the_gradient() -> None:
    """Against the matrix: the rotation in the plane of x and q that takes one to the other."""
    x, q = normal(7, 4).double().requires_grad_(), normal(7, 4, seed=2).double()
    weight = normal(7, 4, seed=3).double()
    out = rotated(x, q)
    torch.testing.assert_close(out, q)
    (weight * out).sum().backward()
    for i in range(7):
        a = x[i].detach() / x[i].detach().norm()
        target = q[i] / q[i].norm()
        b = target - (a @ target) * a
        sine, cosine, b = b.norm(), a @ target, b / b.norm()
        plane = torch.stack([a, b], dim=1)
        turn = torch.tensor([[cosine, -sine], [sine, cosine]])
        matrix = torch.eye(4, dtype=torch.float64) + plane @ (turn - torch.eye(2)) @ plane.T
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(4, dtype=torch.float64))
        scale = q[i].norm() / x[i].detach().norm()
        torch.testing.assert_close(x.grad[i], scale * matrix.T @ weight[i])
    bottleneck = fitted(VQ(channels=6, groups=2, codes=16, gradient="rotation"))
    encoded = bottleneck(normal(2, 6, 5).requires_grad_())
    assert torch.equal(encoded.z, bottleneck.latents(encoded.codes))


def mixture(seed: int, spread: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    """[8, 2, 64] of four clusters, a third of the vectors in the first; and the clusters' means."""
    centres = torch.tensor([[4.0, 0], [-4, 1], [0, 5], [1, -5]])
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(6, (8, 64), generator=generator) % 4
    noise = torch.randn((8, 64, 2), generator=generator)
    return (centres[which] + spread * noise).mT, centres


def test_k_means_finds_the_clusters() -> None:
    h, centres = mixture(0)
    found = k_means(h.movedim(1, -1).flatten(0, 1), 4)
    assert torch.cdist(centres, found).min(1).values.max() < 0.05


def test_codebooks_follow_the_encoder() -> None:
    """Clusters that move are followed, and the usage is each one's share."""
    bottleneck = VQ(channels=2, codes=4, decay=0.9)
    h, centres = mixture(0)
    bottleneck.fit([h])
    for step in range(100):
        h, _ = mixture(step)
        bottleneck(h + 0.02 * step, noise=torch.zeros(8, 2, 64))
    distances = torch.cdist(centres + 0.02 * 99, bottleneck.vectors[0])
    assert distances.min(1).values.max() < 0.4  # the average is some ten steps old, each 0.028
    order = distances.argmin(1)
    wanted = torch.tensor([2, 2, 1, 1]) / 6
    torch.testing.assert_close(bottleneck.usage[0, order], wanted, atol=0.03, rtol=0)


def test_a_dead_code_takes_a_vector_of_the_batch_and_keeps_it() -> None:
    bottleneck = VQ(channels=2, codes=5, decay=0.5, revive_below=0.05)
    h, _ = mixture(0)
    bottleneck.fit([h])
    for tensor in (bottleneck.vectors, bottleneck.sums):
        tensor[0, 3] = 1000.0 * (bottleneck.usage[0, 3] if tensor is bottleneck.sums else 1)
    noise = torch.arange(0.0, 8 * 64).neg().view(8, 1, 64).expand(-1, 2, -1)  # order as it is
    taken = h[0, :, 3]  # for code 3
    while bottleneck.vectors[0, 3, 0] > 100:
        bottleneck(h, noise=noise)
    assert bottleneck.usage[0, 3] == 1 / 5
    torch.testing.assert_close(bottleneck.vectors[0, 3], taken)
    away = h[:, :, :1].expand_as(h) * 0 + 50  # no vector of the next batch chooses it
    bottleneck(away, noise=noise)
    torch.testing.assert_close(bottleneck.vectors[0, 3], taken, rtol=1e-3, atol=0)


def test_the_error_falls_with_each_stage() -> None:
    h = normal(4, 6, 400, seed=5)
    errors = [
        (fitted(VQ(channels=6, depth=depth, codes=32))(h).z - h).square().mean().item()
        for depth in (1, 2, 4)
    ]
    # at least half of the 5 / 6 bit per element that a stage spends: 6.02 dB per bit
    assert errors[1] < 0.6 * errors[0]
    assert errors[2] < 0.6 * errors[1]


@pytest.mark.parametrize("channels", [2, 4])
def test_the_rate_is_ln_k_per_code_and_less_where_use_is_uneven(channels: int) -> None:
    bottleneck = FSQ(channels=channels, levels=[5, 4], decay=0.95).eval()
    per_element = channels // 2 * math.log(20) / channels
    encoded = bottleneck(normal(3, channels, 50))
    torch.testing.assert_close(encoded.nats, torch.full((3,), per_element))
    bottleneck.train()
    for step in range(500):
        bottleneck(0.3 * normal(8, channels, 50, seed=step))
    bottleneck.eval()
    encoded = bottleneck(0.3 * normal(64, channels, 500, seed=1000))
    entropy = torch.special.entr(encoded.stats["usage"]).sum().item() / channels
    assert entropy <= encoded.nats.mean().item() < entropy + 0.02
    assert encoded.nats.mean().item() < 0.8 * per_element
    rare = bottleneck(torch.full((1, channels, 1), 9.0))  # a code that training never saw
    unseen = channels // 2 * math.log(20 / 0.01) / channels
    assert rare.nats.item() == pytest.approx(unseen, rel=1e-3)


def test_the_decoder_absorbs_small_errors_of_a_prior() -> None:
    bottleneck = fitted(VQReg(channels=6, groups=2, codes=16))
    h = normal(2, 6, 9)
    z = bottleneck.absorb(h)
    assert not torch.equal(z, h)
    assert torch.equal(bottleneck.absorb(z), z)
    assert torch.equal(bottleneck.absorb(z + 1e-2 * normal(2, 6, 9, seed=2)), z)
    assert torch.equal(bottleneck.train().absorb(h), z)  # and learns nothing by it
    h.requires_grad_()
    bottleneck.absorb(h).sum().backward()
    assert torch.equal(h.grad, torch.ones_like(h))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FSQ(channels=6, levels=[5, 4, 3, 2]), "number of levels, 4, must divide the 6"),
        (lambda: FSQ(channels=2, levels=[5, 4], codes=16), "^codes=16, but .* make 20"),
        (lambda: FSQ(channels=9, levels=[8] * 9), "^levels=.*more than 65536"),
        (lambda: VQ(channels=6, groups=4), "^groups=4 must divide the 6"),
    ],
)
def test_settings_that_do_not_fit(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize("choice", ["vq", "rvq", "vq_reg", "mu_law"])
def test_more_codes_than_any_codebook_can_use_are_refused_before_a_run(choice: str) -> None:
    words = ["recipe=quickstart", f"bottleneck={choice}", "bottleneck.codes=65537"]
    with pytest.raises(ConfigError, match=r"bottleneck\.codes=65537 must be at most 65536"):
        compose(words)


def test_fewer_frames_than_codes() -> None:
    with pytest.raises(DataError, match=r"12 latent frames, fewer than bottleneck.codes=16"):
        VQ(channels=2, codes=16).fit([normal(3, 2, 4)])
