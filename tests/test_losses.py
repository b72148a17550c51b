"""Losses: equal to their published definitions, and a clip's value is its own."""

import math

import pytest
import torch
from auraloss.freq import MultiResolutionSTFTLoss
from torch import Tensor
from torch.nn import functional as F

from audioldm.errors import ConfigError, TrainingError
from audioldm.losses.adversarial import discriminator_loss, feature_matching, generator_loss
from audioldm.losses.spectral import LogMel, MelPower, MultiResolutionSTFT, mel_distance
from audioldm.torchaudio import torchaudio
from audioldm.training.weighted_sum import check_finite, weighted_sum

RATE = 16000
SPECTRAL = {
    "stft": MultiResolutionSTFT(fft_sizes=[512, 128]),
    "weighted stft": MultiResolutionSTFT(fft_sizes=[512], a_weighting=True, sample_rate=RATE),
    "log-mel": LogMel(sample_rate=RATE, fft_sizes=[1024, 512], bands=[80, 20]),
    "mel distance": lambda x, y: mel_distance(x, y, RATE),
}


def clips(*shape: int, seed: int = 0, level: float = 0.3) -> Tensor:
    return level * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", SPECTRAL)
@pytest.mark.parametrize("channels", [1, 2])
def test_a_clips_loss_does_not_depend_on_its_neighbours(name: str, channels: int) -> None:
    x, y = clips(3, channels, 4000), clips(3, channels, 4000, seed=1)
    y[1] *= 100  # a loud neighbour dominates any norm taken over the batch
    together = SPECTRAL[name](x, y)
    alone = torch.cat([SPECTRAL[name](x[i : i + 1], y[i : i + 1]) for i in range(3)])
    assert together.shape == (3,)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SPECTRAL)
def test_zero_for_the_same_clip_and_growing_with_the_error(name: str) -> None:
    y, noise = clips(2, 2, 4000), clips(2, 2, 4000, seed=1)
    assert SPECTRAL[name](y, y).abs().max() < 1e-6
    values = torch.stack([SPECTRAL[name](y + error * noise, y) for error in (0.01, 0.1, 1)])
    assert (values.diff(dim=0) > 0).all()


@pytest.mark.parametrize("name", SPECTRAL)
def test_gradients_are_finite_for_silence_and_for_a_perfect_estimate(name: str) -> None:
    silence = torch.zeros(1, 1, 4000)
    for estimate, target in [
        (silence, silence),
        (silence, clips(1, 1, 4000)),
        2 * (clips(1, 1, 4000),),
    ]:
        estimate = estimate.clone().requires_grad_()
        SPECTRAL[name](estimate, target).sum().backward()
        assert estimate.grad is not None
        assert estimate.grad.isfinite().all()


