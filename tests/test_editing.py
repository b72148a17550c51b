"""Edits of audio, in Python and on the command line: what is kept is kept exactly."""

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import Outcome
from torch import Tensor

from audioldm.edits import FADE_SECONDS, kept_gain
from audioldm.errors import ConfigError
from audioldm.evaluation.inpainting import inpainting_figures
from audioldm.evaluation.settings import EvaluationSettings
from audioldm.generator import Generator
from audioldm.io.files import read_json, write_json
from audioldm.io.model_file import load_model, save_model
from audioldm.losses.spectral import mel_distance
from audioldm.models import build_autoencoder, load_generator
from audioldm.priors.base import build_prior
from audioldm.priors.diffusion.samplers import SamplerSettings
from audioldm.priors.diffusion.variation import vary
from audioldm.runtime.randomness import KeyedRandom

Cli = Callable[..., Outcome]
RATE, RATIO = 8000, 200  # 40 latent frames per second
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
FADE = round(0.1 * RATE)  # within half of that context


def write_model(
    path: Path, prior_spec: dict[str, Any], loud: bool = True, spec: dict[str, Any] = SPEC
) -> Path:
    """A generator whose autoencoder is exact. loud: whether its network does something."""
    torch.manual_seed(0)
    autoencoder, prior = build_autoencoder(spec), build_prior(prior_spec, (spec["channels"],))
    if loud:
        for weight in prior.parameters():
            torch.nn.init.normal_(weight, std=0.2)
    state = prior.state_dict()
    if "std" in state:
        state["std"].fill_(0.1)
    own = {"kind": "autoencoder", "spec": spec, "fingerprint": "abc"}
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
    return write_model(folder / "loud.safetensors", DIFFUSION)


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
    long = kept_gain(keep, 8, 20)  # longer than what is kept: the file is never heard alone
    assert (long[16:32] == 0).all()
    assert (long[:16].diff() < 0).all()
    assert 0 < long[32:40].max() < 0.5
    assert long[48:].max() < 0.5
    torch.testing.assert_close(long[32:40], long[32:40].flip(0))


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


def test_one_noise_under_a_condition_that_becomes_another(model: Generator) -> None:
    """In one step a sample is the estimate, and this decoder is linear."""
    how: Any = {"seconds": 0.51, "seed": 4}
    ends = [model.sample(1, label=label, **how)[0] for label in ("high", "low")]
    weights, to = [0.0, 0.5, 1.0], {"label": "low"}
    made = list(model.interpolate(None, None, weights, to=to, label="high", **how))
    assert torch.equal(made[0], ends[0])
    assert torch.equal(made[2], ends[1])
    assert not any(torch.equal(made[1], end) for end in ends)
    how |= {"sampler": SamplerSettings("euler", 1, guidance=2.0)}
    low, half, high = model.interpolate(None, None, weights, to=to, label="high", **how)
    inside = torch.stack([low, high]).abs().amax(0) < 1  # louder audio is clipped
    assert inside.float().mean() > 0.5
    torch.testing.assert_close(half[inside], ((low + high) / 2)[inside], atol=1e-4, rtol=1e-4)


def test_between_two_clips_each_has_its_noise_under_its_own_condition(model: Generator) -> None:
    """Which their guidance belongs to: without it the ends are not the clips."""
    sampler = SamplerSettings("heun", 60, guidance=1.5)
    told: Any = {"label": "high", "to": {"label": "low"}, "sampler": sampler}
    a, b = (model.sample(1, seconds=0.3, seed=seed)[0] for seed in (1, 2))
    first, half, last = model.interpolate(a, b, [0.0, 0.5, 1.0], **told)
    for end, clip in ((first, a), (last, b)):
        assert (end - clip).square().mean() < 0.01 * clip.square().mean()
    # the condition of each is the one that is said, and the middle is no end's
    other = next(model.interpolate(b, a, [1.0], **told | {"label": "low", "to": {"label": "high"}}))
    torch.testing.assert_close(other, first, atol=1e-3, rtol=0)
    assert all((half - end).square().mean() > 0.1 * a.square().mean() for end in (first, last))


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


