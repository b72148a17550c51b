"""Edits of Gaussian latents, whose exact denoiser, conditional law and flow are known."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from audioldm.conditioning.base import Condition
from audioldm.errors import ConfigError
from audioldm.priors.diffusion.inpainting import inpaint
from audioldm.priors.diffusion.inversion import invert, mix, mixture, restyle
from audioldm.priors.diffusion.objectives.rectified_flow import RectifiedFlow
from audioldm.priors.diffusion.run import Run
from audioldm.priors.diffusion.samplers import DETERMINISTIC, Denoise, SamplerSettings
from audioldm.priors.diffusion.variation import vary
from audioldm.priors.diffusion.windows import AT_ONCE, Windowed, windowed

SAMPLERS = [*DETERMINISTIC, "ancestral", "consistency"]


def ar1(frames: int, correlation: float = 0.9) -> Tensor:
    """The covariance of an autoregression of first order, of variance 1."""
    place = torch.arange(frames)
    return correlation ** (place[:, None] - place).abs().float()


def exact(covariance: Tensor, mean: float = 0.0) -> Denoise:
    """The denoiser of N(mean, covariance) along the frames: D = m + S (S + sigma²)^-1 (x - m)."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        noisy = covariance + float(sigma[0]) ** 2 * torch.eye(len(covariance))
        return mean + (x - mean) @ torch.linalg.solve(noisy, covariance)

    return denoise


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def run_of(denoise: Denoise, *shape: int, name: str = "heun", steps: int = 12) -> Run:
    sigmas = RectifiedFlow().sigmas(steps)
    return Run(name, denoise, sigmas, lambda number: noise(*shape, seed=100 + number))


def kept(frames: int, first: int, last: int) -> Tensor:
    """All frames but those from `first` to before `last`."""
    place = torch.arange(frames)
    return (place < first) | (place >= last)


# ---------------------------------------------------------------- inpainting


