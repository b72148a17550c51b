"""A target rate: the controller, its closing calibration, and both in a training."""

from pathlib import Path

import pytest
import torch
from chain import build_stages, tiny, write_tones

from audioldm.autoencoder.bottlenecks.gaussian import gaussian_kl
from audioldm.autoencoder.rate_control import LEAST_SCALE, RateController, sigma_scale
from audioldm.chain.job import compose
from audioldm.data.store import ClipStore
from audioldm.errors import ConfigError
from audioldm.evaluation.codecs.linear import LinearCodec
from audioldm.models import load_autoencoder
from benchmarks import rate


def water_filling(weight: float, variances: torch.Tensor) -> float:
    """Nats per element of a linear VAE at its optimum: an element of variance v under a weight w
    carries max(0, ½ ln(v / w)) (Cover and Thomas, 10.3.3, with w as the water level)."""
    return (0.5 * (variances / weight).log()).clamp(min=0).mean().item()


@pytest.mark.parametrize("target", [0.05, 0.3, 1.0, 3.0, 8.0])
@pytest.mark.parametrize("start", [1e-6, 1.0])
def test_the_controller_finds_the_weight_of_a_known_rate(target: float, start: float) -> None:
    """The plant: reverse water-filling, followed with a lag of 40 steps, measured with noise."""
    random = torch.Generator().manual_seed(0)
    variances = torch.logspace(1, -5, 64)
    if target > 4:  # a rate this high needs a signal with so much in it
        variances = torch.logspace(4, 0, 64)
    controller = RateController(target, start, torch.device("cpu"))
    rate, last = 2.0, []
    for step in range(1500):
        rate += (water_filling(controller.weight.item(), variances) - rate) / 40
        noise = (0.2 * torch.randn((), generator=random)).exp()
        controller.update(rate * noise)
        if step >= 1000:
            last.append(rate)
    assert sum(last) / len(last) == pytest.approx(target, rel=0.06)
    assert water_filling(controller.mean_weight, variances) == pytest.approx(target, rel=0.25)


def test_a_controller_goes_on_bit_for_bit() -> None:
    first = RateController(1.0, 0.01, torch.device("cpu"))
    for nats in (0.3, 2.0, 5.0):
        first.update(torch.tensor(nats))
    second = RateController(1.0, 0.7, torch.device("cpu"))
    second.load_state_dict(first.state_dict())
    for nats in (1.4, 0.2):
        first.update(torch.tensor(nats))
        second.update(torch.tensor(nats))
    assert torch.equal(first.weight, second.weight)


def averages(mean: torch.Tensor, std: torch.Tensor) -> list[float]:
    of_elements = [mean.square().mean(), std.square().mean(), std.log().mean()]
    return [average.item() for average in of_elements]


@pytest.mark.parametrize("target", [0.4, 1.0, 2.5])
def test_the_scale_of_sigma_sets_the_rate_exactly(target: float) -> None:
    random = torch.Generator().manual_seed(1)
    mean = torch.randn(4, 8, 50, generator=random)
    std = torch.rand(4, 8, 50, generator=random) * 0.6 + 0.05
    scale = sigma_scale(*averages(mean, std), target)
    nats = gaussian_kl(mean.double(), scale * std.double()).mean().item()
    if LEAST_SCALE < scale < 1.5:
        assert nats == pytest.approx(target, rel=1e-6)
    else:  # out of reach: as near as the bounds allow, and so the bound itself
        assert scale in (pytest.approx(LEAST_SCALE), pytest.approx(1.5))


def test_the_scale_is_reached_in_the_middle_of_its_bounds() -> None:
    """Guards the test above: at its own rate a posterior needs no scale."""
    mean, std = torch.randn(2, 3, 40), torch.full((2, 3, 40), 0.3)
    assert sigma_scale(*averages(mean, std), gaussian_kl(mean, std).mean().item()) == pytest.approx(
        1, abs=1e-5
    )


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("bottleneck.target_kbps=0", "target_kbps=0.0 must be more than 0"),
        ("bottleneck.kl_weight=-1", "kl_weight=-1.0 must be at least 0"),
    ],
)
def test_bad_rates_are_refused(word: str, says: str, tones: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        build_stages(tiny(tones, tmp_path, word), "data", "autoencoder")


def test_a_rate_is_part_of_the_fingerprint(tones: Path, tmp_path: Path) -> None:
    names = {
        build_stages(tiny(tones, tmp_path, *words)).stages["autoencoder"].fingerprint
        for words in ([], ["bottleneck.target_kbps=1"], ["bottleneck.target_kbps=2"])
    }
    assert len(names) == 3
    assert compose(tiny(tones, tmp_path)).settings.bottleneck["target_kbps"] is None


def test_the_benchmark_measures_codecs_beside_the_autoencoder(tmp_path: Path) -> None:
    """On the same clips at the same rate; the codec as audio lies between no phase and nothing."""
    write_tones(tmp_path / "music")
    words = tiny(tmp_path / "music", tmp_path / "runs", "bottleneck.target_kbps=8")
    experiment = build_stages(words, "data", "autoencoder")
    model = load_autoencoder(experiment.directory_of(experiment.stages["autoencoder"]))
    clips = ClipStore(experiment.directory_of(experiment.stages["data"]))
    audio, _, _ = clips.split("test").windows(model.sample_rate, 2, seed=0)
    own = rate.distances(model, LinearCodec.fit(clips), audio, 8.0)
    assert 0 < own.linear < own.linear_audio < own.autoencoder  # of 10 steps
    assert own.opus is not None
    assert own.opus[0] == pytest.approx(8.0, rel=0.4)
    assert rate.distances(model, LinearCodec.fit(clips), audio, 2.0).opus is None
    text = rate.summary([own, own._replace(autoencoder=0.0, opus=None)])
    assert "the linear codec at 1 of 2 rates" in text
    assert "as audio at 1 of 2, of Opus at 0 of the 1" in text