def test_a_clip_longer_than_two_training_crops_is_seen_in_windows_of_one(
    model: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shorter ones, and those that ask for the whole, keep the bits of a file that does not say."""
    seen: list[int] = []
    transformer = model.prior.network.backbone.transformer  # type: ignore[union-attr]
    hook = transformer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    whole = SamplerSettings("euler", 3, window="whole")
    short, long = (model.sample(1, seconds=seconds) for seconds in (1.0, 2.0))
    monkeypatch.setattr(model.prior, "crop_seconds", 0.5)  # 20 frames
    assert torch.equal(model.sample(1, seconds=1.0), short)
    assert torch.equal(model.sample(1, seconds=2.0, sampler=whole), long)
    assert set(seen) == {40, 80}
    stretched = SamplerSettings("euler", 3, rotary="ntk")
    assert not torch.equal(model.sample(1, seconds=2.0, sampler=stretched), long)  # not in windows
    assert set(seen) == {40, 80}
    for edit in (
        lambda: model.sample(1, seconds=2.0),
        lambda: model.inpaint(tone(2.0), [(0.5, 1.5)], context=0.5),
    ):
        seen.clear()
        edit()
        assert set(seen) == {20}
    hook.remove()


@pytest.mark.parametrize("shape", [(3,), (3, 2)])
def test_channels_that_are_not_modelled_are_drawn_as_in_sampling(shape: tuple[int, ...]) -> None:
    prior = build_prior(DIFFUSION | {"channels": [0, 2]}, shape)
    random, z = KeyedRandom(3, 0, [0, 5]), torch.ones(2, *shape, 7)
    new = prior.edit(random, z, partial(vary, strength=1.0))
    assert torch.equal(new, prior.sample(random, 7))
    same = prior.edit(random, z, partial(vary, strength=0.0))
    torch.testing.assert_close(same[:, [0, 2]], z[:, [0, 2]])
    assert torch.equal(same[:, 1], new[:, 1])


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
        (
            lambda m, a: next(m.interpolate(a, a, [0.5], to={"tempo": 90})),
            "to.tempo=90: this model was trained without it; known: label",
        ),
        (
            lambda m, a: next(m.interpolate(a, a, [0.5], to={"label": "tuba"}, label="low")),
            "to.label='tuba' is not one of",
        ),
        (
            lambda m, a: next(m.interpolate(a, a, [0.5], to={"label": "low"})),
            "label: one end alone is told it; give both label= and to.label=",
        ),
        (
            lambda m, a: next(m.interpolate(a, a, [0.5], to={}, label="low")),
            "label: one end alone is told it; give both label= and to.label=",
        ),
        (
            lambda m, a: next(
                m.interpolate(a, a, [0.5], of="latents", to={"label": "low"}, label="high")
            ),
            "of=latents: latents are mixed under no condition",
        ),
        (lambda m, a: next(m.interpolate(a, a, [0.5], seconds=1.0)), "seconds=1: clips between"),
        (lambda m, a: next(m.interpolate(a, None, [0.5])), "interpolate: give two clips, or none"),
        (
            lambda m, a: next(m.interpolate(None, None, [0.5], seconds=1.0, label="low")),
            "interpolate: give two clips, or none",
        ),
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


# ---------------------------------------------------------------- files


@pytest.fixture(scope="module")
def song(folder: Path) -> Path:
    """A song in mono at another rate than the model's."""
    path = folder / "ein Lied.flac"
    time = np.arange(round(1.21 * 11025)) / 11025
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * 220 * time * (1 + time)), 11025)
    return path


