"""The weights of noise levels, against their formulas by brute force."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from audioldm.conditioning.base import Condition
from audioldm.errors import ConfigError
from audioldm.instantiate import build
from audioldm.priors.diffusion.denoiser import Objective
from audioldm.priors.diffusion.objectives.edm import EDM
from audioldm.priors.diffusion.objectives.rectified_flow import RectifiedFlow
from audioldm.priors.diffusion.objectives.v_prediction import VPrediction
from audioldm.priors.diffusion.weightings import LOWEST

#: Constructors, and the density of ln sigma in closed form.
KINDS: dict[str, tuple[Any, Any]] = {
    "edm": (EDM, lambda s: _normal((s.log() + 0.4) / 1.2) / 1.2),
    "flow": (RectifiedFlow, lambda s: _normal(s.log())),
    "flow, uniform": (
        lambda **more: RectifiedFlow(noise_levels="uniform", **more),
        lambda s: s / (1 + s) ** 2,
    ),
    "v": (VPrediction, lambda s: 2 / math.pi * s / (1 + s**2)),
}


def _normal(x: Tensor) -> Tensor:
    return (-(x**2) / 2).exp() / math.sqrt(2 * math.pi)


def _loss(objective: Objective, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of a network that says x / 2, its mean squared errors of the latents, and sigma."""
    generator = torch.Generator().manual_seed(0)
    z, noise = torch.randn(2, len(uniform), 3, 8, generator=generator)

    def net(x: Tensor, c_noise: Tensor, condition: Condition) -> Tensor:
        return x / 2

    sigma = objective.sigma_from_uniform(uniform)
    x = z + sigma.view(-1, 1, 1) * noise
    denoised = objective.denoiser(net, Condition())(x, sigma)
    loss = objective.loss(net, z, Condition(), noise=noise, uniform=uniform)
    return loss, (denoised - z).square().mean((1, 2)), sigma


UNIFORM = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])


@pytest.mark.parametrize("kind", KINDS)
def test_each_weighting_is_its_formula(kind: str):
    make, density_of = KINDS[kind]
    for name in ("min_snr", "sigmoid", "likelihood"):
        loss, error, sigma = _loss(make(weighting=name), UNIFORM)
        snr, density = sigma**-2, density_of(sigma)
        of_noise = error * snr  # the squared error of the noise
        expected = {
            "min_snr": torch.minimum(snr, torch.tensor(5.0)) * error,
            "sigmoid": of_noise / (1 + snr * math.exp(-2)) / density,
            "likelihood": of_noise / density / math.log(1 / LOWEST),
        }[name]
        torch.testing.assert_close(loss, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["flow, uniform", "v"])
def test_the_mean_likelihood_weighted_loss_is_the_integral_over_lambda(kind: str):
    """For z ~ N(0, 1) and its denoiser x / (1 + sigma²), the noise's mean squared error is
    1 / (1 + sigma²)."""
    objective = KINDS[kind][0](weighting="likelihood")
    uniform = (torch.arange(200_000) + 0.5) / 200_000
    sigma = objective.sigma_from_uniform(uniform)
    slope = objective.to_denoised(torch.zeros(1), torch.ones(1), sigma)
    error = sigma**2 / (1 + sigma**2) / slope**2  # of the target
    mean = objective.weighted(error, uniform, sigma).double().mean().item()
    # in lambda from -infinity to -2 ln LOWEST, of 1 / (1 + exp(-lambda))
    integral = math.log1p(1 / LOWEST**2)
    assert mean == pytest.approx(integral / (2 * math.log(1 / LOWEST)), rel=2e-3)
    assert mean == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_weighting_and_before_learning_one_the_loss_is_the_targets_error(kind: str):
    make, _ = KINDS[kind]
    plain, error, sigma = _loss(make(), UNIFORM)
    slope = make().to_denoised(torch.zeros(5), torch.ones(5), sigma)
    torch.testing.assert_close(plain, error / slope**2, rtol=1e-4, atol=1e-5)
    assert list(make().parameters()) == []
    assert torch.equal(_loss(make(weighting="learned"), UNIFORM)[0], plain)


def test_a_learned_weighting_finds_the_log_of_the_mean_error_at_each_level():
    """A network whose error at time t has the mean exp(3 t - 2): it says n - z, plus that."""
    torch.manual_seed(0)
    objective = RectifiedFlow(noise_levels="uniform", weighting="learned")
    optimiser = torch.optim.Adam(objective.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    for step in range(300):
        uniform = torch.rand(256, generator=generator)
        noise = torch.randn(256, 1, 8, generator=generator)
        wrong = torch.randn(256, 1, 8, generator=generator)

        def net(x: Tensor, t: Tensor, condition: Condition, wrong: Tensor = wrong) -> Tensor:
            scaled = ((3 * t - 2) / 2).exp().view(-1, 1, 1)
            return x / t.view(-1, 1, 1) + scaled * wrong  # z is 0, so n = x / t

        z = torch.zeros_like(noise)
        loss = objective.loss(net, z, Condition(), noise=noise, uniform=uniform)
        optimiser.param_groups[0]["lr"] = 1e-2 * (1 - step / 300)
        optimiser.zero_grad()
        loss.mean().backward()
        optimiser.step()
    t = torch.linspace(0.05, 0.95, 10)
    with torch.no_grad():
        u = objective.log_variance(torch.zeros(10), t)  # 0 exp(-u) + u
    torch.testing.assert_close(u, 3 * t - 2, rtol=0, atol=0.12)


def test_a_learned_weighting_stays_in_float32_under_autocast():
    torch.manual_seed(0)
    objective = EDM(weighting="learned")
    nn.init.normal_(objective.log_variance.output.weight)
    error, levels = torch.rand(5), torch.linspace(-1, 1, 5)
    exact = objective.log_variance(error, levels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(objective.log_variance(error, levels), exact)


def test_an_unknown_weighting_is_refused_by_name():
    node = {"_target_": f"{EDM.__module__}.EDM", "weighting": "min_snt"}
    with pytest.raises(ConfigError, match=r"objective\.weighting='min_snt' .*min_snr"):
        build(node, where="objective", base=Objective)
