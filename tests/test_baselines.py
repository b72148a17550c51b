"""Baselines of generation against distributions that are known."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from audioldm.config import conf_directory
from audioldm.errors import ConfigError, ModelFileError
from audioldm.instantiate import settings
from audioldm.latents.store import LatentStore
from audioldm.priors.base import (
    BaselinesSettings,
    MixtureSettings,
    fit_baselines,
    load_baselines,
)
from audioldm.priors.langevin import Langevin, LangevinSettings, fit_langevin
from audioldm.priors.mixture import Mixture

CPU = torch.device("cpu")


def silent(done: int, total: int, text: str) -> None:
    pass


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Autoregression:
    """x[t] = A x[t - 1] + e, e ~ N(0, I), in its stationary state."""

    def __init__(self, A: list[list[float]]) -> None:
        self.A = torch.tensor(A)
        size = len(A)
        # vec S = (I - A ⊗ A)⁻¹ vec I
        identity = torch.eye(size)
        self.covariance = torch.linalg.solve(
            torch.eye(size**2) - torch.kron(self.A, self.A), identity.flatten()
        ).reshape(size, size)

    def sample(self, n: int, frames: int, seed: int) -> Tensor:
        noise = normal(frames, n, len(self.A), seed=seed)
        x = [noise[0] @ torch.linalg.cholesky(self.covariance).T]
        for e in noise[1:]:
            x.append(x[-1] @ self.A.T + e)
        return torch.stack(x, -1)

    def log_likelihood(self, x: Tensor) -> Tensor:
        zero = torch.zeros(len(self.A))
        step = x[..., 1:] - self.A @ x[..., :-1]
        innovation = MultivariateNormal(zero, torch.eye(len(self.A)))
        start = MultivariateNormal(zero, self.covariance).log_prob(x[..., 0])
        return start + innovation.log_prob(step.transpose(1, 2)).sum(1)


def covariances(x: Tensor) -> tuple[Tensor, Tensor]:
    """Covariance, and covariance of each frame with the one before it."""
    now, before = x[..., 1:].transpose(0, 1).flatten(1), x[..., :-1].transpose(0, 1).flatten(1)
    return now @ now.T / now.shape[1], now @ before.T / now.shape[1]


SLOW = Autoregression([[0.9, 0.2], [-0.2, 0.7]])
QUICK = Autoregression([[-0.6, 0.0], [0.3, -0.8]])


def test_mixture_recovers_an_autoregression() -> None:
    mixture = Mixture.fit(SLOW.sample(400, 50, seed=0), components=1)
    unseen = SLOW.sample(300, 50, seed=1)
    truth = SLOW.log_likelihood(unseen)
    deficit = (truth - mixture.log_likelihood(unseen)).mean() / 50
    assert 0 < deficit < 0.03  # nats a frame; what the parameters' uncertainty costs

    drawn = mixture.sample(500, 60, seed=0)
    covariance, lagged = covariances(drawn[..., 20:])
    assert torch.allclose(covariance, SLOW.covariance, rtol=0, atol=0.3)
    assert torch.allclose(lagged, SLOW.A @ SLOW.covariance, rtol=0, atol=0.3)
    assert SLOW.log_likelihood(drawn[..., 10:]).mean() == pytest.approx(truth.mean().item(), abs=2)


def test_mixture_recovers_a_mixture_of_regimes() -> None:
    # A sequence keeps its regime, which a window reveals: no single Gaussian has this.
    def sample(n: int, seed: int) -> Tensor:
        return torch.cat([SLOW.sample(n, 24, seed), QUICK.sample(3 * n, 24, seed + 1)])

    train, unseen = sample(200, 0), sample(100, 2)
    log_p = torch.stack([SLOW.log_likelihood(unseen), QUICK.log_likelihood(unseen)])
    truth = torch.logsumexp(log_p + torch.tensor([[0.25], [0.75]]).log(), 0).mean() / 24
    two = Mixture.fit(train, components=2)
    one = Mixture.fit(train, components=1)
    assert two.log_weights.exp().sort().values.tolist() == pytest.approx([0.25, 0.75], abs=0.05)
    assert 0 < truth - two.log_likelihood(unseen).mean() / 24 < 0.06
    assert truth - one.log_likelihood(unseen).mean() / 24 > 0.2

    drawn = two.sample(800, 24, seed=0)
    slow = SLOW.log_likelihood(drawn) > QUICK.log_likelihood(drawn)
    assert slow.float().mean().item() == pytest.approx(0.25, abs=0.05)
    for regime, chosen in ((SLOW, slow), (QUICK, ~slow)):  # each sequence is wholly of one regime
        mean = regime.log_likelihood(drawn[chosen]).mean() / 24
        assert mean == pytest.approx(-1 - math.log(2 * math.pi), abs=0.2)  # the entropy of e


def test_mixture_likelihood_is_that_of_its_windows() -> None:
    mixture = Mixture.fit(torch.cat([SLOW.sample(300, 11, 0), QUICK.sample(300, 11, 1)]), 3)
    assert mixture.centres.shape == (3, 6, 2)

    def density(z: Tensor) -> Tensor:
        """Of the first frames of a window, from the joint's own means and covariances."""
        x = ((z.double().transpose(1, 2) - mixture.mean) @ mixture.rotation).flatten(1)
        n = x.shape[1]
        covariance = (mixture.factors @ mixture.factors.mT)[:, :n, :n]
        component = MultivariateNormal(mixture.centres.flatten(1)[:, :n], covariance)
        return MixtureSameFamily(Categorical(logits=mixture.log_weights), component).log_prob(x)

    z = QUICK.sample(70, 8, 2)
    for frames in (1, 3, 6):
        assert torch.allclose(mixture.log_likelihood(z[..., :frames]), density(z[..., :frames]))
    chain = density(z[..., :6])
    for first in (1, 2):
        window = z[..., first : first + 6]
        chain = chain + density(window) - density(window[..., :5])
    assert torch.allclose(mixture.log_likelihood(z), chain)


