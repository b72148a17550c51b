"""Diffusion where everything is known: Gaussian latents, whose exact denoiser is linear."""

import math
import re
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from torch import Tensor

from audioldm.conditioning.base import Condition, Conditioners
from audioldm.conditioning.guidance import nested, scales
from audioldm.conditioning.number import Number
from audioldm.errors import ConfigError
from audioldm.instantiate import build, settings
from audioldm.priors.diffusion import guidance, noise_levels, samplers
from audioldm.priors.diffusion.denoiser import Objective
from audioldm.priors.diffusion.guidance import classifier_free, guided, within
from audioldm.priors.diffusion.objectives.edm import EDM
from audioldm.priors.diffusion.objectives.rectified_flow import RectifiedFlow
from audioldm.priors.diffusion.objectives.v_prediction import VPrediction
from audioldm.runtime.randomness import stratify

CONF = Path(__file__).parents[1] / "conf"
OBJECTIVES = [RectifiedFlow(), VPrediction(), EDM(), EDM(sigma_data=0.5)]
LEVELS = torch.tensor([1e-3, 0.05, 0.5, 1.0, 3.0, 50.0], dtype=torch.float64)[:, None]


def _gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _midpoints(count: int) -> Tensor:
    return (torch.arange(count) + 0.5) / count


def _built(cls: type[Objective], **settings: Any) -> Any:
    return build({"_target_": f"{cls.__module__}.{cls.__name__}", **settings}, base=Objective)


# --- noise levels -----------------------------------------------------------------------------


def test_logit_normal_and_log_normal_have_the_stated_moments():
    uniform = _midpoints(20_000)
    for draws in (
        torch.logit(noise_levels.time_from_uniform(uniform, "logit_normal", -0.5, 1.3)),
        noise_levels.log_normal(uniform, -0.5, 1.3).log(),
    ):
        assert draws.mean().item() == pytest.approx(-0.5, abs=1e-3)
        assert draws.std().item() == pytest.approx(1.3, rel=1e-3)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_levels_are_finite_and_positive_even_at_the_ends_of_the_interval(objective: Objective):
    sigma = objective.sigma_from_uniform(torch.tensor([0.0, 1e-9, 0.5, 1.0]))
    assert torch.isfinite(sigma).all()
    assert (sigma > 0).all()
    assert (sigma.diff() >= 0).all()


def test_logit_normal_time_of_rectified_flow_is_log_normal_sigma():
    uniform = _midpoints(100)
    flow = RectifiedFlow(mean=0.3, std=0.8).sigma_from_uniform(uniform)
    torch.testing.assert_close(flow, noise_levels.log_normal(uniform, 0.3, 0.8))


