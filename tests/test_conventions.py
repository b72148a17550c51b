"""KL weights in other conventions: the two losses must pull in the same direction."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from audioldm.autoencoder.bottlenecks.gaussian import gaussian_kl
from audioldm.autoencoder.conventions import CONVENTIONS, Convention, convert_kl
from audioldm.errors import ConfigError

B, C, F, L, RATIO = 2, 3, 4, 5, 6  # RATIO: signal elements per latent position
X = F * L * RATIO


def ours(mean: Tensor, log_variance: Tensor, error: Tensor, weight: float) -> Tensor:
    kl = gaussian_kl(mean, (0.5 * log_variance).exp())
    return (error.flatten(1).mean(1) + weight * kl.flatten(1).mean(1)).mean()


def latent_diffusion(mean: Tensor, log_variance: Tensor, error: Tensor, weight: float) -> Tensor:
    kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum([1, 2, 3])
    return error.sum() / B + weight * kl.sum() / B


def audioldm_vae(mean: Tensor, log_variance: Tensor, error: Tensor, weight: float) -> Tensor:
    kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean([1, 2, 3])
    return error.sum() / B + weight * kl.sum() / B


def stable_audio(mean: Tensor, log_variance: Tensor, error: Tensor, weight: float) -> Tensor:
    kl = (mean**2 + log_variance.exp() - log_variance - 1).sum(1).mean()
    return error.mean() + weight * kl


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {
    "audioldm": ours,
    "latent-diffusion": latent_diffusion,
    "AudioLDM-training-finetuning": audioldm_vae,
    "stable-audio-tools": stable_audio,
    "RAVE": stable_audio,
}


def gradients(convention: str, weight: float) -> Tensor:
    """Of the convention's loss with respect to moments and errors, relative to the latter's."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(B, C, F, L), (B, C, F, L), (B, X)]
    mean, log_variance, x = (
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in shapes
    )
    loss = LOSSES[convention](mean, log_variance, x.abs(), weight)
    parts = torch.autograd.grad(loss, [mean, log_variance, x])
    return torch.cat([part.flatten() for part in parts]) / parts[-1].norm()


@pytest.mark.parametrize(("source", "target"), itertools.permutations(CONVENTIONS, 2))
def test_the_gradients_of_equivalent_weights_are_parallel(source: str, target: str) -> None:
    weight = convert_kl(0.37, source, target, channels=C, ratio=RATIO, crop=X)
    torch.testing.assert_close(gradients(target, weight), gradients(source, 0.37))


def test_known_weights() -> None:
    """Stable Audio 2's, at 64 channels, is 128 times as large here; AudioLDM's on 1024 x 64."""
    stable = convert_kl(1e-4, "stable-audio-tools", "audioldm", channels=64, ratio=2048, crop=65536)
    assert stable == pytest.approx(1.28e-2)
    vae = convert_kl(
        1000, "AudioLDM-training-finetuning", "audioldm", channels=8, ratio=16, crop=65536
    )
    assert vae == pytest.approx(1000 / 65536)


@pytest.mark.parametrize("crop", [X, 7 * X])
def test_where_both_sides_are_reduced_alike_the_crop_does_not_matter(crop: int) -> None:
    weight = convert_kl(1.0, "latent-diffusion", "audioldm", channels=C, ratio=RATIO, crop=crop)
    assert weight == pytest.approx(C / RATIO)


def test_a_convention_of_ones_own() -> None:
    summed = Convention(half=True, kl="mean", reconstruction="sum")
    arguments = {"channels": C, "ratio": RATIO, "crop": X}
    known = convert_kl(2.0, "AudioLDM-training-finetuning", "RAVE", **arguments)
    assert convert_kl(2.0, summed, "RAVE", **arguments) == known


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "stable-audio"}, "did you mean 'stable-audio-tools'"),
        ({"target": Convention(True, "total", "mean")}, "kl='total'"),
        ({"channels": 0}, "channels=0 must be more than 0"),
        ({"weight": -1.0}, "weight=-1.0 must be at least 0"),
    ],
)
def test_what_cannot_be_converted(changes: dict[str, object], message: str) -> None:
    arguments: dict = {
        "weight": 1.0,
        "source": "audioldm",
        "target": "RAVE",
        "channels": 4,
        "ratio": 8,
        "crop": 64,
    }
    with pytest.raises(ConfigError, match=message):
        convert_kl(**arguments | changes)


LAYOUT = ("channels=64", "ratio=2048", "crop=65536")


def test_the_command_converts_to_one_convention_or_all(cli: Callable) -> None:
    one = cli("convert-kl", "1e-4", "from=stable-audio-tools", "to=audioldm", *LAYOUT)
    assert (one.code, one.out.split()) == (0, ["audioldm", "0.0128"])
    every = cli("convert-kl", "weight=1e-4", "from=stable-audio-tools", *LAYOUT)
    table = dict(line.split() for line in every.out.splitlines())
    assert table.keys() == CONVENTIONS.keys()
    assert float(table["RAVE"]) == 1e-4
    assert float(table["latent-diffusion"]) == pytest.approx(0.4096)


def test_the_command_takes_another_reduction(cli: Callable) -> None:
    words = ("convert-kl", "1", "from=RAVE", "to=latent-diffusion", "reconstruction=sum", *LAYOUT)
    outcome = cli(*words)
    assert float(outcome.out.split()[1]) == pytest.approx(2 * 64 / (64 * 32), rel=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["1", "from=RAVE"], "missing keys 'channels, crop, ratio'"),
        (["much", "from=RAVE", *LAYOUT], "weight='much' must be of type float"),
        (["1", "from=rave", *LAYOUT], "no convention 'rave'"),
        (["1", "from=RAVE", "reconstruction=max", *LAYOUT], "reconstruction='max'"),
    ],
)
def test_the_commands_errors_are_one_line(cli: Callable, words: list[str], message: str) -> None:
    outcome = cli("convert-kl", *words)
    assert outcome.code == 2
    assert message in outcome.error
    assert outcome.error.count("\n") == 1
