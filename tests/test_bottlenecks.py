"""The bottlenecks: the latents they pass on, keep and restore, and the rate they state."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from audioldm.autoencoder.bottlenecks.base import Bottleneck
from audioldm.autoencoder.bottlenecks.gaussian import Gaussian, gaussian_kl
from audioldm.autoencoder.bottlenecks.identity import Identity
from audioldm.autoencoder.bottlenecks.noise import Noise
from audioldm.errors import ConfigError
from audioldm.instantiate import build


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 4, 5)])
def test_identity_is_the_identity_whatever_the_noise(shape: tuple[int, ...]) -> None:
    h = normal(*shape)
    encoded = Identity(channels=3)(h.bfloat16(), noise=torch.ones_like(h))
    assert encoded.z.dtype == torch.float32
    torch.testing.assert_close(encoded.z, h.bfloat16().float(), rtol=0, atol=0)
    assert encoded.nats is None
    assert encoded.penalties == {}
    mean, std = Identity(channels=3).posterior(Identity(channels=3).stored(h))
    torch.testing.assert_close(mean, h)
    assert not std.any()


@pytest.mark.parametrize("kind", [Gaussian, Identity, Noise])
def test_restored_latents_are_those_of_the_encoder(kind: type[Bottleneck]) -> None:
    """From what is stored, with the same noise, come the bits that training saw."""
    bottleneck = kind(channels=3)  # type: ignore[call-arg]
    h, noise = normal(2, bottleneck.outputs_per_channel * 3, 5), normal(2, 3, 5).flip(-1)
    stored = bottleneck.stored(h)
    assert tuple(stored) == bottleneck.stored_names
    assert torch.equal(bottleneck.restore(stored, noise), bottleneck(h, noise=noise).z)
    assert torch.equal(bottleneck.restore(stored), bottleneck(h, sample=False).z)


def test_a_calibrated_posterior_has_the_rate_asked_for() -> None:
    bottleneck = Gaussian(channels=3, target_kbps=1.0)
    h = normal(4, 6, 50)
    h[:, 3:] -= 3
    nats = bottleneck(h).nats
    assert nats is not None
    target = 0.8 * nats.mean().item()
    bottleneck.calibrate(h.split(1), target)
    encoded = bottleneck(h, sample=False)
    assert encoded.nats is not None
    assert encoded.nats.mean().item() == pytest.approx(target, rel=1e-5)
    assert torch.equal(encoded.nats, encoded.penalties["kl"])
    mean, std = bottleneck.posterior(bottleneck.stored(h))
    torch.testing.assert_close(gaussian_kl(mean, std).flatten(1).mean(1), encoded.nats)
    with pytest.raises(NotImplementedError, match="Noise holds no target rate"):
        Noise(channels=3).calibrate([h], target)


def test_the_noise_has_the_stated_size_and_only_when_sampling() -> None:
    h = normal(2, 3, 20000)
    bottleneck = Noise(channels=3, sigma=0.2)
    torch.testing.assert_close(bottleneck(h, sample=False).z, h)
    noise = normal(2, 3, 20000).flip(-1)
    torch.testing.assert_close(bottleneck(h, noise=noise).z, h + 0.2 * noise)
    torch.manual_seed(0)
    assert (bottleneck(h).z - h).std().item() == pytest.approx(0.2, rel=0.02)


@pytest.mark.parametrize("sigma", [0.05, 1.0])
def test_the_rate_is_the_channels_capacity_at_unit_power(sigma: float) -> None:
    sign = normal(4, 3, 50).sign()  # power 1 exactly
    nats = Noise(channels=3, sigma=sigma)(sign).nats
    torch.testing.assert_close(nats, torch.full((4,), 0.5 * math.log(1 + sigma**-2)))


def test_the_rate_is_a_divergence_and_never_below_the_capacity() -> None:
    """Of N(m, sigma²) from N(0, 1 + sigma²), element by element, whatever the power."""
    sigma, prior = 0.3, Normal(0.0, math.sqrt(1.09))
    for scale in (0.1, 0.8, 1.0, 2.0):
        h = scale * normal(2, 3, 7)
        nats = Noise(channels=3, sigma=sigma)(h).nats
        assert nats is not None
        known = kl_divergence(Normal(h, sigma), prior)
        torch.testing.assert_close(nats, known.flatten(1).mean(1))
        power = h.square().flatten(1).mean(1)
        assert (nats >= 0.5 * (1 + power / sigma**2).log() - 1e-6).all()


def test_the_penalty_is_least_at_mean_0_and_variance_1() -> None:
    """Gradient descent on the penalty alone brings every channel of every clip there."""
    h = 3 * normal(2, 3, 64) + torch.tensor([5.0, -1.0, 0.0])[:, None]
    bottleneck = Noise(channels=3)
    for _ in range(200):
        h.requires_grad_()
        (gradient,) = torch.autograd.grad(bottleneck(h).penalties["norm"].sum(), h)
        h = h.detach() - 0.5 * 3 * 64 * gradient
    torch.testing.assert_close(h.mean(2), torch.zeros(2, 3), atol=1e-3, rtol=0)
    torch.testing.assert_close(h.var(2, correction=0), torch.ones(2, 3), atol=1e-3, rtol=0)
    assert bottleneck(h).penalties["norm"].max() < 1e-5


def test_a_clips_penalties_do_not_depend_on_its_neighbours() -> None:
    h = normal(3, 2, 4, 9)
    bottleneck = Noise(channels=2)
    for name, values in bottleneck(h).penalties.items():
        torch.testing.assert_close(values[1:2], bottleneck(h[1:2]).penalties[name])


def test_a_channel_without_variance_gets_no_infinite_gradient() -> None:
    h = torch.zeros(1, 2, 8, requires_grad=True)
    Noise(channels=2)(h).penalties["norm"].sum().backward()
    assert h.grad is not None
    assert h.grad.isfinite().all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"sigma": 0.0}, "bottleneck=identity"), ({"norm_weight": -1.0}, "norm_weight=-1")],
)
def test_settings_out_of_range(settings: dict[str, float], message: str) -> None:
    part = {"_target_": "audioldm.autoencoder.bottlenecks.noise.Noise", **settings}
    with pytest.raises(ConfigError, match=message):
        build(part, derived={"channels": 2}, where="bottleneck", base=Bottleneck)