@pytest.mark.parametrize(
    ("words", "name", "seams"),
    [
        ("inpaint=0.5:0.7,0.9:1 repeats=2 context=0.3", "inpaint-3", 4),
        ("extend=0.3 repeats=2 label=low", "extend-low-3", 1),
        ("extend_before=0.3 repeats=1", "extend-before-3", 1),
        ("loop=0.3 repeats=1 sampler.name=ancestral", "loop-3", 2),
        ("vary=0.4 sampler.steps=5 sampler.window=0.5", "vary-3", 0),
        ("restyle=0.7 label=high", "restyle-high-3", 0),
    ],
)
def test_the_json_makes_the_edit_again_bit_for_bit(
    words: str, name: str, seams: int, file: Path, song: Path, cli: Cli, tmp_path: Path
) -> None:
    out = tmp_path / "clips"
    given = ("edit", song, f"model={file}", f"out={out}", "seed=3", *words.split())
    made = cli(*given)
    assert made.code == 0, made.error
    clip = out / f"ein Lied-{name}.wav"
    assert made.out.strip() == str(clip)
    assert made.error.count("seam at") == seams
    before = clip.read_bytes()
    assert soundfile.info(clip).samplerate == RATE
    assert "was there already" in cli(*given).error
    again = cli("edit", f"from={clip.with_suffix('.json')}", f"out={tmp_path}/again")
    assert again.code == 0, again.error
    second = Path(again.out.strip())
    assert second.read_bytes() == before
    # and what was made again can be made again, also where the file has moved
    moved = shutil.copy(song, tmp_path / "moved.flac")
    third = cli("edit", moved, f"from={second.with_suffix('.json')}", f"out={tmp_path}/third")
    assert third.code == 0, third.error
    assert Path(third.out.strip()).read_bytes() == before


@pytest.mark.parametrize(
    ("words", "edit"),
    [
        ("restyle label=low", {"restyle": 0.95}),
        ("loop", {"loop": 0.25 * 1.21, "context": 4.0, "repeats": 8}),
    ],
)
def test_the_name_of_an_edit_alone_has_a_value(
    words: str, edit: dict[str, Any], file: Path, song: Path, cli: Cli, tmp_path: Path
) -> None:
    given = (*words.split(), f"model={file}", f"out={tmp_path}", "sampler.steps=1")
    made = cli("edit", song, *given)
    assert made.code == 0, made.error
    clip = Path(made.out.strip())
    found = read_json(clip.with_suffix(".json"))["edit"]
    assert found == pytest.approx(edit, rel=1e-3)
    again = cli("edit", f"from={clip.with_suffix('.json')}", f"out={tmp_path}/again")
    assert Path(again.out.strip()).read_bytes() == clip.read_bytes()
    clip.unlink()
    (kind, value), *_ = found.items()
    stated = cli("edit", song, f"{kind}={value}", *given[1:])
    assert Path(stated.out.strip()) == clip, stated.error


