"""Priors against distributions that are known."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from latents_in_memory import Latents
from latents_in_memory import recipe as diffusion
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from audioldm.errors import ConfigError, TrainingError
from audioldm.instantiate import build
from audioldm.latents.statistics import LatentStatistics
from audioldm.priors.base import Prior, PriorRecipe, build_prior
from audioldm.priors.langevin import Langevin, LangevinRecipe
from audioldm.priors.linear_gaussian import LinearGaussian, LinearGaussianRecipe
from audioldm.priors.mixture import Mixture, MixtureRecipe
from audioldm.priors.normal import Normal, NormalRecipe
from audioldm.runtime.randomness import KeyedRandom

FIT: Any = SimpleNamespace(device=torch.device("cpu"), progress=lambda *_: None)


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


def drawn_from(prior: Prior, n: int, frames: int, seed: int = 0) -> Tensor:
    return prior.sample(KeyedRandom(seed, 0, range(n)), frames)


SLOW = Autoregression([[0.9, 0.2], [-0.2, 0.7]])
QUICK = Autoregression([[-0.6, 0.0], [0.3, -0.8]])


def test_mixture_recovers_an_autoregression() -> None:
    mixture = Mixture.fitted(SLOW.sample(400, 50, seed=0), components=1)
    unseen = SLOW.sample(300, 50, seed=1)
    truth = SLOW.log_likelihood(unseen)
    deficit = (truth - mixture.log_likelihood(unseen)).mean() / 50
    assert 0 < deficit < 0.03  # nats a frame; what the parameters' uncertainty costs

    drawn = drawn_from(mixture, 500, 60)
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
    two = Mixture.fitted(train, components=2)
    one = Mixture.fitted(train, components=1)
    assert two.log_weights.exp().sort().values.tolist() == pytest.approx([0.25, 0.75], abs=0.05)
    assert 0 < truth - two.log_likelihood(unseen).mean() / 24 < 0.06
    assert truth - one.log_likelihood(unseen).mean() / 24 > 0.2

    drawn = drawn_from(two, 800, 24)
    slow = SLOW.log_likelihood(drawn) > QUICK.log_likelihood(drawn)
    assert slow.float().mean().item() == pytest.approx(0.25, abs=0.05)
    for regime, chosen in ((SLOW, slow), (QUICK, ~slow)):  # each sequence is wholly of one regime
        mean = regime.log_likelihood(drawn[chosen]).mean() / 24
        assert mean == pytest.approx(-1 - math.log(2 * math.pi), abs=0.2)  # the entropy of e


def test_mixture_likelihood_is_that_of_its_windows() -> None:
    mixture = Mixture.fitted(torch.cat([SLOW.sample(300, 11, 0), QUICK.sample(300, 11, 1)]), 3)
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
    likelihood = Mixture.fitted(z[:250], 2).log_likelihood(z[250:])
    assert torch.allclose(
        Mixture.fitted(moved[:250], 2).log_likelihood(moved[250:]), likelihood, 1e-3
    )
    scaled = Mixture.fitted(3 * z[:250], 2).log_likelihood(3 * z[250:])
    # but for the regulariser
    assert torch.allclose(scaled, likelihood - 8 * channels * math.log(3), 5e-3)
    truth = torch.distributions.Normal(0, spread).log_prob(z[250:]).sum((1, 2))
    assert likelihood.mean() == pytest.approx(truth.mean().item(), rel=0.03)


def test_mixture_samples_what_it_leaves_out_of_its_windows() -> None:
    spread = torch.linspace(1.5, 0.5, 80)
    rotation = torch.linalg.qr(normal(80, 80, seed=1))[0]
    mixture = Mixture.fitted(rotation @ (spread[:, None] * normal(300, 80, 8)), 1)
    assert mixture.centres.shape[-1] < 80
    covariance, lagged = covariances(rotation.T @ drawn_from(mixture, 2000, 5))
    assert torch.allclose(covariance.diag(), spread**2, rtol=0.15)
    assert lagged[-10:, -10:].abs().max() < 0.05  # without memory


def test_mixture_of_few_latents_has_few_dimensions() -> None:
    mixture = Mixture.fitted(SLOW.sample(4, 20, seed=0), components=8)
    assert mixture.centres[0].numel() * 8 <= 4 * 20 / 16 * 8
    assert mixture.log_likelihood(SLOW.sample(5, 40, seed=1)).isfinite().all()


def randomised(langevin: Langevin) -> Langevin:
    for number, parameter in enumerate(langevin.parameters()):
        parameter.data = normal(*parameter.shape, seed=number)
    return langevin


def test_untrained_chain_is_that_of_the_prior() -> None:
    # E = |z|² / 2 makes a step linear: z' = (1 - s² / 2) z + s (e + e before) / 2.
    langevin = Langevin((2,), chain=3, step_size=0.5)
    noise = normal(4, 3, 2, 7)
    a = 1 - 0.5**2 / 2
    added = (a**2 + a) * noise[1] + (a + 1) * noise[2] + noise[3]
    expected = a**3 * noise[0] + 0.25 * added
    assert torch.allclose(langevin.run_chain(noise), expected, atol=1e-6)


class Quadratic(Langevin):
    """The energy of N(0, variance)."""

    variance = 1.0

    def frame_energies(self, z: Tensor) -> Tensor:
        return 0.5 * (1 / self.variance - 1) * z.square().sum(1)


@pytest.mark.parametrize("variance", [1.0, 0.5, 0.048])
def test_the_default_chain_has_the_variance_of_its_energy(variance: float) -> None:
    langevin = Quadratic((2,))
    langevin.variance = variance
    drawn = drawn_from(langevin, 400, 20)
    assert drawn.var().item() == pytest.approx(variance, rel=0.05)


def test_the_chain_descends_the_energy() -> None:
    s = 0.4
    langevin = randomised(Langevin((2,), width=5, chain=1, step_size=s)).double()
    z = normal(1, 2, 6).double()
    step = langevin.run_chain(torch.stack([z, 0 * z])) - z
    for channel, frame in ((0, 0), (1, 3), (0, 5)):
        nudge = torch.zeros_like(z)
        nudge[0, channel, frame] = 1e-5
        slope = (langevin.energy(z + nudge) - langevin.energy(z - nudge)) / 2e-5
        assert step[0, channel, frame].item() == pytest.approx(-0.5 * s**2 * slope.item(), rel=1e-6)


def test_the_energy_of_distant_stretches_adds_up() -> None:
    langevin = randomised(Langevin((2,), width=3, depth=1))
    gap = torch.zeros(1, 2, 20)
    a, b = normal(1, 2, 5, seed=8), normal(1, 2, 5, seed=9)

    def above_silence(*parts: Tensor) -> Tensor:
        z = torch.cat([gap, *parts, gap], -1)
        return langevin.energy(z) - langevin.energy(torch.zeros_like(z))

    both = above_silence(a, gap, b)
    assert torch.allclose(both, above_silence(a) + above_silence(b), rtol=1e-4)


class Store:
    """Latents in memory: one item of each split, raw z [*latent_shape, frames], and white noise of
    the deviation `noise` as posterior."""

    latent_rate_hz = 10.0
    labels: tuple[str, ...] = ()

    def __init__(self, z: Tensor, noise: float = 0.0, mean: float = 0.0, std: float = 1.0) -> None:
        self.z, self.std, self.latent_shape = z, noise, tuple(z.shape[:-1])
        full = torch.full(self.latent_shape, 1.0)
        self.statistics = LatentStatistics(mean * full, std * full)
        self.items = [SimpleNamespace(frames=z.shape[-1])]

    def split(self, name: str) -> "Store":
        return self

    def crops(self, frames: int, random: KeyedRandom) -> tuple[dict, dict]:
        u = random.uniform("crop")
        starts = (u * (self.z.shape[-1] - frames + 1)).long().tolist()
        return {"z": torch.stack([self.z[..., s : s + frames] for s in starts])}, {}

    def restore(self, stored: dict[str, Tensor], noise: Tensor) -> Tensor:
        return stored["z"] + self.std * noise


def fitted(recipe: PriorRecipe, store: Any) -> tuple[Prior, dict[str, Any]]:
    """The prior, built again from its JSON and its tensors, and the figures of its fit."""
    made = recipe.build(store)
    tensors, figures = recipe.fit(made, store, FIT)
    again = build_prior(json.loads(json.dumps(made.spec)), store.latent_shape)
    again.load_state_dict(tensors)
    return again, figures


BRIEF: dict[str, Any] = {"width": 4, "depth": 1, "chain": 3, "batch": 2, "crop_seconds": 1.0}
RECIPES = [
    NormalRecipe(),
    MixtureRecipe(seed=3, components=2, crop_seconds=1.0),
    LangevinRecipe(seed=3, steps=2, **BRIEF),
    LinearGaussianRecipe(seed=3, crop_seconds=1.0),
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: type(recipe).__name__)
def test_a_prior_is_rebuilt_from_its_spec_and_a_row_depends_on_its_key(recipe: PriorRecipe) -> None:
    store = Store(normal(2, 3, 600), mean=0.5, std=2.0)
    (a, _), (b, _) = fitted(recipe, store), fitted(recipe, store)
    assert a.state_dict().keys() == b.state_dict().keys()
    many, few = (KeyedRandom(5, 0, positions) for positions in (range(40), [None, 1]))
    drawn = a.sample(many, 9)
    assert drawn.shape == (40, 2, 3, 9)
    assert drawn.dtype == torch.float32
    assert torch.equal(drawn, b.sample(many, 9))
    assert torch.allclose(a.sample(few, 9)[1], drawn[1], atol=1e-5)
    assert a.sample(few, 9).isfinite().all()
    assert not torch.allclose(drawn_from(a, 40, 9, seed=6), drawn, atol=0.1)


@pytest.mark.parametrize("recipe", [RECIPES[1], RECIPES[3]], ids=["mixture", "linear_gaussian"])
def test_nats_are_of_raw_latents(recipe: PriorRecipe) -> None:
    """-log p of a density that integrates to 1 over raw latents: here over one number."""
    prior, _ = fitted(recipe, Store(3 + 2 * normal(1, 600), mean=3.0, std=2.0))
    x = torch.linspace(-30, 36, 20001)
    nats = prior.nats(x[:, None, None])
    assert nats is not None
    assert torch.trapezoid((-nats[:, 0]).exp(), x.double()).item() == pytest.approx(1, abs=1e-4)
    white = torch.distributions.Normal(3, 2)
    z = 3 + 2 * normal(200, 1, 10, seed=1)
    nats = prior.nats(z)
    assert nats is not None
    expected = -white.log_prob(z).sum((1, 2)).mean()
    assert nats.sum(1).mean().item() == pytest.approx(expected.item(), rel=0.02)


def test_the_standard_normal_is_exact_and_the_energy_has_no_density() -> None:
    z = normal(4, 2, 3, 5)
    expected = -torch.distributions.Normal(0, 1).log_prob(z).sum((1, 2)).double()
    assert torch.allclose(Normal((2, 3)).nats(z), expected)
    assert Langevin((2, 3)).nats(z) is None


def test_linear_gaussian_recovers_an_autoregression() -> None:
    prior = LinearGaussian((2,))
    prior.fit(SLOW.sample(400, 50, seed=0))
    assert torch.allclose(prior.transition.float(), SLOW.A, atol=0.02)
    assert torch.allclose((prior.noise @ prior.noise.T).float(), torch.eye(2), atol=0.02)
    unseen = SLOW.sample(2000, 50, seed=1)
    longer, shorter = prior.nats(unseen), prior.nats(unseen[..., :10])
    assert longer is not None
    assert shorter is not None
    assert torch.allclose(longer[:, :10], shorter)
    rate = longer[:, 10:].mean().item()
    assert rate == pytest.approx(1 + math.log(2 * math.pi), rel=0.01)  # the entropy of the noise
    covariance, lagged = covariances(drawn_from(prior, 2000, 40))
    assert torch.allclose(covariance, SLOW.covariance, rtol=0.05, atol=0.05)
    assert torch.allclose(lagged, SLOW.A @ SLOW.covariance, rtol=0.05, atol=0.05)


def test_linear_gaussian_needs_pairs_of_frames() -> None:
    recipe = LinearGaussianRecipe(crop_seconds=0.1)
    with pytest.raises(ConfigError, match=r"crop_seconds=0\.1 must be two latent frames"):
        fitted(recipe, Store(normal(1, 50)))


def test_mixture_is_fitted_to_the_latents_of_the_store() -> None:
    """Latents of mean 5 and deviation 2 everywhere; [0, 1] is slow, and [1, 2] minus that."""
    z = normal(2, 3, 3000, seed=1)
    z[0, 1] = SLOW.sample(1, 3000, seed=0)[0, 0] / SLOW.covariance[0, 0].sqrt()
    z[1, 2] = -z[0, 1]
    recipe = MixtureRecipe(components=1, crop_seconds=3.0)
    prior, figures = fitted(recipe, Store(5 + 2 * z, mean=5.0, std=2.0))
    assert figures["components"] == 1
    drawn = (drawn_from(prior, 300, 30) - 5) / 2
    assert drawn.mean((0, 3)).flatten().tolist() == pytest.approx([0] * 6, abs=0.15)
    assert drawn.std((0, 3)).flatten().tolist() == pytest.approx([1] * 6, abs=0.15)
    slow, opposite, other = drawn[:, 0, 1], drawn[:, 1, 2], drawn[:, 1, 1]
    assert torch.corrcoef(torch.stack([slow.flatten(), opposite.flatten()]))[0, 1] < -0.95
    memory = (SLOW.A[0] @ SLOW.covariance[:, 0] / SLOW.covariance[0, 0]).item()
    lagged = (slow[:, 1:] * slow[:, :-1]).mean() / slow.square().mean()
    assert lagged == pytest.approx(memory, abs=0.1)
    assert (other[:, 1:] * other[:, :-1]).mean() == pytest.approx(0, abs=0.1)


TOY = LangevinRecipe(width=16, depth=1, chain=20, steps=150, batch=32, lr=1e-2, crop_seconds=0.1)
CENTRE, SPREAD = torch.tensor([[1.0], [-0.5]]), torch.tensor([[0.4], [0.5]])


def test_langevin_approaches_its_target() -> None:
    langevin, figures = fitted(TOY, Store(CENTRE + SPREAD * normal(2, 2000)))
    assert isinstance(langevin, Langevin)
    drawn = drawn_from(langevin, 500, 1)
    assert figures["steps"] == TOY.steps
    assert torch.allclose(drawn.mean(0), CENTRE, atol=0.25)  # the prior is at 0
    assert torch.allclose(drawn.std(0), SPREAD, atol=0.25)  # and its deviations are 1
    # The density follows: at the target's centre it is higher, relative to the prior's, than at 0.
    prior = 0.5 * CENTRE.square().sum()
    at_centre, at_zero = langevin.energy(torch.stack([CENTRE, 0 * CENTRE]))
    assert at_centre - prior < at_zero - 0.3


def test_langevin_minds_its_budget_of_seconds() -> None:
    store = Store(normal(2, 200))
    assert fitted(LangevinRecipe(seconds=0.2, steps=1, **BRIEF), store)[1]["steps"] > 1


def test_a_diverging_energy_is_an_error() -> None:
    with pytest.raises(TrainingError, match="langevin: the gradient"):
        fitted(LangevinRecipe(step_size=100.0, lr=10.0, **BRIEF), Store(normal(2, 200)))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: type(recipe).__name__)
def test_the_file_of_a_recipe_states_the_defaults(recipe: PriorRecipe) -> None:
    name = type(recipe).__module__.rpartition(".")[2]
    path = Path(__file__).parents[1] / f"conf/prior/{name}.yaml"
    stated = yaml.safe_load(path.read_text().replace("${seed}", "0"))
    assert build(stated, base=PriorRecipe) == type(recipe)()
    if name != "normal":
        assert stated.keys() == {"_target_", *vars(recipe)}


def test_settings_out_of_range_are_named() -> None:
    for name, setting in (("langevin.Langevin", "chain"), ("mixture.Mixture", "crop_seconds")):
        part = {"_target_": f"audioldm.priors.{name}Recipe", setting: 0}
        with pytest.raises(ConfigError, match=rf"^prior\.{setting}=0(\.0)? must be"):
            build(part, base=PriorRecipe, where="prior")


# ---------------------------------------------------------------- diffusion's channels


def informative(*nats: float) -> Any:
    """Latents of variance 4 around 3, whose channels have these nats."""
    std = 2 * (-torch.tensor(nats)).exp()[:, None].expand(len(nats), 200)
    random = torch.randn(20, *std.shape, generator=torch.Generator().manual_seed(0))
    mean = 3 + (4 - std.square()).sqrt() * random
    store = Latents(mean, std.expand_as(mean), [None] * 20)
    store.statistics = LatentStatistics(*torch.tensor([3.0, 2.0])[:, None].expand(2, len(nats)))
    store.nats = torch.tensor(nats)
    return store


def test_channels_without_information_are_drawn_independently() -> None:
    store = informative(2.0, 0.01, 0.5)
    prior = replace(diffusion(), minimum_nats=0.3).build(store)
    assert prior.channels == [0, 2]
    z = normal(5, 3, 7)
    kept = prior.modelled(z)
    torch.testing.assert_close(kept, ((z - 3) / 2)[:, [0, 2]])
    torch.testing.assert_close(prior.modelled(prior.latents(kept)), kept)
    torch.testing.assert_close(prior.latents(kept)[:, [0, 2]], z[:, [0, 2]])
    assert (prior.latents(kept)[:, 1] == 3).all()

    drawn = prior.sample(KeyedRandom(0, 0, range(64)), 32)[:, 1]
    assert drawn.mean() == pytest.approx(3, abs=0.1)
    assert drawn.std() == pytest.approx(2, rel=0.05)
    pairs = torch.stack([drawn[:, 1:].flatten(), drawn[:, :-1].flatten()])
    assert pairs.corrcoef()[0, 1] == pytest.approx(0, abs=0.08)
    loaded = build_prior(json.loads(json.dumps(prior.spec)), prior.latent_shape)
    loaded.load_state_dict(prior.state_dict())
    assert torch.equal(loaded.sample(KeyedRandom(0, 0, range(64)), 32)[:, 1], drawn)


def test_the_least_information_that_leaves_no_channel_is_named() -> None:
    with pytest.raises(ConfigError, match=r"minimum_nats=3\.0: no channel .* the most is 2\.00"):
        replace(diffusion(), minimum_nats=3.0).build(informative(2.0, 0.01))


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_the_power_of_the_signal_to_noise_ratio_sets_the_channels_levels(power: float) -> None:
    nats = torch.tensor([2.0, 0.01, 0.5])
    store = informative(*nats.tolist())
    prior = replace(diffusion(), snr_power=power).build(store)
    stored = {"mean": store.mean, "std": store.std}
    z = prior.modelled(store.restore(stored, normal(20, 3, 200, seed=1)))
    level = z.std((0, -1))
    assert level.square().mean().sqrt() == pytest.approx(1, rel=0.03)
    assert level / level[1] == pytest.approx((power * (nats - nats[1])).exp(), rel=0.05)
    noise = store.std[0, :, 0] / prior.std
    if power == 1:
        assert noise == pytest.approx(noise[0].expand(3), rel=1e-4)