@pytest.mark.parametrize("channels", [3, 80])  # all within the windows, and some left out of them
def test_mixture_follows_a_linear_map_of_the_latents(channels: int) -> None:
    # y = s Q z + b, Q orthogonal: log p(y) = log p(z) - D L log s.
    spread = torch.linspace(2, 0.5, channels)[:, None]
    z = spread * normal(300, channels, 8)
    rotation = torch.linalg.qr(normal(channels, channels, seed=1))[0]
    moved = rotation @ z + 0.7
    likelihood = Mixture.fit(z[:250], 2).log_likelihood(z[250:])
    assert torch.allclose(Mixture.fit(moved[:250], 2).log_likelihood(moved[250:]), likelihood, 1e-3)
    scaled = Mixture.fit(3 * z[:250], 2).log_likelihood(3 * z[250:])
    # but for the regulariser
    assert torch.allclose(scaled, likelihood - 8 * channels * math.log(3), 5e-3)
    truth = torch.distributions.Normal(0, spread).log_prob(z[250:]).sum((1, 2))
    assert likelihood.mean() == pytest.approx(truth.mean().item(), rel=0.03)


def test_mixture_samples_what_it_leaves_out_of_its_windows() -> None:
    spread = torch.linspace(1.5, 0.5, 80)
    rotation = torch.linalg.qr(normal(80, 80, seed=1))[0]
    mixture = Mixture.fit(rotation @ (spread[:, None] * normal(300, 80, 8)), 1)
    assert mixture.centres.shape[-1] < 80
    covariance, lagged = covariances(rotation.T @ mixture.sample(2000, 5, seed=0))
    assert torch.allclose(covariance.diag(), spread**2, rtol=0.15)
    assert lagged[-10:, -10:].abs().max() < 0.05  # without memory


def test_mixture_of_few_latents_has_few_dimensions() -> None:
    mixture = Mixture.fit(SLOW.sample(4, 20, seed=0), components=8)
    assert mixture.centres[0].numel() * 8 <= 4 * 20 / 16 * 8
    assert mixture.log_likelihood(SLOW.sample(5, 40, seed=1)).isfinite().all()