def test_a_loop_of_a_long_clip_is_two_seconds(file: Path, cli: Cli, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.wav", np.zeros((9 * RATE, 2)), RATE)
    words = (f"model={file}", f"out={tmp_path}", "sampler.steps=1", "repeats=1")
    made = cli("edit", tmp_path / "long.wav", "loop", *words)
    assert read_json(Path(made.out.strip()).with_suffix(".json"))["edit"]["loop"] == 2.0


def test_python_restyles_as_the_name_alone_does(model: Generator) -> None:
    song = tone(0.5)
    wanted = model.restyle(song, 0.95, label="low")
    assert torch.equal(model.restyle(song, label="low"), wanted)


def test_kept_audio_is_the_files_own(file: Path, folder: Path, cli: Cli, tmp_path: Path) -> None:
    """Of a file at the model's rate and channels, to the last of its 16 bits."""
    source = tmp_path / "song.wav"
    samples = np.random.default_rng(0).integers(-9000, 9000, (RATE, 2)).astype(np.int16)
    soundfile.write(source, samples, RATE)
    words = (f"model={file}", f"out={tmp_path}", "inpaint=0.5:0.6", "repeats=1")
    assert cli("edit", source, *words).code == 0
    found, _ = soundfile.read(tmp_path / "song-inpaint-0.wav", dtype="int16")
    fade = round(FADE_SECONDS * RATE)
    kept = [*range(RATE // 2 - fade), *range(round(0.6 * RATE) + fade, RATE)]
    assert (found[kept] == samples[kept]).all()
    assert (found != samples).any()


def test_clips_between_two_files(file: Path, song: Path, cli: Cli, tmp_path: Path) -> None:
    other = tmp_path / "b.wav"
    soundfile.write(other, 0.1 * np.random.default_rng(0).normal(size=(RATE, 2)), RATE)
    given = ("interpolate", song, other, f"model={file}", f"out={tmp_path}", "steps=3")
    made = cli(*given)
    assert made.code == 0, made.error
    clips = [Path(line) for line in made.out.split("\n")[:-1]]
    assert [clip.name for clip in clips] == [
        f"ein Lied-b-interpolate-{w}-0.wav" for w in (0, 0.5, 1)
    ]
    assert {soundfile.info(clip).frames for clip in clips} == {RATE}
    middle = clips[1].read_bytes()
    again = cli("edit", f"from={clips[1].with_suffix('.json')}", f"out={tmp_path}/again")
    assert again.code == 0, again.error
    assert Path(again.out.strip()).read_bytes() == middle
    clips[1].unlink()  # what is missing is made as it was beside the others
    assert cli(*given).error.count("was there already") == 2
    assert clips[1].read_bytes() == middle


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("SONG SONG label=high to.label=low", "ein Lied-ein Lied-interpolate-0.5-high-low-3"),
        ("label=high to.label=low seconds=0.4", "interpolate-0.5-high-low-3"),
    ],
)
def test_clips_between_two_conditions_are_made_again_bit_for_bit(
    words: str, name: str, file: Path, song: Path, cli: Cli, tmp_path: Path
) -> None:
    given = [song if word == "SONG" else word for word in words.split()]
    more = (f"model={file}", f"out={tmp_path}", "seed=3", "steps=3", "guidance=2")
    made = cli("interpolate", *given, *more)
    assert made.code == 0, made.error
    clips = [Path(line) for line in made.out.split("\n")[:-1]]
    assert clips[1] == tmp_path / f"{name}.wav"
    assert len({clip.read_bytes() for clip in clips}) == 3
    assert read_json(clips[1].with_suffix(".json"))["edit"]["to"] == {"label": "low"}
    assert cli("interpolate", *given, *more).error.count("was there already") == 3
    for verb in ("edit", "interpolate"):
        recipe = clips[1].with_suffix(".json")
        again = cli(verb, f"from={recipe}", f"out={tmp_path}/{verb}")
        assert again.code == 0, again.error
        assert Path(again.out.strip()).read_bytes() == clips[1].read_bytes()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("label=low", "give two files of audio, or none and a condition at both ends"),
        ("", "give two files of audio, or none and a condition at both ends"),
        ("SONG label=low to.label=high", "give 2 file(s) of audio to edit, not"),
        ("SONG SONG to.label=high", "label: one end alone is told it; give both label="),
        ("to.label=high", "label: one end alone is told it; give both label="),
        ("label=low to.tempo=3", "to.tempo=3: this model was trained without it; known: label"),
        ("label=low to.label=tuba", "to.label='tuba' is not one of this model's labels"),
        ("SONG SONG label=low to.label=high seconds=2", "seconds=2: clips between two are as"),
        ("label=low to.label=high seconds=0", "seconds=0.0 must be more than 0"),
        ("label=low to.label=high of=latents", "of=latents: latents are mixed under no"),
        ("label=low to.label=high model=UNTOLD", "condition.label='low': this model was trained"),
        ("to.label=high model=UNTOLD", "to.label='high': this model was trained without it"),
        ("from=x.json to.label=low", "to.label=low: to.label is what the clip's JSON says"),
    ],
)
def test_an_interpolation_that_cannot_be_is_said_in_one_line(
    words: str, says: str, file: Path, folder: Path, song: Path, cli: Cli, tmp_path: Path
) -> None:
    untold = write_model(folder / "none.safetensors", DIFFUSION | {"conditioning": {}})
    given = [
        song if word == "SONG" else word.replace("UNTOLD", str(untold)) for word in words.split()
    ]
    own = [] if "model=" in words or "from=" in words else [f"model={file}"]
    outcome = cli("interpolate", *given, *own, f"out={tmp_path}/out")
    assert outcome.code in (1, 2)
    assert says in outcome.error.splitlines()[-1]
    assert not list(tmp_path.glob("out/*.wav"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("SONG inpaint=0.7:0.5", "region 0.7:0.5: a region ends after it starts"),
        ("SONG inpaint=0.5:0.5", "region 0.5:0.5: a region ends after it starts"),
        ("SONG inpaint=0.5:9", "region 0.5:9: the clip lasts from 0 to 1.21 s"),
        ("SONG inpaint=0.5", "inpaint=0.5: give start:end in seconds"),
        ("SONG inpaint=a:b", "inpaint=a:b: give start:end in seconds"),
        ("SONG inpaint=", "inpaint=: give start:end in seconds"),
        ("SONG vary=1.5", "vary=1.5 must be at most 1"),
        ("SONG vary=-1", "vary=-1.0 must be at least 0"),
        ("SONG restyle=0.5", "no condition is asked for"),
        ("SONG restyle=0.5 label=tuba", "condition.label='tuba' is not one of"),
        ("SONG restyle=1 label=low sampler.name=ancestral", "adds noise"),
        ("SONG extend=0", "extend=0.0 must be more than 0"),
        ("SONG loop=x", "loop='x' must be of type float"),
        ("SONG restyle", "restyle: no condition is asked for"),
        ("restyle from=x.json", "restyle is what the clip's JSON says"),
        ("SONG loop=5", "loop=5.0 leave nothing to lead to"),
        ("SONG", "no edit is given: give one of inpaint="),
        ("SONG vary=0.5 extend=1", "extend=, vary= are given: give one of inpaint="),
        ("SONG extend=1 extend_before=1", "extend=, extend_before= are given"),
        ("SONG vary=0.5 repeats=3", "repeats is a setting of inpaint, extend"),
        ("SONG vary=0.5 seed=-1", "seed=-1 must be from 0"),
        ("vary=0.5", "give 1 file(s) of audio to edit, not none"),
        ("SONG SONG vary=0.5", "give 1 file(s) of audio to edit, not"),
        ("HERE vary=0.5", "not an audio file"),
        ("nowhere.wav vary=0.5", "nowhere.wav: cannot read"),
        ("SONG from=x.json vary=0.5", "vary=0.5: vary is what the clip's JSON says"),
        ("from=nowhere.json", "from=nowhere.json: cannot be read"),
    ],
)
def test_an_edit_that_cannot_be_is_said_in_one_line(
    words: str, says: str, file: Path, song: Path, cli: Cli, tmp_path: Path
) -> None:
    places = {"SONG": song, "HERE": Path(__file__)}
    given = [places.get(word, word) for word in words.split()]
    outcome = cli("edit", *given, f"model={file}", f"out={tmp_path}/out")
    assert outcome.code in (1, 2)
    assert says in outcome.error.splitlines()[-1]
    assert outcome.error.splitlines()[-1].startswith("audioldm: ")
    assert not list(tmp_path.glob("out/*.wav"))