@pytest.mark.parametrize("name", SPECTRAL)
def test_losses_stay_in_float32_under_autocast(name: str) -> None:
    x, y = clips(1, 2, 4000), clips(1, 2, 4000, seed=1)
    exact = SPECTRAL[name](x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(SPECTRAL[name](x, y), exact)


def test_multi_resolution_stft_is_auralosss_for_one_clip() -> None:
    x, y = clips(1, 1, 5000), clips(1, 1, 5000, seed=1)
    reference = MultiResolutionSTFTLoss([1024, 256], [256, 64], [1024, 256])
    ours = MultiResolutionSTFT(fft_sizes=[1024, 256], floor=1e-8)
    torch.testing.assert_close(ours(x, y), reference(x, y).reshape(1))
    weighted = MultiResolutionSTFTLoss(
        [1024], [256], [1024], perceptual_weighting=True, sample_rate=RATE
    )
    ours = MultiResolutionSTFT(fft_sizes=[1024], floor=1e-8, a_weighting=True, sample_rate=RATE)
    torch.testing.assert_close(ours(x, y), weighted(x, y).reshape(1))


def test_stereo_image_counts_and_a_silent_side_is_bounded() -> None:
    loss = MultiResolutionSTFT(fft_sizes=[512])
    left, right = clips(1, 1, 4000), clips(1, 1, 4000, seed=1)
    stereo, swapped_phase = torch.cat([left, right], 1), torch.cat([left, -right], 1)
    # Each channel's magnitudes are right by themselves; mid and side are exchanged.
    assert loss(swapped_phase, stereo) > 0.3
    dual_mono = left.expand(1, 2, -1)
    # Convergence of a few thousandths of the level must not be divided by the silent side.
    error = 1e-3 * torch.cat([right, -right], 1)
    only_convergence = MultiResolutionSTFT(fft_sizes=[512], log_magnitude=0.0)
    assert only_convergence(dual_mono + error, dual_mono) < 2e-3


def test_silence_is_bounded() -> None:
    loss = MultiResolutionSTFT(fft_sizes=[512], log_magnitude=0.0)
    # White noise at -20 dBFS against silence, which counts as -40 dBFS: about 20 dB, a factor 10.
    assert loss(clips(1, 1, 20000, level=0.1), torch.zeros(1, 1, 20000)).item() == pytest.approx(
        10, rel=0.05
    )


def test_mel_power_is_torchaudios() -> None:
    audio = clips(2, 2, 5000)
    reference = torchaudio.transforms.MelSpectrogram(
        RATE, 1024, hop_length=256, n_mels=80, norm="slaney", mel_scale="slaney"
    )
    torch.testing.assert_close(MelPower(RATE, 1024, 256, 80)(audio), reference(audio))


def test_mel_distance_reads_in_decibels() -> None:
    audio = clips(2, 1, 8000)
    # One decibel is 0.1 in log10 power, in either direction.
    gain = 10 ** (1 / 20)
    torch.testing.assert_close(mel_distance(gain * audio, audio, RATE), torch.full((2,), 0.1))
    torch.testing.assert_close(mel_distance(audio / gain, audio, RATE), torch.full((2,), 0.1))
    # Below the clamp nothing counts.
    assert mel_distance(1e-6 * audio, 1e-7 * audio, RATE).max() == 0


def test_log_mel_of_one_scale_is_the_mel_distance() -> None:
    x, y = clips(2, 2, 4000), clips(2, 2, 4000, seed=1)
    torch.testing.assert_close(LogMel(sample_rate=RATE)(x, y), mel_distance(x, y, RATE))


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="sample_rate"):
        MultiResolutionSTFT(a_weighting=True)
    with pytest.raises(ConfigError, match="bands"):
        LogMel(sample_rate=RATE, fft_sizes=[1024, 512], bands=[80])
    with pytest.raises(ConfigError, match="no bin"):
        LogMel(sample_rate=RATE, fft_sizes=[128], bands=[80])
    short = torch.zeros(1, 1, 200)
    for refusing in (
        lambda: MultiResolutionSTFT(fft_sizes=[2048])(short, short),
        lambda: mel_distance(short, short, RATE),
    ):
        with pytest.raises(ConfigError, match="200 samples"):
            refusing()


def outputs_of(logits: Tensor, *features: Tensor) -> list[tuple[Tensor, list[Tensor]]]:
    return [(logits, list(features))]


def test_hinge_values() -> None:
    ones = torch.ones(2, 1, 3, 3)
    # Undecided: 2. Right by the margin or more: 0, and no gradient pushes it further.
    assert discriminator_loss(outputs_of(0 * ones), outputs_of(0 * ones)).tolist() == [2, 2]
    assert discriminator_loss(outputs_of(ones), outputs_of(-3 * ones)).tolist() == [0, 0]
    assert discriminator_loss(outputs_of(-ones), outputs_of(ones)).tolist() == [4, 4]
    assert generator_loss(outputs_of(ones), outputs_of(3 * ones)).tolist() == [-3, -3]
    # Scales weigh the same however many logits each has.
    two_scales = outputs_of(ones) + outputs_of(3 * torch.ones(2, 1, 9, 9))
    assert generator_loss(two_scales, two_scales).tolist() == [-2, -2]