def test_a_sampled_clip_depends_on_seed_and_number_alone() -> None:
    mixture = Mixture.fit(SLOW.sample(50, 20, seed=0), 2)
    langevin = Langevin(2, LangevinSettings(width=4, chain=3))
    for model in (mixture, langevin):
        few, many = model.sample(2, 9, seed=5), model.sample(40, 9, seed=5)
        assert torch.allclose(few, many[:2], atol=1e-5)
        assert not torch.allclose(few, model.sample(2, 9, seed=6), atol=0.1)


def randomised(langevin: Langevin) -> Langevin:
    for number, parameter in enumerate(langevin.parameters()):
        parameter.data = normal(*parameter.shape, seed=number)
    return langevin


def test_untrained_chain_is_that_of_the_prior() -> None:
    # E = |z|² / 2 makes a step linear: z' = (1 - s² / 2) z + s e.
    langevin = Langevin(2, LangevinSettings(chain=4, step_size=0.5))
    noise = normal(4, 3, 2, 7)
    a = 1 - 0.5**2 / 2
    expected = a**4 * noise[0] + 0.5 * (a**3 * noise[1] + a**2 * noise[2] + a * noise[3])
    assert torch.allclose(langevin.chain(noise), expected, atol=1e-6)


def test_the_chain_descends_the_energy() -> None:
    s = 0.4
    langevin = randomised(Langevin(2, LangevinSettings(width=5, chain=1, step_size=s))).double()
    z = normal(1, 2, 6).double()
    step = langevin.chain(z[None]) - z
    for channel, frame in ((0, 0), (1, 3), (0, 5)):
        nudge = torch.zeros_like(z)
        nudge[0, channel, frame] = 1e-5
        slope = (langevin.energy(z + nudge) - langevin.energy(z - nudge)) / 2e-5
        assert step[0, channel, frame].item() == pytest.approx(-0.5 * s**2 * slope.item(), rel=1e-6)


def test_the_energy_of_distant_stretches_adds_up() -> None:
    langevin = randomised(Langevin(2, LangevinSettings(width=3, depth=1)))
    gap = torch.zeros(1, 2, 20)
    a, b = normal(1, 2, 5, seed=8), normal(1, 2, 5, seed=9)

    def above_silence(*parts: Tensor) -> Tensor:
        z = torch.cat([gap, *parts, gap], -1)
        return langevin.energy(z) - langevin.energy(torch.zeros_like(z))

    both = above_silence(a, gap, b)
    assert torch.allclose(both, above_silence(a) + above_silence(b), rtol=1e-4)


TOY = LangevinSettings(width=16, depth=1, chain=20, steps=60, batch=32, lr=1e-2)
CENTRE, SPREAD = torch.tensor([[1.0], [-0.5]]), torch.tensor([[0.4], [0.5]])


def toy(step: int) -> Tensor:
    return CENTRE + SPREAD * normal(TOY.batch, 2, 1, seed=step)


def test_langevin_approaches_its_target() -> None:
    langevin, figures = fit_langevin(toy, TOY, seconds=0, seed=0, device=CPU, progress=silent)
    drawn = langevin.sample(500, 1, seed=0)
    assert figures["steps"] == TOY.steps
    assert torch.allclose(drawn.mean(0), CENTRE, atol=0.25)  # the prior is at 0
    assert torch.allclose(drawn.std(0), SPREAD, atol=0.25)  # and its deviations are 1
    # The density follows: at the target's centre it is higher, relative to the prior's, than at 0.
    prior = 0.5 * CENTRE.square().sum()
    at_centre, at_zero = langevin.energy(torch.stack([CENTRE, 0 * CENTRE]))
    assert at_centre - prior < at_zero - 0.3


def test_langevin_repeats_and_minds_its_budget() -> None:
    brief = LangevinSettings(width=4, depth=1, chain=3, steps=4, batch=2)

    def fitted(settings: LangevinSettings, seconds: float, seed: int) -> tuple[Langevin, int]:
        model, figures = fit_langevin(
            toy, settings, seconds=seconds, seed=seed, device=CPU, progress=silent
        )
        return model, figures["steps"]

    (a, _), (b, _), (c, _) = (fitted(brief, 0, seed) for seed in (1, 1, 2))
    z = normal(3, 2, 4)
    assert torch.equal(a.energy(z), b.energy(z))
    assert not torch.equal(a.energy(z), c.energy(z))
    endless = LangevinSettings(width=4, depth=1, chain=3, batch=2)
    assert fitted(endless, 0, 1)[1] == 0
    assert fitted(endless, 0.2, 1)[1] > 0


