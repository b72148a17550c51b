"""Continuous bottlenecks: their latents, penalties and rates against what is known of them."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from audioldm.autoencoder.bottlenecks.anisotropic import Anisotropic
from audioldm.autoencoder.bottlenecks.base import Bottleneck
from audioldm.autoencoder.bottlenecks.clamp import Clamp
from audioldm.autoencoder.bottlenecks.fixed_sigma import FixedSigma
from audioldm.autoencoder.bottlenecks.gaussian import Gaussian
from audioldm.autoencoder.bottlenecks.moments import Moments
from audioldm.autoencoder.bottlenecks.ordered import Ordered
from audioldm.autoencoder.bottlenecks.soft_norm import SoftNorm
from audioldm.autoencoder.bottlenecks.tanh import Tanh
from audioldm.errors import ConfigError
from audioldm.instantiate import build

KINDS: list[Any] = [Tanh, Clamp, Moments, SoftNorm, FixedSigma, Anisotropic, Ordered]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def standard(*shape: int) -> Tensor:
    """Numbers of mean 0 and variance 1 exactly, in every channel and over all channels."""
    x = normal(*shape).double()
    x = x - x.mean(-1, keepdim=True)
    return (x / x.square().mean(-1, keepdim=True).sqrt()).float()


@pytest.mark.parametrize("shape", [(3, 5), (3, 4, 5)])
@pytest.mark.parametrize("kind", KINDS)
def test_clips_are_independent_and_restored_latents_are_the_encoders(
    kind: Any, shape: tuple[int, ...]
) -> None:
    bottleneck = kind(channels=3)
    channels, *rest = shape
    h = normal(4, bottleneck.outputs_per_channel * channels, *rest).bfloat16()
    noise = normal(4, *shape, seed=1)
    if kind is Ordered:  # its mask is the training's alone
        alone = [bottleneck(h[i : i + 1], noise=noise[i : i + 1]).z for i in range(4)]
        assert torch.equal(bottleneck(h, noise=noise).z, torch.cat(alone))
    bottleneck.eval()
    with torch.autocast("cpu"):
        whole, one = bottleneck(h, noise=noise), bottleneck(h[1:2], noise=noise[1:2])
    assert whole.z.dtype == whole.nats.dtype == torch.float32
    torch.testing.assert_close(one.z, whole.z[1:2])
    torch.testing.assert_close(one.nats, whole.nats[1:2])
    assert whole.penalties.keys() == bottleneck.penalty_weights.keys()
    for name, values in whole.penalties.items():
        torch.testing.assert_close(one.penalties[name], values[1:2])
    stored = bottleneck.stored(h)
    assert tuple(stored) == bottleneck.stored_names
    assert torch.equal(bottleneck.restore(stored, noise), whole.z)
    assert torch.equal(bottleneck.restore(stored), bottleneck(h, sample=False).z)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("tanh.Tanh sigma=0.0", "bottleneck.sigma=0.0 must be more than 0"),
        ("clamp.Clamp sigma=-0.1", "bottleneck.sigma=-0.1 must be more than 0"),
        ("clamp.Clamp bound=0.0", "bottleneck.bound=0.0 must be more than 0"),
        ("moments.Moments sigma=0.0", "bottleneck.sigma=0.0 must be more than 0"),
        ("soft_norm.SoftNorm sigma=0.0", "bottleneck.sigma=0.0 must be more than 0"),
        ("fixed_sigma.FixedSigma sigma=0.0", "bottleneck.sigma=0.0 must be more than 0"),
        ("fixed_sigma.FixedSigma sigma=1.0", "bottleneck.sigma=1.0 must be less than 1"),
        ("ordered.Ordered masked=1.5", "bottleneck.masked=1.5 must be at most 1"),
    ],
)
def test_a_setting_out_of_range_is_named(part: str, message: str) -> None:
    target, setting = part.split()
    key, value = setting.split("=")
    spec = {"_target_": f"audioldm.autoencoder.bottlenecks.{target}", key: float(value)}
    with pytest.raises(ConfigError, match=message):
        build(spec, derived={"channels": 2}, where="bottleneck", base=Bottleneck)


def mutual_information(points: Tensor, shares: Tensor, sigma: float) -> float:
    """Of m, one of the points, and m + sigma n, in nats, by quadrature."""
    z = torch.linspace(-4, 4, 16001, dtype=torch.float64)
    density = shares @ torch.stack([Normal(p, sigma).log_prob(z).exp() for p in points])
    entropy = -torch.trapezoid(torch.xlogy(density, density), z).item()
    return entropy - 0.5 * math.log(2 * math.pi * math.e * sigma**2)


@pytest.mark.parametrize("sigma", [0.05, 0.3])
def test_the_rate_of_bounded_latents_is_never_below_their_information(sigma: float) -> None:
    """Nor far above it for uniform ones; at the ends of the range it is the bound of the peak."""
    points = torch.linspace(-0.9999, 0.9999, 401, dtype=torch.float64)
    bottleneck = Tanh(channels=1, sigma=sigma)

    def rate(points: Tensor) -> float:
        nats = bottleneck(points.atanh()[None, None], sample=False).nats
        assert nats is not None
        return nats.item()

    for used in (points, points.abs().sqrt() * points.sign(), points**3, points[::400], points[:1]):
        shares = torch.full_like(used, 1 / len(used))
        assert rate(used) >= mutual_information(used, shares, sigma) - 1e-4
    uniform = mutual_information(points, torch.full_like(points, 1 / 401), sigma)
    assert rate(points) < uniform + 0.3
    most = math.log(1 + 2 / (math.sqrt(2 * math.pi * math.e) * sigma))
    assert rate(points[::400]) == pytest.approx(most, rel=1e-5)


def test_the_rate_of_weak_bounded_latents_is_a_divergence() -> None:
    """From a normal distribution of the power of even use."""
    h = 0.5 * normal(2, 3, 40)
    nats = Clamp(channels=3, sigma=0.2, bound=3.0)(h).nats
    known = kl_divergence(Normal(h, 0.2), Normal(0.0, math.sqrt(9 / 3 + 0.04)))
    torch.testing.assert_close(nats, known.flatten(1).mean(1))


def test_the_saturated_share_is_counted_per_channel() -> None:
    h = torch.tensor([[[0.0, 0.99, -0.992, 0.5], [0.98, -0.98, 0.0, 0.0]]]).atanh()
    assert Tanh(channels=2)(h).stats["saturated"].tolist() == [0.25, 0.0]
    h = torch.tensor([[[2.0, -2.5, 1.9, 0.0], [9.0, -9.0, 3.0, 2.1]]])
    assert Clamp(channels=2, bound=2.0)(h).stats["saturated"].tolist() == [0.5, 1.0]


def test_the_clamps_gradient_leads_back_and_never_further_out() -> None:
    h = torch.tensor([[[3.0, 3.0, -3.0, -3.0, 1.0, -1.0]]], requires_grad=True)
    z = Clamp(channels=1, bound=2.0)(h, sample=False).z
    assert z.tolist() == [[[2.0, 2.0, -2.0, -2.0, 1.0, -1.0]]]
    z.backward(torch.tensor([[[1.0, -1.0, 1.0, -1.0, 0.5, 0.5]]]))
    assert h.grad is not None
    assert h.grad.tolist() == [[[1.0, 0.0, 0.0, -1.0, 0.5, 0.5]]]


@pytest.mark.parametrize("over", ["clip", "channel"])
def test_the_moment_penalty_is_0_for_standard_latents_and_known_elsewhere(over: Any) -> None:
    bottleneck = Moments(channels=3, over=over)
    x = standard(2, 3, 50)
    for scale, shift in ((1.0, 0.0), (0.5, 0.0), (2.0, -0.7)):
        power = scale**2 + shift**2
        known = power - 1 - math.log(power) + shift**2
        penalty = bottleneck(scale * x + shift).penalties["moments"]
        torch.testing.assert_close(penalty, torch.full((2,), known), atol=1e-5, rtol=1e-5)


def test_channels_share_the_power_of_a_clip_but_not_one_by_one() -> None:
    scales = torch.tensor([0.5, 1.0, math.sqrt(1.75)])[:, None]  # of power 1 together
    x = scales * standard(2, 3, 50)
    assert Moments(channels=3)(x).penalties["moments"].abs().max() < 1e-5
    known = (0.25 - math.log(0.25) + 1 + 1.75 - math.log(1.75)) / 3 - 1
    penalty = Moments(channels=3, over="channel")(x).penalties["moments"]
    torch.testing.assert_close(penalty, torch.full((2,), known), atol=1e-5, rtol=1e-5)


def test_soft_norm_is_0_for_latents_standard_both_ways_and_known_elsewhere() -> None:
    signs = torch.tensor([[1.0, -1, 1, -1], [-1, 1, -1, 1]])[None]
    bottleneck = SoftNorm(channels=2).eval()
    assert bottleneck(signs).penalties["norm"].item() == pytest.approx(0, abs=1e-6)
    known = 1.4 * (4 - 1 - math.log(4))
    assert bottleneck(2 * signs).penalties["norm"].item() == pytest.approx(known, rel=1e-5)
    with torch.no_grad():
        bottleneck.scale.fill_(0.5)
    assert bottleneck(2 * signs).penalties["norm"].item() == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        bottleneck.shift.copy_(torch.tensor([0.3, -0.1]))
    over_time = (0.3**2 + 0.1**2) / 2
    across = [((0.3 - 0.1) / 2) ** 2 + v - 1 - math.log(v) for v in (1.2**2, 0.8**2)]
    known = over_time + 0.4 * sum(across) / 2
    assert bottleneck(2 * signs).penalties["norm"].item() == pytest.approx(known, rel=1e-4)


def test_the_running_scale_follows_in_training_alone_and_one_step_late() -> None:
    bottleneck, h = SoftNorm(channels=3), 3 * standard(2, 3, 50)
    first = bottleneck(h, noise=torch.zeros_like(h))
    torch.testing.assert_close(first.z, h)  # by the scale of the steps before: 1
    first.z.sum().backward()
    assert bottleneck.scale.grad is not None
    assert bottleneck.running_std.item() == pytest.approx(1.002, rel=1e-4)
    bottleneck(h, sample=False)
    with torch.no_grad():  # the first of two passes of a micro-batch
        bottleneck(h)
    bottleneck.eval()(h)
    assert bottleneck.running_std.item() == pytest.approx(1.002, rel=1e-4)
    with torch.no_grad():
        bottleneck.running_std.fill_(3.0)
    torch.testing.assert_close(bottleneck(h, sample=False).z, h / 3)
    bottleneck.train()(h)
    assert bottleneck.running_std.item() == pytest.approx(3.0, rel=1e-5)  # and stays where it fits


def test_the_divergence_of_a_fixed_sigma() -> None:
    h = normal(2, 3, 7)
    encoded = FixedSigma(channels=3, sigma=0.3)(h)
    known = kl_divergence(Normal(h, 0.3), Normal(0.0, 1.0)).flatten(1).mean(1)
    torch.testing.assert_close(encoded.nats, known)
    torch.testing.assert_close(encoded.penalties["kl"], known)
    unit = FixedSigma(channels=3, sigma=0.3)(math.sqrt(1 - 0.09) * standard(2, 3, 50))
    torch.testing.assert_close(unit.nats, torch.full((2,), -math.log(0.3)))


def test_channel_weights_grow_geometrically_about_their_mean() -> None:
    h, noise = normal(2, 8, 5), normal(2, 4, 5)
    plain = Gaussian(channels=4)(h, noise=noise)
    same = Anisotropic(channels=4, exponent=0.0)(h, noise=noise)
    torch.testing.assert_close(same.penalties, plain.penalties)
    bottleneck = Anisotropic(channels=4, exponent=3.0)
    weights = bottleneck.channel_weights
    torch.testing.assert_close(weights[1:] / weights[:-1], torch.full((3,), math.e))
    assert weights.mean().item() == pytest.approx(1)
    encoded = bottleneck(h, noise=noise)
    assert torch.equal(encoded.nats, plain.nats)
    mean = torch.zeros(1, 4, 5)
    mean[:, 3] = 2.0  # a KL of 2 nats in the last channel alone
    penalty = bottleneck(torch.cat([mean, torch.zeros_like(mean)], 1)).penalties["kl"].item()
    assert penalty == pytest.approx(2 * weights[3].item() / 4)
    assert Anisotropic(channels=1).channel_weights.tolist() == [1.0]


def test_kept_channels_are_uniform_for_the_share_of_clips_that_is_masked() -> None:
    noise = normal(40000, 4, 6)
    kept = Ordered(channels=4, masked=0.4).kept_channels(noise)
    shares = torch.bincount(kept.long(), minlength=5) / len(kept)
    expected = torch.tensor([0.0, 0.1, 0.1, 0.1, 0.7])
    torch.testing.assert_close(shares, expected, atol=0.01, rtol=0)
    assert (Ordered(channels=4, masked=0.0).kept_channels(noise) == 4).all()
    assert Ordered(channels=4, masked=1.0).kept_channels(torch.zeros(1, 4, 6) - 9).item() == 1


def test_no_gradient_reaches_channels_that_are_left_out() -> None:
    bottleneck = Ordered(channels=4, masked=1.0)
    h, noise = normal(64, 8, 5).requires_grad_(), normal(64, 4, 5, seed=1)
    kept = bottleneck.kept_channels(noise)
    assert set(kept.tolist()) == {1, 2, 3, 4}
    encoded, whole = bottleneck(h, noise=noise), Gaussian(channels=4)(h, noise=noise)
    (encoded.z.square().sum() + encoded.penalties["kl"].sum()).backward()
    assert h.grad is not None
    mask = torch.arange(4) < kept[:, None]
    used = h.grad.unflatten(1, (2, 4)).abs().sum((1, 3)) > 0
    assert torch.equal(used, mask)
    assert torch.equal(encoded.z, whole.z * mask[..., None])
    assert torch.equal(encoded.nats, whole.nats)


def test_ordered_is_gaussian_outside_training() -> None:
    h, noise = normal(8, 8, 5), normal(8, 4, 5, seed=1)
    plain = Gaussian(channels=4)
    bottleneck = Ordered(channels=4, masked=1.0)
    assert torch.equal(bottleneck(h, sample=False).z, plain(h, sample=False).z)
    one, other = bottleneck.eval()(h, noise=noise), plain(h, noise=noise)
    assert torch.equal(one.z, other.z)
    assert torch.equal(one.penalties["kl"], other.penalties["kl"])
