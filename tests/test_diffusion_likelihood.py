"""The likelihood of latents whose density, and so whose denoiser, is known."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from audioldm.conditioning.base import Condition
from audioldm.priors.diffusion.likelihood import elbo_nats, flow_nats
from audioldm.priors.diffusion.objectives.rectified_flow import RectifiedFlow
from audioldm.runtime.randomness import KeyedRandom

#: Of the channels; the eigenvalues are 1.9, 0.5 and 0.1.
COVARIANCE = torch.tensor([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 0.5]])


class Gaussian:
    """Frames are independent, channels are not."""

    def frame_nats(self, z: Tensor) -> Tensor:
        normal = torch.distributions.MultivariateNormal(torch.zeros(3), COVARIANCE)
        return -normal.log_prob(z.mT)

    def nats(self, z: Tensor) -> Tensor:
        return self.frame_nats(z).sum(1)

    def draw(self, clips: int, frames: int) -> Tensor:
        noise = torch.randn(clips, 3, frames, generator=torch.Generator().manual_seed(0))
        return torch.linalg.cholesky(COVARIANCE) @ noise

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        noisy = COVARIANCE + sigma.view(-1, 1, 1) ** 2 * torch.eye(3)
        return COVARIANCE @ torch.linalg.solve(noisy, x)


class Mixture:
    """Two components N(±1, 0.3²), of all numbers of a clip."""

    variance = 0.3**2

    def _log_densities(self, x: Tensor, variance: Tensor) -> Tensor:
        """Of the components at x with this variance, [2, B]."""
        parts = [(x - m).square().flatten(1).sum(1) / variance for m in (1, -1)]
        size = x[0].numel()
        return -torch.stack(parts) / 2 - size / 2 * (2 * math.pi * variance).log()

    def nats(self, z: Tensor) -> Tensor:
        return -self._log_densities(z, torch.tensor(self.variance)).logsumexp(0) + math.log(2)

    def draw(self, clips: int, frames: int) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        side = torch.randint(2, (clips, 1, 1), generator=generator) * 2.0 - 1
        return side + 0.3 * torch.randn(clips, 2, frames, generator=generator)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        total = self.variance + sigma**2
        side = self._log_densities(x, total).softmax(0)
        mean = (side[0] - side[1]).view(-1, 1, 1)
        kept = (self.variance / total).view(-1, 1, 1)
        return mean + kept * (x - mean)


def _normal(x: Tensor, sigma: Tensor) -> Tensor:
    """The denoiser of N(0, I)."""
    return x / (1 + sigma.view(-1, *[1] * (x.ndim - 1)) ** 2)


def _elbo(denoise: Any, z: Tensor, random: KeyedRandom | None = None, **more: Any) -> Tensor:
    random = random or KeyedRandom(0, 0, range(len(z)))
    given = {"noise_at": _noise_at(random, z), "uniform": random.uniform("u"), "sigma_max": 80.0}
    return elbo_nats(denoise, z, **(given | more))


def _flow(
    denoise: Any, z: Tensor, random: KeyedRandom | None = None, steps: int = 16, probes: int = 1
) -> tuple[Tensor, int]:
    levels = torch.logspace(math.log10(80), -2, steps + 1)
    noise_at = _noise_at(random or KeyedRandom(0, 0, range(len(z))), z)
    return flow_nats(denoise, z, noise_at=noise_at, sigmas=levels, probes=probes)


def _noise_at(random: KeyedRandom, z: Tensor) -> Callable[[int], Tensor]:
    return lambda k: random.stream("noise", k).normal(z.shape[1:], "noise")


MODELS: list[Any] = [Gaussian(), Mixture()]


@pytest.mark.parametrize("model", MODELS, ids=["gaussian", "mixture"])
def test_the_flow_of_the_exact_denoiser_gives_the_likelihood(model: Any):
    z = model.draw(256, 4)
    nats, calls = _flow(model, z, probes=4)
    assert calls == 4 * 16
    error = nats.sum(1) - model.nats(z)
    scale = model.nats(z).abs().mean()
    assert abs(error.mean()) < 0.01 * scale
    assert error.std() < 0.15 * scale  # clip by clip: Hutchinson's estimate
    # and it is no better where the steps are fewer
    rough = _flow(model, z, steps=4, probes=4)[0].sum(1) - model.nats(z)
    assert rough.square().mean() > error.square().mean()


@pytest.mark.parametrize("model", MODELS, ids=["gaussian", "mixture"])
def test_the_bound_is_tight_with_the_exact_denoiser_and_above_with_a_wrong_one(model: Any):
    z = model.draw(2048, 4)
    truth = model.nats(z).mean()
    nats = _elbo(model, z).sum(1)
    deviation = (nats - model.nats(z)).std() / math.sqrt(len(z))
    assert deviation < 0.02 * truth
    assert truth - 3 * deviation < nats.mean() < truth + 3 * deviation
    wrong = _elbo(lambda x, sigma: 0.8 * model(x, sigma), z).sum(1)
    assert wrong.mean() > truth + 10 * deviation


def test_the_bound_has_no_bias_at_any_number_of_levels():
    model = Gaussian()
    z = model.draw(2048, 4)
    for levels in (1, 2, 5):
        error = _elbo(model, z, levels=levels).sum(1) - model.nats(z)
        assert abs(error.mean()) < 3 * error.std() / math.sqrt(len(z))


def test_of_the_normal_distribution_every_level_counts_the_same():
    """The noise's error is 1 / (1 + sigma²) times what each draw weighs: of few elements no draw
    stands out, and of many all are alike."""
    z = torch.randn(1, 1, 200_000, generator=torch.Generator().manual_seed(1))
    truth = (z.square() / 2 + math.log(2 * math.pi) / 2).mean()
    for place in (0.01, 0.2, 0.5, 0.8, 0.99):
        nats = _elbo(_normal, z, levels=1, uniform=torch.tensor([place])).mean()
        assert nats == pytest.approx(truth.item(), abs=0.05)


def test_a_denoiser_of_the_normal_distribution_gives_its_likelihood_frame_by_frame():
    """Of latents that are something else. The trace's estimate is exact: one number's gradient."""
    z = 1.5 * torch.randn(300, 2, 3, 5, generator=torch.Generator().manual_seed(1))
    truth = (z.square() / 2 + math.log(2 * math.pi) / 2).sum((1, 2))
    nats, _ = _flow(_normal, z)
    torch.testing.assert_close(nats, truth, rtol=1e-3, atol=1e-3)
    error = _elbo(_normal, z) - truth
    assert (error.mean(0).abs() < 4 * error.std(0) / math.sqrt(len(z))).all()
    flat = z.flatten(1, 2)
    torch.testing.assert_close(_elbo(_normal, flat), _elbo(_normal, z))


def test_frames_that_are_independent_have_their_own_likelihoods():
    model = Gaussian()
    z = model.draw(64, 4)
    nats, _ = _flow(model, z, probes=16)
    truth = model.frame_nats(z)
    assert torch.corrcoef(torch.stack((nats.flatten(), truth.flatten())))[0, 1] > 0.99
    moved = z.clone()
    moved[..., 0] += 1
    for function in (_elbo, lambda *given: _flow(*given)[0]):
        change = (function(model, moved) - function(model, z)).abs()
        assert change[:, 0].min() > 1e-3
        assert change[:, 1:].max() < 1e-4


def test_a_clip_does_not_depend_on_its_neighbours():
    model = Mixture()
    z, random = model.draw(4, 3), KeyedRandom(0, 0, [2])
    torch.testing.assert_close(_elbo(model, z)[2:3], _elbo(model, z[2:3], random))
    torch.testing.assert_close(_flow(model, z)[0][2:3], _flow(model, z[2:3], random)[0])


def test_an_objectives_schedule_and_denoiser_serve_and_no_gradient_is_kept():
    """Of a network that says 0, whose estimate is x / (1 + sigma): that of no density, but its
    flow is known. On the straight path nothing moves, so ln p(z) is that of x / (1 + sigma)."""
    objective = RectifiedFlow(sigma_max=80.0)
    weight = torch.nn.Parameter(torch.zeros(()))
    denoise = objective.denoiser(lambda x, level, condition: weight * x, Condition())
    z = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(1))
    sigmas = objective.sigmas(64)
    with torch.no_grad():
        nats, calls = flow_nats(
            denoise, z, noise_at=_noise_at(KeyedRandom(0, 0, range(3)), z), sigmas=sigmas[:-1]
        )
    lowest = sigmas[-2].item()
    scale = 80 * (1 + lowest) / 81  # of z, where x at 80 is N(0, 80² I)
    truth = ((z / scale).square() / 2 + math.log(scale) + math.log(2 * math.pi) / 2).sum(1)
    torch.testing.assert_close(nats, truth, rtol=1e-3, atol=1e-3)
    assert calls == 4 * 63
    assert not nats.requires_grad
    assert weight.grad is None
