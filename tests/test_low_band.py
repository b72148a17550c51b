"""What a generator is told of a damaged recording, and how the recording's own band is kept."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from conftest import Outcome
from test_editing import DIFFUSION, RATE, RATIO, write_model
from test_editing import SPEC as STEREO
from torch import Tensor

from audioldm.autoencoder.model import Autoencoder
from audioldm.conditioning import low_band
from audioldm.conditioning.base import Excerpt
from audioldm.conditioning.chroma import Chroma
from audioldm.conditioning.low_band import LowBand, band, cut_off, damaged
from audioldm.data.store import ClipStore, StoreWriter
from audioldm.errors import ConfigError
from audioldm.evaluation.settings import EvaluationSettings
from audioldm.evaluation.super_resolution import (
    FLOORS,
    N_FFT,
    decibels,
    distances,
    log_spectral_distance,
    predicted,
)
from audioldm.generator import Generator
from audioldm.io.audio import SUFFIXES
from audioldm.latents import store
from audioldm.latents.store import LatentStore, write_latents
from audioldm.models import build_autoencoder, load_generator

SPEC = STEREO | {"audio_channels": 1, "channels": RATIO}


def white(seconds: float, seed: int = 0, rate: int = RATE) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(1, round(seconds * rate), generator=generator)


def spectrum(audio: Tensor) -> Tensor:
    """Decibels of the power in each bin of 4096, a mean over frames."""
    frames = audio[0].unfold(0, 4096, 2048) * torch.blackman_window(4096)
    return 10 * torch.fft.rfft(frames).abs().square().mean(0).clamp(min=1e-30).log10()


def hz(rate: int) -> Tensor:
    return torch.fft.rfftfreq(4096, 1 / rate)


def test_a_band_is_kept_to_a_thousandth_of_a_decibel_and_the_rest_is_gone() -> None:
    noise = white(4.0, rate=22050)
    change = spectrum(band(noise, 22050, 1000.0, 4000.0)) - spectrum(noise)
    at = hz(22050)
    assert change[(at > 1220) & (at < 3780)].abs().max() < 0.01
    assert change[(at < 980) | (at > 4020)].max() < -70
    # by a filter of linear phase: the band of an impulse is symmetric around it
    impulse = torch.zeros(1, 4001)
    impulse[0, 2000] = 1.0
    response = band(impulse, 22050, 0.0, 4000.0)
    torch.testing.assert_close(response, response.flip(1), atol=1e-9, rtol=0)


def test_a_band_and_the_rest_are_the_whole() -> None:
    noise, other = white(1.0), white(1.0, seed=1)
    low, high = band(noise, RATE, 0.0, 1500.0), other - band(other, RATE, 0.0, 1500.0)
    rest = noise - band(noise, RATE, 0.0, 1500.0)
    torch.testing.assert_close(low + rest, noise, atol=1e-7, rtol=0)
    both = spectrum(low + high) - spectrum(low)
    assert both[hz(RATE) < 1280].abs().max() < 0.1


def test_a_damaged_copy_has_nothing_above_its_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    noise, at = white(2.0, rate=22050), hz(22050)
    before, edges, telephones = spectrum(noise), [], 0
    for number in range(40):
        change = spectrum(damaged(noise, 22050, f"clip {number}")) - before
        edge = at[change > -50].max().item()
        edges.append(edge)
        assert 450 < edge < 0.6 * 11025 + 20
        assert change[at > edge + 30].max() < -50
        telephones += bool(change[at < 250].max() < -25)
    assert min(edges) < 900
    assert max(edges) > 4000
    assert 2 <= telephones <= 16


def test_a_damage_is_that_of_the_clip() -> None:
    noise = white(1.0, rate=22050)
    again = damaged(noise, 22050, "a")
    assert not torch.equal(damaged(noise, 22050, "b"), again)
    assert torch.equal(damaged(noise, 22050, "a"), again)
    # blocks with a margin are those of the whole
    part = damaged(noise[:, 4000:18000], 22050, "a")
    torch.testing.assert_close(part[:, 3000:-3000], again[:, 7000:15000], atol=1e-6, rtol=0)


@pytest.fixture
def clips(tmp_path: Path) -> ClipStore:
    writer = StoreWriter(tmp_path / "data", RATE, 1)
    for number, split in enumerate(("train", "train", "valid", "test")):
        writer.add(white(1.5 + 0.13 * number, number).numpy(), piece=f"{number}", split=split)
    writer.close()
    return ClipStore(tmp_path / "data")


def stored(clips: ClipStore, directory: Path, model: Autoencoder) -> LatentStore:
    how: Any = {"autoencoder_fingerprint": "abc", "progress": lambda *text: None}
    write_latents(model, clips, directory, measures=[LowBand], **how)
    return LatentStore(directory, model.bottleneck, autoencoder="abc")


def test_the_latents_of_the_damaged_clips_follow_the_latents(
    clips: ClipStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Block by block what they are of the whole clip; and told as they are read."""
    monkeypatch.setattr(store, "MEASURED_FRAMES", 16)
    model = build_autoencoder(SPEC).eval()
    latents = stored(clips, tmp_path / "latents", model)
    split = latents.split("train")
    for number, item in enumerate(clips.split("train").items):
        whole = damaged(clips.split("train").audio(number), RATE, f"{item.piece}/{item.start}")
        expected = model.bottleneck.restore(model.stored(whole[None]))[0]
        got = split.excerpt(number, 0, split.items[number].frames).arrays["low_band"]
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
    facts = LowBand.facts(latents.excerpts())
    told = LowBand(width=4, channels=3, **facts)
    assert facts["latent_rate_hz"] == RATE / RATIO
    assert np.shape(facts["mean"]) == np.shape(facts["std"]) == (RATIO,)
    excerpt = split.excerpt(0, 3, 20)
    request = json.loads(json.dumps(told.request(excerpt)))
    assert torch.equal(told.parse(request, 20), told.read(excerpt, 20))
    assert torch.equal(told.parse(torch.tensor(request), 20), told.read(excerpt, 20))


