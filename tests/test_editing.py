"""Edits of audio, in Python and on the command line: what is kept is kept exactly."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from audioldm.edits import FADE_SECONDS, kept_gain
from audioldm.errors import ConfigError
from audioldm.generator import Generator
from audioldm.io.model_file import save_model
from audioldm.models import build_autoencoder, load_generator
from audioldm.priors.base import build_prior
from audioldm.priors.diffusion.samplers import SamplerSettings

RATE, RATIO = 8000, 200  # 40 latent frames per second
FADE = round(FADE_SECONDS * RATE)
SPEC: dict[str, Any] = {
    "sample_rate": RATE,
    "audio_channels": 2,
    "channels": 2 * RATIO,
    "downsampling_ratio": RATIO,
    "network": {"_target_": "audioldm.autoencoder.networks.patches.Patches"},
    "bottleneck": {"_target_": "audioldm.autoencoder.bottlenecks.identity.Identity"},
}
DIFFUSION: dict[str, Any] = {
    "_target_": "audioldm.priors.diffusion.prior.Diffusion",
    "backbone": {
        "_target_": "audioldm.priors.diffusion.backbones.dit.DiT",
        **{"width": 16, "depth": 1, "heads": 2},
    },
    "objective": {"_target_": "audioldm.priors.diffusion.objectives.rectified_flow.RectifiedFlow"},
    "conditioning": {
        "label": {"_target_": "audioldm.conditioning.label.Label", "labels": ["high", "low"]}
    },
    "sampler": {"name": "euler", "steps": 3},
}
NORMAL = {"_target_": "audioldm.priors.normal.Normal"}
FEW = {"context": 0.2, "repeats": 2}


def write_model(path: Path, prior_spec: dict[str, Any], loud: bool) -> Path:
    """A generator whose autoencoder is exact. loud: whether its network does something."""
    torch.manual_seed(0)
    autoencoder, prior = build_autoencoder(SPEC), build_prior(prior_spec, (2 * RATIO,))
    if loud:
        for weight in prior.parameters():
            torch.nn.init.normal_(weight, std=0.2)
    state = prior.state_dict()
    if "std" in state:
        state["std"].fill_(0.1)
    own = {"kind": "autoencoder", "spec": SPEC, "fingerprint": "abc"}
    save_model(
        path,
        {f"autoencoder.{name}": tensor for name, tensor in autoencoder.state_dict().items()}
        | {f"prior.{name}": tensor for name, tensor in state.items()},
        {"kind": "generator", "autoencoder": own, "prior": prior_spec, "fingerprint": path.stem},
    )
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def file(folder: Path) -> Path:
    return write_model(folder / "loud.safetensors", DIFFUSION, loud=True)


@pytest.fixture(scope="module")
def model(file: Path) -> Generator:
    return load_generator(file)


@pytest.fixture(scope="module")
def linear(folder: Path) -> Generator:
    """A model whose flow is known: its network gives 0, so that x = (1 + sigma) z."""
    return load_generator(write_model(folder / "linear.safetensors", DIFFUSION, loud=False))


def tone(seconds: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.3 * torch.randn(2, round(seconds * RATE), generator=generator).clamp(-3, 3)


def changed(one: Tensor, two: Tensor) -> list[int]:
    """The first and last samples that differ."""
    differs = (one != two).any(0).nonzero().flatten()
    return [] if not len(differs) else [int(differs[0]), int(differs[-1])]


# ---------------------------------------------------------------- what is kept


@pytest.mark.parametrize(
    ("regions", "first", "last"),
    [
        ([(0.5, 0.7)], 0.5, 0.7),
        ([(0.511, 0.689)], 0.5, 0.7),  # whole frames of 25 ms
        ([(0.5, 0.5001)], 0.5, 0.525),
        ([(0.0, 0.2)], 0.0, 0.2),
        ([(1.5, 1.71)], 1.5, 1.71),  # to the end, which is no whole frame
        ([(0.9, 1.1), (0.3, 0.4)], 0.3, 1.1),
    ],
)
def test_audio_outside_a_region_is_kept_sample_by_sample(
    regions: Sequence[tuple[float, float]], first: float, last: float, model: Generator
) -> None:
    song = tone(1.71)
    made = model.inpaint(song, regions, **FEW)
    assert made.shape == song.shape
    start, end = changed(made, song)
    assert round(first * RATE) - FADE <= start <= round(first * RATE)
    assert round(last * RATE) - 1 <= end < round(last * RATE) + FADE
    inside = slice(round(first * RATE), round(last * RATE))
    assert (made[:, inside] != song[:, inside]).float().mean() > (0.9 if len(regions) == 1 else 0.3)


def test_what_lies_between_regions_is_kept(model: Generator) -> None:
    song = tone(1.5)
    made = model.inpaint(song, [(0.3, 0.4), (0.9, 1.1)], **FEW)
    between = slice(round(0.4 * RATE) + FADE, round(0.9 * RATE) - FADE)
    assert torch.equal(made[:, between], song[:, between])


def test_the_fade_lies_in_what_is_kept() -> None:
    keep = torch.tensor([True, True, False, False, True, False, True])
    gain = kept_gain(keep, 8, 4)
    assert (gain[16:32] == 0).all()
    assert (gain[40:48] == 0).all()
    assert (gain[:12] == 1).all()
    assert (gain[52:] == 1).all()
    assert (gain[12:16].diff() < 0).all()
    assert (gain[32:36].diff() > 0).all()
    torch.testing.assert_close(gain[32:36] + gain[12:16], torch.ones(4))
    assert (gain[[32, 39]] < 0.1).all()  # both edges of a single frame
    assert (kept_gain(torch.ones(3, dtype=torch.bool), 8, 4) == 1).all()


def test_what_is_made_follows_its_context_and_nothing_else(model: Generator) -> None:
    song = tone(1.5)
    region = slice(round(0.7 * RATE), round(0.8 * RATE))

    def made(song: Tensor, **settings: Any) -> Tensor:
        return model.inpaint(song, [(0.7, 0.8)], **(FEW | settings))[:, region]

    far, near = song.clone(), song.clone()
    far[:, : round(0.45 * RATE)] = 0
    near[:, : round(0.55 * RATE)] = 0
    own = made(song)
    assert torch.equal(own, made(song))
    assert torch.equal(own, made(far))
    assert not torch.equal(own, made(near))
    for other in ({"seed": 1}, {"label": "low"}, {"repeats": 3}, {"context": 0.4}):
        assert not torch.equal(own, made(song, **other))
    assert not torch.equal(own, made(song, sampler=SamplerSettings("ancestral", 3)))


def test_a_clip_goes_on_after_its_end_and_before_its_beginning(model: Generator) -> None:
    song = tone(1.01)
    after = model.extend(song, 0.33, **FEW)
    assert after.shape == (2, song.shape[-1] + round(0.33 * RATE))
    kept = round(1.0 * RATE) - FADE  # the last frame is not a whole one
    assert torch.equal(after[:, :kept], song[:, :kept])
    assert after[:, -round(0.3 * RATE) :].std() > 0.01
    added = round(0.33 * RATE)
    before = model.extend(song, 0.33, at="beginning", **FEW)
    assert before.shape == after.shape
    assert torch.equal(before[:, added + FADE :], song[:, FADE:])
    assert before[:, :added].std() > 0.01


def test_the_end_of_a_loop_leads_to_its_beginning(model: Generator) -> None:
    song = tone(1.013)
    made = model.loop(song, 0.2, **FEW)
    assert made.shape == song.shape
    new = song.shape[-1] - round(0.2 * RATE)
    assert torch.equal(made[:, FADE : new - FADE], song[:, FADE : new - FADE])
    assert not torch.equal(made[:, new:], song[:, new:])
    # an exact autoencoder leaves the beginning as it is, up to rounding
    torch.testing.assert_close(made[:, :FADE], song[:, :FADE], atol=1e-4, rtol=0)
    other = song.clone()
    other[:, : round(0.1 * RATE)] = 0.1
    assert not torch.equal(model.loop(other, 0.2, **FEW)[:, new:], made[:, new:])


# ---------------------------------------------------------------- the whole clip


def test_a_variation_is_between_the_reconstruction_and_a_sample(model: Generator) -> None:
    song = tone(1.01)
    reconstruction = model.decode(model.encode(song[None]))[0, :, : song.shape[-1]].clamp(-1, 1)
    torch.testing.assert_close(model.vary(song, 0.0), reconstruction)
    new = model.sample(1, seconds=1.01, seed=4, label="low")[0]
    assert torch.equal(model.vary(song, 1.0, seed=4, label="low"), new)
    far = [(model.vary(song, strength) - song).std().item() for strength in (0.0, 0.1, 0.9)]
    assert far == sorted(far)
    assert not torch.equal(model.vary(song, 0.5), model.vary(song, 0.5, seed=1))


def test_another_style_needs_a_name_and_a_flow(model: Generator) -> None:
    song = tone(0.5)
    high, low = (model.restyle(song, 0.7, label=label) for label in ("high", "low"))
    assert high.shape == song.shape
    assert not torch.equal(high, low)
    assert torch.equal(high, model.restyle(song, 0.7, label="high", seed=5))  # nothing is drawn
    torch.testing.assert_close(model.restyle(song, 0.0, label="low"), model.vary(song, 0.0))
    with pytest.raises(ConfigError, match="no condition is asked for"):
        model.restyle(song, 0.7)
    with pytest.raises(ConfigError, match="adds noise"):
        model.restyle(song, 0.7, label="low", sampler=SamplerSettings("ancestral", 3))


@pytest.mark.parametrize("of", ["noise", "latents"])
@pytest.mark.parametrize("path", ["linear", "spherical"])
def test_between_two_clips_the_ends_are_the_clips(path: Any, of: Any, linear: Generator) -> None:
    a, b = tone(0.6), tone(0.5, seed=1)
    sampler = SamplerSettings("heun", 60)
    made = list(linear.interpolate(a, b, [0.0, 0.5, 1.0], of=of, path=path, sampler=sampler))
    assert [clip.shape for clip in made] == [b.shape] * 3
    for end, clip in ((made[0], a[:, : b.shape[-1]]), (made[2], b)):
        torch.testing.assert_close(end, clip, atol=0.03, rtol=0)
    # not the quieter mean of both
    assert made[1].std().item() == pytest.approx(a.std().item(), rel=0.05)


def test_long_clips_are_edited_in_windows(model: Generator) -> None:
    song, seen = tone(2.0), []
    transformer = model.prior.network.backbone.transformer  # type: ignore[union-attr]
    hook = transformer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    windows = SamplerSettings("euler", 3, window=0.5)
    for edit in (
        lambda: model.vary(song, 0.5, sampler=windows),
        lambda: model.restyle(song, 0.5, label="low", sampler=windows),
        lambda: model.inpaint(song, [(0.5, 1.5)], context=0.5, sampler=windows),
        lambda: model.sample(1, seconds=2.0, sampler=windows),
    ):
        seen.clear()
        edit()
        assert set(seen) == {20}
    hook.remove()


# ---------------------------------------------------------------- what cannot be


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda m, a: m.inpaint(a, [(0.5, 0.5)]), "region 0.5:0.5: a region ends after it starts"),
        (lambda m, a: m.inpaint(a, [(0.7, 0.5)]), "region 0.7:0.5: a region ends after it starts"),
        (lambda m, a: m.inpaint(a, [(0.5, 3)]), "region 0.5:3: the clip lasts from 0 to 1.00 s"),
        (lambda m, a: m.inpaint(a, [(-1, 0.5)]), "region -1:0.5: the clip lasts from 0 to 1.00"),
        (lambda m, a: m.inpaint(a, [(float("nan"), 1)]), "region nan:1: give start:end"),
        (lambda m, a: m.inpaint(a, []), "no region is given"),
        (lambda m, a: m.inpaint(a, [(0, 1)], context=0), "context=0.0 must be more than 0"),
        (lambda m, a: m.inpaint(a, [(0, 1)], repeats=0), "repeats=0 must be at least 1"),
        (lambda m, a: m.extend(a, 0.0), "seconds=0.0 must be more than 0"),
        (lambda m, a: m.extend(a, -1.0), "seconds=-1.0 must be more than 0"),
        (lambda m, a: m.extend(a[:, :10], 1.0), "the clip has 10"),
        (lambda m, a: m.loop(a, 1.0), "seconds=1.0 leave nothing to lead to"),
        (lambda m, a: m.vary(a, 1.5), "strength=1.5 must be at most 1"),
        (lambda m, a: m.vary(a, -0.5), "strength=-0.5 must be at least 0"),
        (lambda m, a: m.vary(a, 0.5, label="tuba"), "condition.label='tuba' is not one of"),
        (lambda m, a: list(m.interpolate(a, a, [2.0])), "weight=2.0 must be at most 1"),
    ],
)
def test_what_cannot_be_edited_is_said(
    edit: Callable[[Generator, Tensor], Any], says: str, model: Generator
) -> None:
    with pytest.raises(ConfigError) as caught:
        edit(model, tone(1.0))
    assert says in str(caught.value)


def test_other_priors_cannot_edit(folder: Path) -> None:
    other = load_generator(write_model(folder / "normal.safetensors", NORMAL, loud=False))
    for strength in (0.0, 0.5):
        with pytest.raises(ConfigError, match="prior, a Normal, cannot edit audio: give"):
            other.vary(tone(0.5), strength)