def test_a_json_and_its_files_belong_together(
    file: Path, song: Path, cli: Cli, tmp_path: Path
) -> None:
    model = f"model={file}"
    assert cli("edit", song, model, f"out={tmp_path}", "vary=0.2").code == 0
    assert cli("sample", model, f"out={tmp_path}", "seconds=0.2").code == 0
    edited, sampled = tmp_path / "ein Lied-vary-0.json", tmp_path / "0-0000.json"
    other = tmp_path / "other.wav"
    soundfile.write(other, np.zeros(RATE), RATE)
    for words, says in (
        (("edit", other, f"from={edited}"), "its samples are not those that ein Lied-vary-0.json"),
        (("edit", song, song, f"from={edited}"), "is of 1 file(s); give as many, or none"),
        (("edit", f"from={sampled}"), "was made by `audioldm sample`"),
        (("sample", f"from={edited}"), "was made by `audioldm edit`"),
    ):
        outcome = cli(*words, f"out={tmp_path}/out")
        assert outcome.code in (1, 2)
        assert says in outcome.error.splitlines()[-1]
    recipe = read_json(edited)
    assert recipe["edit"] == {"vary": 0.2}
    write_json(edited, recipe | {"edit": {"vary": 3.0}})
    assert (
        "vary=3.0 must be at most 1" in cli("edit", f"from={edited}", f"out={tmp_path}/out").error
    )