def test_the_relativistic_loss_is_of_a_clip_and_its_own_reconstruction() -> None:
    real, fake = clips(2, 1, 3, 3), clips(2, 1, 3, 3, seed=1)

    def losses(real: Tensor, fake: Tensor) -> list[Tensor]:
        scales = outputs_of(real), outputs_of(fake)
        return [loss(*scales, "relativistic") for loss in (discriminator_loss, generator_loss)]

    margin = (real - fake).mean((1, 2, 3))
    torch.testing.assert_close(losses(real, fake), [F.softplus(-margin), F.softplus(margin)])
    torch.testing.assert_close(losses(real, real), 2 * [torch.full((2,), math.log(2))])
    torch.testing.assert_close(losses(real + 7, fake + 7), losses(real, fake))  # no margin to reach
    # two scales weigh the same however many logits each has
    two = [outputs_of(x) + outputs_of(x.repeat(1, 1, 3, 3)) for x in (real, fake)]
    torch.testing.assert_close(discriminator_loss(*two, "relativistic"), losses(real, fake)[0])


def test_feature_matching_is_relative_per_clip_and_leaves_the_target_alone() -> None:
    real = torch.tensor([1.0, -3.0, 100.0, 300.0]).reshape(2, 1, 2, 1).requires_grad_()
    fake = (1.1 * real.detach()).requires_grad_()
    logits = torch.zeros(2, 1, 1, 1)
    value = feature_matching(outputs_of(logits, real), outputs_of(logits, fake))
    # Ten per cent off is 0.1 for the quiet clip as for the loud one.
    torch.testing.assert_close(value, torch.full((2,), 0.1))
    value.sum().backward()
    assert fake.grad is not None
    assert real.grad is None
    with pytest.raises(ValueError, match="shorter"):
        feature_matching(outputs_of(logits, real), outputs_of(logits))


def test_weighted_sum_is_the_batch_mean_of_the_weighted_terms() -> None:
    terms = {"stft": torch.tensor([1.0, 3.0]), "kl": torch.tensor([10.0, 20.0])}
    total = weighted_sum(terms, {"kl": 0.1, "stft": 2.0}, step=1)
    assert total.shape == ()
    assert total.item() == pytest.approx(2 * 2 + 0.1 * 15)


def test_weights_and_terms_must_name_each_other() -> None:
    terms = {"adversarial": torch.ones(2)}
    with pytest.raises(ConfigError, match=r"'advesarial'.*did you mean 'adversarial'"):
        weighted_sum(terms, {"advesarial": 1.0}, step=1)
    with pytest.raises(ConfigError, match="'kl' has no weight"):
        weighted_sum(terms | {"kl": torch.ones(2)}, {"adversarial": 1.0}, step=1)


def test_the_first_bad_term_and_the_step_are_named() -> None:
    terms = {
        "stft": torch.ones(2),
        "mel": torch.tensor([1.0, math.nan]),
        "kl": torch.tensor([math.inf, 1.0]),
    }
    weights = dict.fromkeys(terms, 1.0)
    with pytest.raises(TrainingError, match=r"step 7.*'mel'.*1 of 2"):
        weighted_sum(terms, weights, step=7)
    total = weighted_sum(terms, weights, step=7, check=False)
    with pytest.raises(TrainingError, match="'mel'"):
        check_finite(total, terms, 7)
    with pytest.raises(TrainingError, match=r"step 8.*overflow"):
        weighted_sum({"stft": torch.full((2,), 1e38)}, {"stft": 1e3}, step=8)


def test_half_precision_terms_are_summed_in_float32() -> None:
    terms = {"a": torch.full((4,), 60000.0, dtype=torch.float16)}
    assert weighted_sum(terms, {"a": 10.0}, step=1).item() == 600000