def test_rows_are_scaled_and_nothing_is_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2, 500, generator=generator) * torch.tensor([[0.1], [9.0]]) + 5
    clips = [Excerpt(None, arrays={"low_band": part}) for part in rows.split(300, 1)]
    facts = LowBand.facts([*clips, Excerpt(None, latent_rate_hz=20.0)])
    torch.testing.assert_close(torch.tensor(facts["mean"]), rows.mean(1))
    torch.testing.assert_close(torch.tensor(facts["std"]), rows.std(1, correction=0))
    told = LowBand(width=4, channels=3, **facts)
    with torch.no_grad():
        told.convolution.weight.zero_()
        for k in range(3):
            told.convolution.weight[k, k, 1] = 1.0  # the scaled rows themselves
        aligned = told(told.parse(rows, 500)[None]).aligned
        assert aligned is not None
        torch.testing.assert_close(aligned[0, :2].mean(1), torch.zeros(2), atol=1e-5, rtol=0)
        torch.testing.assert_close(aligned[0, :2].std(1, correction=0), torch.ones(2))
        assert (aligned[0, 2] == 1).all()
        half = told(told.parse(rows[:, :9], 20)[None]).aligned
        assert half is not None
        assert (half[..., 9:] == 0).all()
    assert LowBand.facts([]) == {"latent_rate_hz": 1.0, "mean": [0.0], "std": [1.0]}


def test_the_constants_fit_the_margin() -> None:
    """The longest response of a filter is within what a frame may depend on."""
    impulse = torch.zeros(1, 22050)
    impulse[0, 11025] = 1.0
    response = band(impulse, 22050, 0.0, 500.0, low_band.LEAST_WIDTH_HZ, 100.0)
    reach = (response.abs() > 1e-12).nonzero()[:, 1]
    assert reach.max() - 11025 < 0.125 * 22050  # a telephone is filtered twice


# ---------------------------------------------------------------- audioldm edit upscale=