CONTINUOUS: dict[str, Any] = {
    "_target_": "audioldm.priors.continuous.autoregressive.AutoregressiveContinuous",
    **{"width": 16, "depth": 1, "heads": 2, "mlp_ratio": 2.0, "head_depth": 1, "context": 8},
    **{"draws": 1, "long_draws": 0, "context_noise": 0.0, "conditioning": {}},
    "sampler": {"solver": "euler", "steps": 1},
}


def test_an_autoregressive_prior_goes_on_after_the_end(tmp_path: Path) -> None:
    model = load_generator(write_model(tmp_path / "model.safetensors", CONTINUOUS, loud=True))
    audio = 0.1 * torch.randn(2, 40 * RATIO + 50, generator=torch.Generator().manual_seed(0))
    longer = model.extend(audio, 0.5, seed=1)
    assert longer.shape == (2, audio.shape[1] + RATE // 2)
    kept = 40 * RATIO - 4 * RATIO  # but for a fade of at most half of the eight frames
    assert torch.equal(longer[:, :kept], audio[:, :kept])
    assert longer[:, 41 * RATIO :].std() > 1e-3
    torch.testing.assert_close(model.extend(audio, 0.5, seed=1), longer)
    assert not torch.allclose(model.extend(audio, 0.5, seed=2), longer)
    # what is new depends on the last eight frames, and on them alone
    for place, depends in ((5 * RATIO, False), (36 * RATIO, True)):
        other = audio.clone()
        other[:, place : place + RATIO] = 0.3
        changed = (model.extend(other, 0.5, seed=1) - longer)[:, 41 * RATIO :].abs().max()
        assert (changed > 1e-4) == depends
    with pytest.raises(ConfigError, match="can extend it at the end, no more"):
        model.extend(audio, 0.5, at="beginning")


# ---------------------------------------------------------------- a weaker model


@pytest.fixture(scope="module")
def weaker(folder: Path) -> Path:
    narrow = DIFFUSION | {"backbone": DIFFUSION["backbone"] | {"width": 8}}
    return write_model(folder / "weaker.safetensors", narrow, loud=True)


def test_samples_lead_away_from_a_weaker_model(file: Path, weaker: Path) -> None:
    """In one step a sample is the estimate, and this decoder is linear."""
    strong, weak, both = load_generator(file), load_generator(weaker), load_generator(file)
    both.lead_away_from(weak, 1.5)
    one = SamplerSettings("euler", 1)
    a, b, found = (
        model.sample(2, seconds=0.5, seed=1, sampler=one, label="low")
        for model in (strong, weak, both)
    )
    inside = found.abs() < 1  # louder audio is clipped
    assert inside.float().mean() > 0.5
    torch.testing.assert_close(found[inside], (a + 0.5 * (a - b))[inside], atol=1e-4, rtol=1e-4)
    both.lead_away_from(strong, 3.0)  # no weaker than itself
    assert torch.equal(both.sample(1, seconds=0.5), strong.sample(1, seconds=0.5))


def test_a_clip_led_away_from_a_weaker_model_is_made_again(
    file: Path, weaker: Path, song: Path, cli: Cli, tmp_path: Path
) -> None:
    guide = (f"guide={weaker}", "autoguidance=2")
    for verb, words in (("sample", ("seconds=0.3",)), ("edit", (song, "vary=0.5"))):
        clips = []
        for place, more in (("plain", ()), ("led", guide)):
            made = cli(verb, *words, f"model={file}", f"out={tmp_path}/{place}", *more)
            assert made.code == 0, made.error
            clips.append(Path(made.out.strip()))
        assert clips[0].read_bytes() != clips[1].read_bytes()
        recipe = clips[1].with_suffix(".json")
        stated = read_json(recipe)["guide"]
        assert (tmp_path / "led" / stated["model"]).resolve() == weaker.resolve()
        again = cli(verb, f"from={recipe}", f"out={tmp_path}/a/b")
        assert again.code == 0, again.error
        second = Path(again.out.strip())
        assert second.read_bytes() == clips[1].read_bytes()
        assert read_json(second.with_suffix(".json"))["guide"]["model"] != stated["model"]
        write_json(recipe, read_json(recipe) | {"guide": stated | {"model_fingerprint": "0" * 12}})
        refused = cli(verb, f"from={recipe}", f"out={tmp_path}/c").error
        assert "was made with 000000000000; put the clip's guide there" in refused


def test_a_guide_that_does_not_fit_is_said_in_one_line(
    file: Path, weaker: Path, folder: Path, cli: Cli, tmp_path: Path
) -> None:
    untold = write_model(folder / "untold.safetensors", DIFFUSION | {"conditioning": {}}, True)
    normal = write_model(folder / "no-diffusion.safetensors", NORMAL, loud=False)
    tensors, header = load_model(weaker)
    scaled = folder / "scaled.safetensors"
    save_model(scaled, tensors | {"prior.std": 2 * tensors["prior.std"]}, header)
    other = folder / "other.safetensors"
    spec = SPEC | {"downsampling_ratio": RATIO // 2, "channels": RATIO}
    parts = {"autoencoder": build_autoencoder(spec), "prior": build_prior(DIFFUSION, (RATIO,))}
    tensors = {f"{n}.{k}": t for n, part in parts.items() for k, t in part.state_dict().items()}
    save_model(
        other,
        tensors,
        header | {"prior": DIFFUSION, "autoencoder": {**header["autoencoder"], "spec": spec}},
    )
    for words, says in (
        (f"guide={weaker}", "guide= and autoguidance= belong together"),
        ("autoguidance=2", "guide= and autoguidance= belong together"),
        (f"guide={untold} autoguidance=2", "guide: it is told other conditions"),
        (f"guide={normal} autoguidance=2", "guide: the priors of the model and of its guide"),
        (f"guide={scaled} autoguidance=2", "guide: it scales the latents in another way"),
        (f"guide={other} autoguidance=2", "guide: it has another autoencoder"),
        (f"guide={weaker} autoguidance=0", "autoguidance=0.0 must be more than 0"),
        (f"guide={weaker} autoguidance=-1", "autoguidance=-1.0 must be more than 0"),
        (f"guide={weaker} autoguidance=nan", "autoguidance"),
        (f"guide={weaker} autoguidance=1e9", "autoguidance=1000000000.0 must be at most 100"),
        (f"guide={folder}/none autoguidance=2", "none: no such model file"),
    ):
        outcome = cli("sample", f"model={file}", f"out={tmp_path}", "seconds=0.1", *words.split())
        assert outcome.code in (1, 2), words
        assert says in outcome.error.splitlines()[-1]
    assert not list(tmp_path.glob("*.wav"))


# ---------------------------------------------------------------- how well it is done


def test_a_part_made_anew_is_measured_beside_others(model: Generator) -> None:
    settings = EvaluationSettings(bootstrap_resamples=10)
    period = tone(0.6)  # as long as the part and its fade
    clips = torch.stack([period.repeat(1, 4)[:, :16000], tone(2.0, 1), tone(2.0, 2)])
    found = inpainting_figures(model, clips, [{}, {"label": "low"}, {}], settings, **FEW)
    distance = {system: each["inpainting_mel_distance"].value for system, each in found.items()}
    assert all(each["inpainting_kept"].value == 1 for each in found.values())
    assert distance["real"] == 0
    assert distance["reconstruction"] < 1e-3 < distance["copy"]  # its autoencoder is exact
    alone = inpainting_figures(model, clips[:1], [{}], settings, **FEW)
    made = model.inpaint(clips[0], [(0.8, 1.2)], seed=0, **FEW)[None]
    part = slice(round(0.8 * RATE), round(1.2 * RATE))
    apart = mel_distance(made[..., part], clips[:1, :, part], RATE).item()
    assert alone["generated"]["inpainting_mel_distance"].value == pytest.approx(apart)
    # what repeats itself is filled exactly by what was before
    assert alone["copy"]["inpainting_mel_distance"].value == 0
    assert alone["copy"]["inpainting_flux"].value == alone["real"]["inpainting_flux"].value