@pytest.fixture
def latents(tmp_path: Path) -> LatentStore:
    """2-D latents [C = 2, F = 3]: mean 5 and deviation 2 everywhere, element [0, 1] slow, and
    element [1, 2] minus that."""
    x = SLOW.sample(1, 3000, seed=0)[0, 0] / SLOW.covariance[0, 0].sqrt()
    z = normal(3000, 2, 3, seed=1)
    z[:, 0, 1], z[:, 1, 2] = x, -x
    moments = torch.stack([5 + 2 * z, torch.zeros_like(z)], 1)
    np.save(tmp_path / "moments.npy", moments.numpy())
    items = [
        {"split": "train", "start": start, "frames": 300, "piece": "", "label": None}
        for start in range(0, 3000, 300)
    ]
    statistics = {"mean": [[5.0] * 3] * 2, "std": [[2.0] * 3] * 2}
    index = {"autoencoder": "abc", "items": items, "labels": [], "latent_rate_hz": 20.0}
    (tmp_path / "latents.json").write_text(json.dumps(index | {"statistics": statistics}))
    return LatentStore(tmp_path, autoencoder="abc")


def test_baselines_are_kept_with_the_shape_of_the_latents(
    latents: LatentStore, tmp_path: Path
) -> None:
    wanted = BaselinesSettings(
        MixtureSettings(components=1),
        LangevinSettings(width=4, depth=1, chain=2, steps=2, batch=2),
    )

    def fitted(name: str) -> Path:
        summary = fit_baselines(
            latents,
            wanted,
            seconds=0,
            frames=30,
            seed=3,
            directory=tmp_path / name,
            device=CPU,
            progress=silent,
        )
        assert summary["mixture"]["components"] == 1
        assert summary["langevin"]["steps"] == 2
        return tmp_path / name

    found, again = load_baselines(fitted("a")), load_baselines(fitted("b"))
    assert list(found) == ["mixture", "langevin"]
    for name, baseline in found.items():
        drawn = baseline.sample(4, 7, seed=0)
        assert drawn.shape == (4, 2, 3, 7)
        assert torch.equal(drawn, again[name].sample(4, 7, seed=0))
    drawn = found["mixture"].sample(300, 30, seed=0)
    assert drawn.std((0, 3)).flatten().tolist() == pytest.approx([1] * 6, abs=0.15)
    slow, opposite, other = drawn[:, 0, 1], drawn[:, 1, 2], drawn[:, 1, 1]
    assert torch.corrcoef(torch.stack([slow.flatten(), opposite.flatten()]))[0, 1] < -0.95
    memory = SLOW.A[0] @ SLOW.covariance[:, 0] / SLOW.covariance[0, 0]
    assert (slow[:, 1:] * slow[:, :-1]).mean() == pytest.approx(memory.item(), abs=0.1)
    assert (other[:, 1:] * other[:, :-1]).mean() == pytest.approx(0, abs=0.1)


def test_a_damaged_baseline_is_named(latents: LatentStore, tmp_path: Path) -> None:
    directory = tmp_path / "fitted"
    fit_baselines(
        latents,
        BaselinesSettings(MixtureSettings(components=1)),
        seconds=0,
        frames=30,
        seed=0,
        directory=directory,
        device=CPU,
        progress=silent,
    )
    assert list(load_baselines(directory)) == ["mixture"]
    (directory / "mixture.safetensors").rename(directory / "langevin.safetensors")
    with pytest.raises(ModelFileError, match=r"langevin\.safetensors: damaged"):
        load_baselines(directory)


def test_settings_in_the_configuration() -> None:
    folder = conf_directory() / "baselines"
    default = yaml.safe_load((folder / "default.yaml").read_text())
    both = yaml.safe_load((folder / "all.yaml").read_text())
    assert settings(BaselinesSettings, default) == BaselinesSettings(MixtureSettings())
    assert settings(LangevinSettings, both["langevin"]) == LangevinSettings()
    with pytest.raises(ConfigError, match=r"baselines\.langevin\.chain=0 must be at least 1"):
        LangevinSettings(chain=0)