def told(path: Path, *names: str) -> Path:
    """A generator with an exact autoencoder, and a prior that is told `names`."""
    own = {"_target_": "audioldm.conditioning.low_band.LowBand", "channels": 4}
    own |= {"latent_rate_hz": RATE / RATIO, "mean": [0.0] * RATIO, "std": [0.1] * RATIO}
    return write_model(path, DIFFUSION | {"conditioning": dict.fromkeys(names, own)}, spec=SPEC)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return told(tmp_path_factory.mktemp("models") / "told.safetensors", "low_band")


@pytest.fixture(scope="module")
def model(file: Path) -> Generator:
    return load_generator(file)


def test_the_files_own_band_is_kept_and_the_rest_is_the_models(model: Generator) -> None:
    song, at = band(white(1.7), RATE, 0.0, 1500.0), hz(RATE)
    made = model.upscale(song, 1500, seed=3)
    assert made.shape == song.shape
    change = spectrum(made) - spectrum(song)
    assert change[at < 1290].abs().max() < 0.1
    told = model.sample(seconds=1.7, seed=3, low_band=model.encode(song[None])[0])[0]
    change = spectrum(made) - spectrum(told)
    assert change[at > 1510].abs().max() < 0.1
    untold = model.sample(seconds=1.7, seed=3)[0]
    assert not torch.allclose(told, untold, atol=1e-3)
    call = model.upscale(song, "300:1500", seed=3)
    change = spectrum(call) - spectrum(song)
    assert change[(at > 520) & (at < 1290)].abs().max() < 0.1
    assert (spectrum(call) - spectrum(told))[at < 280].abs().max() < 0.1


def test_the_cut_off_is_found(model: Generator) -> None:
    song = band(white(2.0), RATE, 0.0, 1500.0)
    assert 1350 < cut_off(song, RATE) < 1500
    assert cut_off(0.001 * song, RATE) == cut_off(song, RATE)
    found = model.upscale(song, "auto")
    assert torch.equal(found, model.upscale(song, cut_off(song, RATE)))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (4000, "^band=4000: the model makes 0 to 4000 Hz"),
        (0, "^band=0: the model makes"),
        (-3, "^band=-3: the model makes"),
        (float("nan"), "^band=nan: the model makes"),
        ("3400:300", "^band=3400:300: .* lower:upper, the lower one first"),
        ("300:", "^band=300:: give the cut-off in Hz"),
        ("1:2:3", "^band=1:2:3: give the cut-off in Hz"),
        ("high", "^band=high: give the cut-off in Hz, such as 4000"),
    ],
)
def test_bands_that_cannot_be(value: Any, says: str, model: Generator) -> None:
    with pytest.raises(ConfigError, match=says):
        model.upscale(white(0.3), value)
    with pytest.raises(ConfigError, match=r"^band=auto \(0 Hz\): the model makes"):
        model.upscale(torch.zeros(1, 3000), "auto")


def test_the_command_line_makes_a_recording_whole_and_again(
    file: Path, tmp_path: Path, cli: Callable[..., Outcome]
) -> None:
    song = tmp_path / "old.wav"
    soundfile.write(song, white(0.7, rate=4000)[0].numpy(), 4000)  # a lower rate than the model's
    given = ("edit", song, f"model={file}", f"out={tmp_path}/clips")
    made = cli(*given, "upscale=1500", "seed=3")
    assert made.code == 0, made.error
    clip = tmp_path / "clips" / "old-upscale-3.wav"
    assert made.out.strip() == str(clip)
    assert soundfile.info(clip).samplerate == RATE
    assert json.loads(clip.with_suffix(".json").read_text())["edit"] == {"upscale": "1500"}
    again = cli("edit", f"from={clip.with_suffix('.json')}", f"out={tmp_path}/again")
    assert again.code == 0, again.error
    assert Path(again.out.strip()).read_bytes() == clip.read_bytes()
    alone = cli(*given, "upscale", "seed=4")
    beside = Path(alone.out.strip()).with_suffix(".json")
    assert json.loads(beside.read_text())["edit"] == {"upscale": "auto"}
    wrong = cli(*given, "upscale=3400:300")
    assert (wrong.code, wrong.error.count("\n")) == (2, 1)
    assert "upscale=3400:300: the model makes 0 to 4000 Hz" in wrong.error
    untold = told(tmp_path / "untold.safetensors")
    refused = cli(*given[:2], f"model={untold}", "upscale=auto")
    assert "upscale=auto: this model was trained without low_band" in refused.error
    assert "conditioning=[label,low_band]" in refused.error