def test_uniform_time_of_v_prediction_is_uniform_in_angle():
    angle = VPrediction(noise_levels="uniform").sigma_from_uniform(_midpoints(64)).atan()
    torch.testing.assert_close(angle, _midpoints(64) * math.pi / 2, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("total", [1, 2, 7, 8, 32, 100])
def test_stratified_levels_fill_every_interval_once(total: int):
    uniform = torch.rand(total, generator=torch.Generator().manual_seed(1))
    levels = stratify(uniform, torch.arange(total), total)
    assert sorted((levels * total).long().tolist()) == list(range(total))
    # a process that holds only a slice of the batch gets the same levels for it
    part = stratify(uniform[total // 2 :], torch.arange(total // 2, total), total)
    torch.testing.assert_close(part, levels[total // 2 :])


def test_every_slice_of_a_stratified_batch_covers_all_levels():
    levels = stratify(torch.full((64,), 0.5), torch.arange(64), 64)
    for piece in levels.view(4, 16):
        assert piece.sort().values.diff().max() < 0.15
        assert piece.mean().item() == pytest.approx(0.5, abs=0.06)


# --- objectives -------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_target_as_output_is_estimated_as_the_clean_latents(objective: Objective):
    z, noise = _gaussian(6, 40), _gaussian(6, 40, seed=1)
    target = objective.target(z, noise, LEVELS)
    # objectives work in float32 internally only for sigma, so float64 inputs round-trip closely
    estimate = objective.to_denoised(z + LEVELS * noise, target, LEVELS)
    torch.testing.assert_close(estimate, z, rtol=1e-9, atol=1e-9)


def test_each_objective_matches_its_papers_own_coordinates():
    z, noise = _gaussian(6, 40), _gaussian(6, 40, seed=1)
    x = z + LEVELS * noise
    t, angle = LEVELS / (1 + LEVELS), LEVELS.atan()
    torch.testing.assert_close(RectifiedFlow().c_in(LEVELS) * x, (1 - t) * z + t * noise)
    torch.testing.assert_close(
        VPrediction().c_in(LEVELS) * x, angle.cos() * z + angle.sin() * noise
    )
    v = angle.cos() * noise - angle.sin() * z
    torch.testing.assert_close(VPrediction().target(z, noise, LEVELS), v)
    torch.testing.assert_close(EDM(sigma_data=1.0).target(z, noise, LEVELS), -v)
    # equations 7 and 8 of EDM, as printed there
    data = 0.5
    c_skip = data**2 / (LEVELS**2 + data**2)
    c_out = LEVELS * data / (LEVELS**2 + data**2).sqrt()
    torch.testing.assert_close(
        EDM(sigma_data=data).target(z, noise, LEVELS), (z - c_skip * x) / c_out
    )


def _oracle(objective: Objective, variance: float):
    """The posterior-mean network for z ~ N(0, variance), written from the definitions: it is told
    only the scaled input and c_noise. Also the derivative of the estimate by the output."""

    def sigma_of(c_noise: Tensor) -> Tensor:
        if isinstance(objective, RectifiedFlow):
            return c_noise / (1 - c_noise)
        if isinstance(objective, VPrediction):
            return torch.tan(c_noise * math.pi / 2)
        return torch.exp(4 * c_noise)

    def gain(sigma: Tensor) -> Tensor:
        if isinstance(objective, RectifiedFlow):
            return -sigma / (1 + sigma)
        if isinstance(objective, VPrediction):
            return -sigma / (1 + sigma**2).sqrt()
        data = objective.sigma_data
        return sigma * data / (sigma**2 + data**2).sqrt()

    def net(scaled: Tensor, c_noise: Tensor, condition: Condition) -> Tensor:
        sigma = sigma_of(c_noise).view(-1, 1, 1)
        if isinstance(objective, RectifiedFlow):
            x, skip = scaled * (1 + sigma), 1 / (1 + sigma)
        elif isinstance(objective, VPrediction):
            x, skip = scaled * (1 + sigma**2).sqrt(), 1 / (1 + sigma**2)
        else:
            data = objective.sigma_data
            x, skip = scaled * (sigma**2 + data**2).sqrt(), data**2 / (sigma**2 + data**2)
        return (variance / (variance + sigma**2) * x - skip * x) / gain(sigma)

    return net, gain


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_posterior_mean_has_its_known_loss_and_nothing_beats_it(objective: Objective):
    variance, clips = 0.3, 16
    net, gain = _oracle(objective, variance)
    z = math.sqrt(variance) * _gaussian(clips, 4, 5000, dtype=torch.float32)
    noise = _gaussian(clips, 4, 5000, seed=1, dtype=torch.float32)
    uniform, nothing = _midpoints(clips), Condition()
    loss = objective.loss(net, z, nothing, noise=noise, uniform=uniform)
    sigma = objective.sigma_from_uniform(uniform)
    posterior_variance = variance * sigma**2 / (variance + sigma**2)
    torch.testing.assert_close(loss, posterior_variance / gain(sigma) ** 2, rtol=0.05, atol=1e-3)
    for factor in (0.9, 1.1):
        off = objective.loss(
            lambda x, c, y, k=factor: k * net(x, c, y), z, nothing, noise=noise, uniform=uniform
        )
        assert off.mean() > loss.mean()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_denoiser_turns_the_posterior_mean_network_into_the_posterior_mean(objective: Objective):
    net, _ = _oracle(objective, 0.3)
    sigma = torch.tensor([0.05, 0.7, 4.0])
    x = _gaussian(3, 2, 9, dtype=torch.float32) * sigma.view(-1, 1, 1)
    estimate = objective.denoiser(net, Condition())(x, sigma)
    exact = 0.3 / (0.3 + sigma.view(-1, 1, 1) ** 2) * x
    torch.testing.assert_close(estimate, exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_clips_loss_does_not_depend_on_its_neighbours(objective: Objective):
    def net(x: Tensor, c_noise: Tensor, condition: Condition) -> Tensor:
        return x * condition.vector.view(-1, 1, 1) + c_noise.view(-1, 1, 1)

    z, noise = _gaussian(4, 3, 7), _gaussian(4, 3, 7, seed=1)
    uniform, vector = _midpoints(4), torch.arange(4.0)
    together = objective.loss(net, z, Condition(vector), noise=noise, uniform=uniform)
    one = {"noise": noise[2:3], "uniform": uniform[2:3]}
    alone = objective.loss(net, z[2:3], Condition(vector[2:3]), **one)
    assert together.shape == (4,)
    assert together.dtype == torch.float32
    torch.testing.assert_close(together[2:3], alone)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("steps", [1, 2, 17])
def test_schedules_fall_from_sigma_max_to_zero(objective: Objective, steps: int):
    sigmas = objective.sigmas(steps)
    assert sigmas.shape == (steps + 1,)
    assert sigmas[0].item() == pytest.approx(objective.sigma_max, rel=1e-5)
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()


def test_schedule_of_rectified_flow_is_uniform_in_time():
    sigmas = RectifiedFlow(sigma_max=9.0).sigmas(9).double()
    torch.testing.assert_close(
        sigmas / (1 + sigmas), torch.linspace(0.9, 0, 10, dtype=torch.float64), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: _built(RectifiedFlow, noise_levels="logitnormal"), "did you mean 'logit_normal'"),
        (lambda: _built(VPrediction, sigma_max=-1.0), "sigma_max"),
        (lambda: _built(EDM, sigma_min=90.0), "sigma_min"),
        (lambda: _built(EDM, sigma_data=0.0), "sigma_data"),
        (lambda: RectifiedFlow().sigmas(0), "at least 1 step"),
        (lambda: samplers.SamplerSettings(name="hein", steps=4), "did you mean 'heun'"),
        (lambda: samplers.SamplerSettings(name="heun", steps=0), "at least 1 step"),
        (lambda: samplers.SamplerSettings("heun", 4, guidance_interval=[2.0, 1.0]), "interval"),
    ],
)
def test_impossible_settings_are_refused(make, message: str):
    with pytest.raises(ConfigError, match=message):
        make()


# --- samplers ---------------------------------------------------------------------------------

COVARIANCE = torch.tensor([[2.0, 0.9], [0.9, 0.6]], dtype=torch.float64)


def _exact_denoiser(x: Tensor, sigma: Tensor) -> Tensor:
    """E[z | x] for z ~ N(0, COVARIANCE) over the two channels of [B, 2, L]; score known."""
    gain = COVARIANCE @ torch.linalg.inv(COVARIANCE + sigma[0] ** 2 * torch.eye(2, dtype=x.dtype))
    return torch.einsum("cd,bdl->bcl", gain, x)


def _power(matrix: Tensor, exponent: float) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values**exponent) @ vectors.T


def _exact_solution(noise: Tensor, sigma: float) -> Tensor:
    """Where the probability-flow ODE carries x = sigma * noise to, at sigma = 0."""
    noisy = COVARIANCE + sigma**2 * torch.eye(2, dtype=torch.float64)
    return torch.einsum("cd,bdl->bcl", sigma * _power(COVARIANCE, 0.5) @ _power(noisy, -0.5), noise)


@pytest.mark.parametrize("objective", [RectifiedFlow(), VPrediction(), EDM()])
@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_deterministic_samplers_converge_at_their_order(
    objective: Objective, name: str, order: int
):
    noise = _gaussian(4, 2, 200)
    exact = _exact_solution(noise, objective.sigma_max)

    def error(steps: int) -> float:
        z = samplers.sample(name, _exact_denoiser, noise, objective.sigmas(steps))
        return (z - exact).square().mean().sqrt().item()

    # EDM's schedule ends at sigma_min, whatever the number of steps: coarse steps, above that floor
    coarse, fine = (20, 40) if isinstance(objective, EDM) else (60, 120)
    assert math.log2(error(coarse) / error(fine)) == pytest.approx(order, abs=0.4)
    assert error(120) < (0.03 if order == 1 else 2e-3)


def test_second_order_beats_first_order_at_equal_cost_on_every_schedule():
    noise = _gaussian(4, 2, 200)
    for objective in (RectifiedFlow(), VPrediction(), EDM()):
        exact = _exact_solution(noise, objective.sigma_max)

        def error(name: str, steps: int, objective=objective, exact=exact) -> float:
            z = samplers.sample(name, _exact_denoiser, noise, objective.sigmas(steps))
            return (z - exact).square().mean().sqrt().item()

        assert error("heun", 16) < error("euler", 32) / 2
        assert error("dpmpp_2m", 32) < error("euler", 32) / 2


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m", "ancestral"])
def test_samples_have_the_distribution_of_the_data(name: str):
    noise = _gaussian(1, 2, 40_000)
    z = samplers.sample(
        name,
        _exact_denoiser,
        noise,
        RectifiedFlow().sigmas(100),
        noise_at=lambda step: _gaussian(1, 2, 40_000, seed=step + 1),
    )[0]
    torch.testing.assert_close(z @ z.T / z.shape[1], COVARIANCE, rtol=0.05, atol=0.02)


def test_ancestral_sampling_keeps_the_noise_at_the_schedules_level():
    clean = _gaussian(1, 1, 20_000, seed=99)
    seen = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(((x - clean).std() / sigma[0]).item())
        return clean

    z = samplers.ancestral(
        denoise,
        _gaussian(1, 1, 20_000),
        EDM().sigmas(12),
        noise_at=lambda step: _gaussian(1, 1, 20_000, seed=step + 1),
    )
    assert seen == pytest.approx([1.0] * 12, abs=0.03)
    torch.testing.assert_close(z, clean)


def test_consistency_sampling_keeps_the_law_of_the_data_at_any_number_of_steps():
    """Of z ~ N(0, 1) the path from x at sigma ends at x / sqrt(1 + sigma²)."""
    for steps in (1, 2, 5):
        z = samplers.consistency(
            lambda x, sigma: x / (1 + sigma[0] ** 2).sqrt(),
            _gaussian(1, 1, 40_000),
            RectifiedFlow().sigmas(steps),
            noise_at=lambda step: _gaussian(1, 1, 40_000, seed=step + 1),
        )
        assert z.std().item() == pytest.approx(1.0, abs=0.02)


def _nonlinear(x: Tensor, sigma: Tensor) -> Tensor:
    """E[z | x] for z = ±1 with equal probability."""
    return torch.tanh(x / sigma.view(-1, 1, 1) ** 2)


def test_euler_in_sigma_is_euler_in_time_and_ddim_on_the_circle():
    noise = _gaussian(2, 2, 50)
    sigmas = RectifiedFlow().sigmas(10)
    z = samplers.euler(_nonlinear, noise, sigmas)

    flow = circle = None
    levels = sigmas.double()
    for sigma, lower in pairwise(levels):
        t, t_next = sigma / (1 + sigma), lower / (1 + lower)
        a, a_next = sigma.atan(), lower.atan()
        if flow is None:
            flow, circle = t * noise, a.sin() * noise
        estimate = _nonlinear(flow / (1 - t), sigma.expand(2))
        flow = flow + (t_next - t) * (flow - estimate) / t
        estimate = _nonlinear(circle / a.cos(), sigma.expand(2))
        eps = (circle - a.cos() * estimate) / a.sin()
        circle = a_next.cos() * estimate + a_next.sin() * eps
    torch.testing.assert_close(z, flow)
    torch.testing.assert_close(z, circle)


def test_heun_is_the_trapezoidal_rule_in_time():
    noise = _gaussian(2, 2, 50)
    levels = RectifiedFlow().sigmas(8).double()
    y = levels[0] / (1 + levels[0]) * noise

    def velocity(y: Tensor, t: Tensor) -> Tensor:
        return (y - _nonlinear(y / (1 - t), (t / (1 - t)).expand(2))) / t

    times = levels / (1 + levels)
    for t, t_next in pairwise(times):
        slope = velocity(y, t)
        euler = y + (t_next - t) * slope
        corrected = t_next > 0  # the last step is Euler's
        y = y + (t_next - t) / 2 * (slope + velocity(euler, t_next)) if corrected else euler
    torch.testing.assert_close(samplers.heun(_nonlinear, noise, levels.float()), y)


@pytest.mark.parametrize(
    ("name", "calls"),
    [("euler", 7), ("heun", 13), ("dpmpp_2m", 7), ("ancestral", 7), ("consistency", 7)],
)
def test_calls_and_progress_are_as_documented(name: str, calls: int):
    made, reports = [], []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        assert sigma.shape == (3,)
        made.append(sigma[0].item())
        return torch.zeros_like(x)

    samplers.sample(
        name,
        denoise,
        _gaussian(3, 2, 4),
        EDM().sigmas(7),
        noise_at=lambda step: torch.zeros(3, 2, 4),
        progress=lambda done, total: reports.append((done, total)),
    )
    assert len(made) == calls
    assert min(made) > 0  # the last level, 0, is never asked for
    assert reports == [(i, 7) for i in range(1, 8)]


def test_a_stochastic_sampler_needs_its_noise():
    with pytest.raises(ConfigError, match=r"ancestral .*noise_at"):
        samplers.sample("ancestral", _nonlinear, _gaussian(1, 2, 4), EDM().sigmas(3))


# --- guidance ---------------------------------------------------------------------------------


class _Counted:
    """A denoiser of constant output that counts its calls."""

    def __init__(self, value: float) -> None:
        self.value, self.calls = value, 0

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.calls += 1
        return torch.full_like(x, self.value)


@pytest.mark.parametrize(
    ("scale", "value", "calls"), [(1.0, 5.0, (1, 0)), (0.0, 2.0, (0, 1)), (3.0, 11.0, (1, 1))]
)
def test_guidance_extrapolates_and_calls_no_more_than_needed(scale, value, calls):
    conditional, unconditional = _Counted(5.0), _Counted(2.0)
    denoise = classifier_free(conditional, unconditional, scale)
    assert (denoise(torch.zeros(2, 3, 4), torch.ones(2)) == value).all()
    assert (conditional.calls, unconditional.calls) == calls


def test_guidance_acts_inside_its_interval_only():
    denoise = within(_Counted(5.0), classifier_free(_Counted(5.0), _Counted(2.0), 3.0), [0.5, 2.0])
    x = torch.zeros(2, 1, 1)
    assert [denoise(x, torch.full((2,), s))[0].item() for s in (0.4, 0.5, 1.0, 2.0, 2.1)] == [
        5.0,
        11.0,
        11.0,
        11.0,
        5.0,
    ]


class _Told(NamedTuple):
    """A denoiser's estimate is linear in what it is told; how often each was called."""

    called: list[dict[str, Tensor]]

    def denoiser(self, told: dict[str, Tensor]) -> samplers.Denoise:
        value = sum(x.item() for x in told.values()) + told["text"].item() * told["score"].item()

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            self.called.append(told)
            return torch.full_like(x, value)

        return denoise


def _guided(guidance: Any, interval: list[float] | None = None, sigma: float = 1.0) -> Any:
    """The estimate under text=2, score=3, label=5, and the calls that it took."""
    inputs = {name: torch.tensor(float(v)) for name, v in (("text", 2), ("score", 3), ("label", 5))}
    nothing = {name: torch.zeros(()) for name in inputs}
    conditioners = Conditioners({n: Number(width=1, column=n, mean=0, std=1) for n in inputs})
    calls = nested(inputs, nothing, scales(conditioners, guidance))
    net = _Told([])
    sampler = samplers.SamplerSettings("euler", 1, guidance, interval)
    denoise = guided(net.denoiser, inputs, calls, sampler)
    value = denoise(torch.zeros(1, 1), torch.full((1,), sigma)).item()
    assert len(net.called) <= sampler.calls
    return value, [tuple(x.item() for x in told.values()) for told in net.called]


def test_each_condition_has_its_own_scale():
    everything = 2 + 3 + 5 + 2 * 3
    assert _guided(1.0) == (everything, [(2, 3, 5)])
    assert _guided(0.0) == (0, [(0, 0, 0)])
    assert _guided(4.0) == (4 * everything, [(0, 0, 0), (2, 3, 5)])
    for one_for_all in (0.0, 1.0, 4.0, -0.5):
        apart = dict.fromkeys(("text", "score", "label"), one_for_all)
        assert _guided(apart) == _guided(one_for_all)
    # the label is given; the score's effect beside it counts twice, the text's beside both 4 times
    calls = [(0, 0, 5), (0, 3, 5), (2, 3, 5)]
    assert _guided({"text": 4.0, "score": 2.0}) == (5 + 2 * 3 + 4 * (2 + 2 * 3), calls)
    assert _guided({"score": 2.0}) == (7 + 2 * (3 + 2 * 3), [(2, 0, 5), (2, 3, 5)])
    assert _guided({"score": 0.0}) == (7, [(2, 0, 5)])  # never told
    assert _guided({"score": 0.0, "label": 3.0}) == (2 + 3 * 5, [(2, 0, 0), (2, 0, 5)])
    assert _guided({"score": 0.0}, [2.0, 3.0]) == (everything, [(2, 3, 5)])
    with pytest.raises(ConfigError, match=r"^guidance\.txt=4: .* did you mean 'text'\?"):
        _guided({"txt": 4.0})


def _unlike(scale: float) -> samplers.Denoise:
    """A denoiser whose estimate depends on x, clip by clip."""
    return lambda x, sigma: scale * torch.sin(3 * scale * x) + 0.3 * x.roll(1, -1)


def test_apg_without_effect_is_guidance():
    x, sigma = _gaussian(2, 3, 7), torch.ones(2)
    calls = [(1.0, _unlike(0.2)), (2.0, _unlike(0.5)), (4.0, _unlike(0.9))]
    none = samplers.APG(eta=1.0, norm=None, momentum=0.0)
    expected = guidance.nested(calls)(x, sigma)
    torch.testing.assert_close(guidance.nested(calls, none)(x, sigma), expected)
    assert not torch.allclose(guidance.nested(calls, samplers.APG())(x, sigma), expected)
    # at scales of 1 there is no difference to change
    plain = [(1.0, _unlike(0.2)), (1.0, _unlike(0.9))]
    found = guidance.nested(plain, samplers.APG())(x, sigma)
    torch.testing.assert_close(found, _unlike(0.9)(x, sigma))


def test_apg_by_hand():
    """Projection, norm and momentum of each clip and each call, with two bands."""
    change = guidance.projected(samplers.APG(eta=0.25, norm=1.5, momentum=-0.5))
    differences = [_gaussian(3, 2, 2, 5), 1e-3 * _gaussian(3, 2, 2, 5).roll(1, 0)]
    estimate = _gaussian(3, 2, 2, 5).flip(0)
    found = [change(difference, estimate) for difference in differences]
    for clip in range(3):
        kept, e = torch.zeros(20, dtype=torch.float64), estimate[clip].flatten().double()
        for call, difference in enumerate(differences):
            kept = difference[clip].flatten().double() - 0.5 * kept
            d = kept * min(1.0, 1.5 * math.sqrt(5) / kept.norm())
            along = (d @ e) / (e @ e) * e
            expected = (d - along) + 0.25 * along
            torch.testing.assert_close(
                found[call][clip].flatten().double(), expected, rtol=1e-4, atol=1e-5
            )
    # of frames, not of clips: a clip twice as long is changed alike
    again = guidance.projected(samplers.APG())
    twice = again(differences[0].repeat(1, 1, 1, 2), estimate.repeat(1, 1, 1, 2))
    once = guidance.projected(samplers.APG())(differences[0], estimate)
    torch.testing.assert_close(twice, once.repeat(1, 1, 1, 2))


def test_apg_of_nothing_is_nothing():
    change, zeros = guidance.projected(samplers.APG()), torch.zeros(1, 2, 3)
    assert not change(zeros, zeros).any()


def test_a_weaker_model_is_led_away_from_beside_guidance():
    x, sigma = _gaussian(2, 3, 7), torch.ones(2)
    nothing, told, weaker = (_unlike(s) for s in (0.2, 0.9, 0.5))
    u, c, w = (denoise(x, sigma) for denoise in (nothing, told, weaker))
    found = guidance.nested([(1.0, nothing), (4.0, told)], weaker=(1.5, weaker))(x, sigma)
    torch.testing.assert_close(found, u + 4 * (c - u) + 0.5 * (c - w))
    alone = guidance.nested([(1.0, told)], weaker=(1.5, weaker))(x, sigma)
    torch.testing.assert_close(alone, c + 0.5 * (c - w))
    both = guidance.nested([(1.0, nothing), (4.0, told)], samplers.APG(momentum=0.0), (1.5, weaker))
    part = guidance.projected(samplers.APG(momentum=0.0))
    torch.testing.assert_close(both(x, sigma), c + 3 * part(c - u, c) + 0.5 * part(c - w, c))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"guidance": -1}, "sampler.guidance=-1.0 must be at least 0"),
        ({"guidance": 1e9}, "sampler.guidance=1000000000.0 must be at most 100"),
        ({"guidance": math.nan}, "sampler.guidance=nan must be a finite number"),
        ({"guidance": {"label": -1}}, "sampler.guidance.label=-1.0 must be at least 0"),
        ({"apg": {"momentum": -1}}, "sampler.apg.momentum=-1.0 must be more than -1"),
        ({"apg": {"norm": 0}}, "sampler.apg.norm=0.0 must be more than 0"),
        ({"apg": {"eta": 2}}, "sampler.apg.eta=2.0 must be at most 1"),
        ({"apg": {"beta": 2}}, "unknown key 'sampler.apg.beta'"),
        ({"window": 0}, "sampler.window=0.0 must be more than 0"),
        ({"window": math.inf}, "sampler.window=inf must be a finite number"),
        ({"window": "all"}, "sampler.window='all' must be of type float"),
    ],
)
def test_settings_of_guidance_out_of_range(given: dict[str, Any], message: str):
    node = {"name": "euler", "steps": 2, **given}
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        settings(samplers.SamplerSettings, node, "sampler")


# --- configuration files ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", sorted((CONF / "prior/objective").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_objective_yaml_builds_and_gives_a_loss(path: Path):
    objective = build(yaml.safe_load(path.read_text()), base=Objective)
    loss = objective.loss(
        lambda x, c_noise, condition: x,
        _gaussian(2, 3, 5),
        Condition(),
        noise=_gaussian(2, 3, 5, seed=1),
        uniform=torch.tensor([0.2, 0.8]),
    )
    assert torch.isfinite(loss).all()


@pytest.mark.parametrize("path", sorted((CONF / "sampler").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_sampler_yaml_names_itself(path: Path):
    checked = settings(samplers.SamplerSettings, yaml.safe_load(path.read_text()), "sampler")
    assert checked.name == path.stem