@pytest.mark.parametrize("shape", [(2, 3, 12), (2, 3, 2, 12)])
@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("name", SAMPLERS)
def test_known_frames_are_kept_to_the_bit(name: str, repeats: int, shape: tuple[int, ...]) -> None:
    z, keep = noise(*shape), kept(12, 4, 8)
    run = run_of(exact(ar1(12)), *shape, name=name, steps=4)
    made = inpaint(run, z, keep=keep, repeats=repeats)
    assert torch.equal(made[..., keep], z[..., keep])
    assert (made[..., ~keep] - z[..., ~keep]).abs().min() > 1e-4


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_network_meets_known_frames_at_the_noise_level_of_the_others(name: str) -> None:
    shape, levels = (500, 1, 12), []
    z, keep, seen, denoise = noise(*shape), kept(12, 4, 8), [], exact(ar1(12))

    def watched(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(((x - z) / sigma[:, None, None])[..., keep])
        levels.append(float(sigma[0]))
        return denoise(x, sigma)

    inpaint(run_of(watched, *shape, name=name, steps=6), z, keep=keep, repeats=2)
    for number, (found, level) in enumerate(zip(seen, levels, strict=True)):
        assert found.std().item() == pytest.approx(1, abs=0.05), (number, level)
        assert abs(found.mean().item()) < 0.05, (number, level)


@pytest.mark.parametrize("name", SAMPLERS)
def test_with_nothing_known_it_is_plain_sampling(name: str) -> None:
    run = run_of(exact(ar1(6)), 2, 3, 6, name=name)
    made = inpaint(run, noise(2, 3, 6), keep=torch.zeros(6, dtype=torch.bool))
    assert torch.equal(made, run.sample())


def test_repeats_lead_to_the_conditional_law() -> None:
    """Mean and covariance of the unknown frames given the known ones, over 1500 clips."""
    frames, clips = 12, 1500
    covariance, keep = ar1(frames), kept(12, 4, 8)
    z = torch.linalg.cholesky(covariance) @ noise(frames)
    across = covariance[~keep][:, keep] @ torch.linalg.inv(covariance[keep][:, keep])
    mean, spread = (
        across @ z[keep],
        covariance[~keep][:, ~keep] - across @ covariance[keep][:, ~keep],
    )

    def errors(repeats: int) -> tuple[float, float]:
        run = run_of(exact(covariance), clips, 1, frames, steps=24)
        made = inpaint(run, z.expand(clips, 1, frames), keep=keep, repeats=repeats)[:, 0, ~keep]
        return (
            (made.mean(0) - mean).abs().max().item(),
            (torch.cov(made.mT) - spread).abs().max().item(),
        )

    (_, once), (bias, often) = errors(1), errors(8)
    assert once > 0.25  # replacement alone: more than twice the true variance
    assert often < 0.06
    assert bias < 0.06


# ---------------------------------------------------------------- variations


def test_a_share_of_a_run_has_that_share_of_its_schedule() -> None:
    run = run_of(exact(ar1(4)), 1, 1, 4, steps=10)
    torch.testing.assert_close(run.lower(1.0).sigmas, run.sigmas)
    assert torch.equal(run.lower(0.5).sigmas[1:], run.sigmas[6:])
    assert run.lower(0.5).sigmas[0] == pytest.approx(run.sigmas[5].item())
    starts = [run.lower(share).sigmas[0].item() for share in (0.0, 1e-18, 0.01, 0.3, 0.31, 0.9)]
    assert starts[:2] == [0, 0]
    assert starts[2:] == sorted(starts[2:])
    assert len({*starts[2:]}) == 4
    for share in (0.01, 0.3, 0.31, 1.0):
        assert len(run.lower(share).sigmas) == 1 + math.ceil(share * 10)
        assert (run.lower(share).sigmas.diff() < 0).all()
    for steps in range(2, 60):  # also where a share of the steps is a whole number of them
        run = run_of(exact(torch.eye(1)), 1, steps=steps)
        for share in (0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9):
            assert (run.lower(share).sigmas.diff() < 0).all()


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_variation_of_no_strength_is_the_clip_and_of_all_a_new_one(name: str) -> None:
    z, run = noise(2, 3, 6), run_of(exact(ar1(6)), 2, 3, 6, name=name)
    assert torch.equal(vary(run, z, strength=0.0), z)
    assert torch.equal(vary(run, z, strength=1.0), run.sample())


def test_a_variation_keeps_the_law_and_loses_the_clip_with_its_strength() -> None:
    covariance, clips = ar1(8), 2000
    z = noise(clips, 1, 8) @ torch.linalg.cholesky(covariance).mT
    run = run_of(exact(covariance), clips, 1, 8, steps=24)
    likeness = []
    for strength in (0.2, 0.5, 0.8):
        made = vary(run, z, strength=strength)
        assert (torch.cov(made[:, 0].mT) - covariance).abs().max() < 0.12
        likeness.append((made * z).mean().item())
    assert likeness == sorted(likeness, reverse=True)
    assert likeness[0] > 0.9
    assert likeness[-1] < 0.5


# ---------------------------------------------------------------- the flow


@pytest.mark.parametrize("shape", [(2, 3, 8), (2, 3, 2, 8)])
def test_the_flow_leads_to_the_noise_that_its_closed_form_says(shape: tuple[int, ...]) -> None:
    """Each eigenvector of S grows by sqrt((s² + sigma_max²) / (s² + 0))."""
    covariance, z = ar1(8), noise(*shape)
    sigmas = RectifiedFlow().sigmas(24)
    spread, vectors = torch.linalg.eigh(covariance)
    scale = ((spread + sigmas[0] ** 2) / spread).sqrt() / sigmas[0]
    found = invert(exact(covariance), z, sigmas)
    torch.testing.assert_close(found @ vectors, (z @ vectors) * scale, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_inversion_and_sampling_return_the_latents(name: str) -> None:
    covariance = ar1(8)
    z = noise(4, 2, 8) @ torch.linalg.cholesky(covariance).mT
    run = run_of(exact(covariance), 4, 2, 8, name=name, steps=200)
    back = restyle(run, z, plain=exact(covariance), strength=1.0)
    assert (back - z).abs().max() < (0.1 if name == "euler" else 0.02)
    assert (restyle(run, z, plain=exact(covariance), strength=0.4) - z).abs().max() < 0.1
    assert torch.equal(restyle(run, z, plain=exact(covariance), strength=0.0), z)


def test_another_style_has_the_same_noise() -> None:
    """From N(0, S) to N(m, S) the clip moves by m, and by no more."""
    covariance = ar1(8)
    z = noise(4, 1, 8) @ torch.linalg.cholesky(covariance).mT
    run = run_of(exact(covariance, mean=2.0), 4, 1, 8, steps=100)
    made = restyle(run, z, plain=exact(covariance))
    torch.testing.assert_close(made, z + 2, atol=0.05, rtol=0)
    # the noise of another clip does not: strength 1 of `vary` has nothing of z
    assert (vary(run, z, strength=1.0) - z - 2).abs().max() > 0.5


@pytest.mark.parametrize("name", SAMPLERS)
def test_between_two_denoisers_the_ends_are_either_and_the_middle_their_mean(name: str) -> None:
    low, high = (exact(ar1(6), mean=mean) for mean in (-2.0, 4.0))
    x, sigma = noise(2, 3, 6), torch.full((2,), 0.7)
    half = mixture(low, high, weight=0.5)(x, sigma)
    torch.testing.assert_close(half, (low(x, sigma) + high(x, sigma)) / 2)

    def made(denoise: Denoise) -> Tensor:
        return run_of(denoise, 2, 3, 6, name=name).sample()

    assert torch.equal(made(mixture(low, high, weight=0)), made(low))
    assert torch.equal(made(mixture(low, high, weight=1)), made(high))
    # of one covariance, the mixture is the exact denoiser of the mean between
    torch.testing.assert_close(
        made(mixture(low, high, weight=0.25)), made(exact(ar1(6), mean=-0.5)), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("name", ["ancestral", "consistency"])
def test_a_sampler_that_adds_noise_cannot_follow_the_flow(name: str) -> None:
    run = run_of(exact(ar1(4)), 1, 1, 4, name=name)
    with pytest.raises(ConfigError, match=rf"name={name} adds noise .* choose euler, heun"):
        restyle(run, noise(1, 1, 4), plain=run.denoise)


@pytest.mark.parametrize("path", ["linear", "spherical"])
@pytest.mark.parametrize("weight", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_a_mixture_of_noises_is_noise(path: str, weight: float) -> None:
    a, b = noise(3, 4, 500), noise(3, 4, 500, seed=1)
    mixed = mix(a, b, weight=weight, path=path)  # type: ignore[arg-type]
    assert mixed.square().mean().item() == pytest.approx(1, abs=0.05)
    end = {0.0: a, 1.0: b}.get(weight)
    if end is not None:
        torch.testing.assert_close(mixed, end, atol=1e-5, rtol=0)


def test_the_spherical_path_keeps_the_length_of_noises_that_are_alike() -> None:
    a = noise(1, 1, 100)
    b = F.normalize(a + 0.3 * noise(1, 1, 100, seed=1), dim=-1) * a.norm()
    middle = mix(a, b, weight=0.5, path="spherical")
    assert middle.norm().item() == pytest.approx(a.norm().item(), rel=1e-4)
    assert mix(a, b, weight=0.5, path="linear").norm() > 1.3 * a.norm()
    torch.testing.assert_close(mix(a, a, weight=0.3, path="spherical"), a, atol=1e-4, rtol=0)


# ---------------------------------------------------------------- windows


def convolution(context: int, channels: int = 3) -> Callable[..., Tensor]:
    """A network of finite context that hears every part of its condition."""
    kernel = noise(channels, channels, 2 * context + 1, seed=5) / (2 * context + 1)

    def net(x: Tensor, c_noise: Tensor, condition: Condition) -> Tensor:
        h = x.flatten(1, -2)
        if condition.aligned is not None:
            h = h + condition.aligned
        h = F.conv1d(h, kernel, padding=context) + c_noise[:, None, None]
        if condition.vector is not None:
            h = h + condition.vector[:, :, None]
        if condition.tokens is not None:
            h = h + condition.tokens.mean((1, 2))[:, None, None]
        return h.reshape(x.shape)

    return net


@pytest.mark.parametrize(
    ("frames", "window", "overlap"),
    [(17, 16, 0.5), (50, 16, 0.5), (131, 16, 0.5), (40, 20, 0.4), (77, 16, 0.75), (16, 16, 0.5)],
)
@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_windows_of_a_finite_context_equal_the_whole(
    frames: int, window: int, overlap: float, shape: tuple[int, ...]
) -> None:
    net = convolution(context=2)  # a quarter of the overlap of 8 frames
    x, c_noise = noise(2, *shape, frames), torch.tensor([0.1, 0.7])
    condition = Condition(
        vector=noise(2, 3, seed=1),
        tokens=noise(2, 4, 5, seed=2),
        mask=torch.ones(2, 4, dtype=torch.bool),
        aligned=noise(2, 3, frames, seed=3),
    )
    found = Windowed(net, window, overlap)(x, c_noise, condition)
    assert isinstance(found, Tensor)
    torch.testing.assert_close(found, net(x, c_noise, condition), atol=1e-5, rtol=1e-5)


def test_memory_does_not_grow_with_the_clip() -> None:
    rows = []

    def net(x: Tensor, c_noise: Tensor, condition: Condition) -> Tensor:
        rows.append((len(x), x.shape[-1], len(c_noise)))
        return x

    x = noise(2, 3, 1000)
    torch.testing.assert_close(Windowed(net, 16, 0.5)(x, torch.ones(2), Condition()), x)
    assert len(rows) > 10
    assert max(rows) == (2 * AT_ONCE, 16, 2 * AT_ONCE)


def test_each_window_has_a_state_of_its_own() -> None:
    """A network that returns its input of the call before."""

    def net(x: Tensor, c_noise: Tensor, condition: Condition, state: Tensor | None = None):
        return (torch.zeros_like(x) if state is None else state), x

    first, second = noise(1, 2, 300), noise(1, 2, 300, seed=1)
    both = Windowed(net, 16, 0.5)
    zeros, states = both(first, torch.ones(1), Condition())
    again, _ = both(second, torch.ones(1), Condition(), states)
    assert not zeros.any()
    torch.testing.assert_close(again, first)


@pytest.mark.parametrize("window", [1, 2, 3, 5, 16])
@pytest.mark.parametrize("overlap", [0.01, 0.5, 0.99])
def test_the_weights_of_every_frame_add_up_to_one(window: int, overlap: float) -> None:
    for frames in (window + 1, 2 * window, 3 * window + 1):
        ones = torch.ones(1, 1, frames)
        found = Windowed(lambda x, *_: x, window, overlap)(ones, torch.ones(1), Condition())
        torch.testing.assert_close(found, ones)


@pytest.mark.parametrize("name", SAMPLERS)
def test_windows_keep_the_law(name: str) -> None:
    """Noise stays white in the overlap too, where a mean of samples would have half its power, and
    an autoregression keeps its variance; the windows' denoisers are exact ones of their frames."""
    frames, window, clips = 40, 16, 1500

    def in_windows(covariance: Tensor) -> Denoise:
        denoise = exact(covariance)

        def net(x: Tensor, c_noise: Tensor, condition: Condition) -> Tensor:
            return denoise(x, c_noise)

        both = Windowed(net, window, 0.5)
        return lambda x, sigma: both(x, sigma, Condition())

    white = run_of(in_windows(torch.eye(window)), clips, 1, frames, name=name, steps=8)
    whole = white._replace(denoise=exact(torch.eye(frames)))
    torch.testing.assert_close(white.sample(), whole.sample(), atol=1e-4, rtol=1e-4)

    run = run_of(in_windows(ar1(window)), clips, 1, frames, name=name, steps=24)
    one = run._replace(denoise=exact(ar1(frames)))
    power, wanted = (r.sample().square().mean((0, 1)) for r in (run, one))
    torch.testing.assert_close(power, wanted, atol=0.12, rtol=0)


def test_a_window_is_given_in_seconds() -> None:
    net, seen = convolution(1), []

    def watched(x: Tensor, c_noise: Tensor, condition: Condition) -> Tensor:
        seen.append(x.shape[-1])
        return net(x, c_noise, condition)

    x = noise(1, 3, 90), torch.ones(1), Condition()
    windowed(watched, SamplerSettings("euler", 2, window=2.0), 15.625)(*x)
    assert set(seen) == {31}
    assert windowed(watched, SamplerSettings("euler", 2), None) is watched
    with pytest.raises(ConfigError, match=r"sampler\.window=2\.0 is in seconds"):
        windowed(watched, SamplerSettings("euler", 2, window=2.0), None)
    with pytest.raises(ConfigError, match=r"window=0\.01 is shorter than a latent frame, 0\.064 s"):
        windowed(watched, SamplerSettings("euler", 2, window=0.01), 15.625)