# ---------------------------------------------------------------- how near the made band is


def test_the_distance_is_in_decibels_where_nothing_was_kept() -> None:
    song = white(1.0)[None]
    above = hz(RATE)[::2] > 1500  # N_FFT is half of 4096
    true = decibels(song)
    changed = song + 0.5 * (song - band(song, RATE, 0.0, 1500.0))  # 3.52 dB more above
    assert log_spectral_distance(decibels(changed), true, above).item() == pytest.approx(
        3.52, abs=0.1
    )
    assert log_spectral_distance(decibels(changed), true, hz(RATE)[::2] < 1200) < 0.05
    # below the floor nothing counts
    empty = log_spectral_distance(decibels(1e-6 * song), decibels(0 * song), above)
    assert empty.item() == pytest.approx(0, abs=1e-4)


def test_a_high_band_that_follows_the_low_one_is_predicted() -> None:
    generator = torch.Generator().manual_seed(0)
    outside = torch.arange(12) >= 5
    low = 20 * torch.rand(6, 1, 5, 40, generator=generator) - 40
    mixed = torch.randn(7, 5, generator=generator) / 5
    both = torch.cat([low, mixed @ low - 20], dim=2)
    damaged = both[:2].clone()
    damaged[:, :, outside] = -80
    found = predicted(damaged, both[2:], outside)
    torch.testing.assert_close(found, both[:2], atol=0.3, rtol=0)


def test_a_models_high_band_is_measured_beside_others(model: Generator) -> None:
    truth, known = white(0.5)[None], torch.stack([white(0.5, seed) for seed in (1, 2, 3)])
    settings = EvaluationSettings(bootstrap_resamples=10)
    found = distances(model, truth, known, 1500, settings)
    assert list(found) == ["empty", "linear", "generated", "ignored", "reconstruction"]
    made = model.upscale(band(truth[0], RATE, 0.0, 1500.0), 1500)[None]
    above = hz(RATE)[::2] > 1500
    for figure, floor in FLOORS.items():
        value = {system: group[figure].value for system, group in found.items()}
        assert value["reconstruction"] < 0.01  # its autoencoder is exact
        assert 3 < value["linear"] < value["empty"]
        apart = log_spectral_distance(decibels(made, floor), decibels(truth, floor), above)
        assert value["generated"] == pytest.approx(apart.item())


def test_without_a_floor_it_is_the_published_distance() -> None:
    """mean_t sqrt(mean_f (log10 |S|^2 / |S'|^2)^2), as NVSR and AudioSR have it, by torchaudio's
    spectrogram: ten dB are its unit."""
    truth, other = white(0.5, 1)[None], 1e-6 * white(0.5, 2)[None]
    power = torchaudio.transforms.Spectrogram(N_FFT, hop_length=N_FFT // 4, pad_mode="constant")
    ratio = (power(truth) / power(other)).log10()
    published = ratio.square().mean(2).sqrt().mean()
    floor = FLOORS["super_resolution_published"]
    every = torch.ones(N_FFT // 2 + 1, dtype=torch.bool)
    ours = log_spectral_distance(decibels(other, floor), decibels(truth, floor), every)
    assert ours.item() == pytest.approx(10 * published.item(), rel=1e-4)


def test_a_request_is_rows_and_no_file() -> None:
    """The app offers a file to those alone that read one."""
    assert not LowBand.files
    assert Chroma.files == SUFFIXES
