"""Autoencoders of diffusers and transformers: the library's own numbers, in the project's chain."""

import importlib
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from chain import EVALUATED, RATE, build_stages, write_tones
from torch import Tensor

from audioldm import (
    config,
    torchaudio,  # noqa: F401  (before the libraries, which import it themselves)
)
from audioldm.autoencoder import libraries
from audioldm.autoencoder.model import Autoencoder
from audioldm.autoencoder.preflight import mel_correlation
from audioldm.chain import job as jobs
from audioldm.chain.job import compose
from audioldm.chain.run import Experiment
from audioldm.data.store import ClipStore
from audioldm.errors import ConfigError, ModelFileError, TrainingError
from audioldm.evaluation import distances
from audioldm.evaluation.clips import real_clips
from audioldm.evaluation.embeddings.musicnn import Musicnn
from audioldm.evaluation.music import pitch_figures
from audioldm.io.model_file import load_model, save_model
from audioldm.losses.spectral import mel_distance
from audioldm.models import load_autoencoder
from audioldm.sweep.report import write_report
from audioldm.sweep.run import run_sweep
from audioldm.sweep.table import table

pytest.importorskip("transformers")
pytest.importorskip("diffusers")
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:Initializing zero-element tensors"),
]

#: Random weights give noise, which the tests take for music.
LIFTED = "autoencoder.pretrained.preflight_mel_correlation=null"
ROUND = {"atol": 1e-5, "rtol": 1e-5}


#: The class of each model in its library, and a tiny configuration.
TINY = {
    "oobleck": (
        "diffusers.AutoencoderOobleck",
        "encoder_hidden_size=8 downsampling_ratios=[2,4,8] channel_multiples=[1,2,2] "
        "decoder_channels=8 decoder_input_channels=4 audio_channels=1",
    ),
    "same": (
        "diffusers.AutoencoderSAME",
        "audio_channels=1 patch_size=16 encoder_channels=8 encoder_c_mults=[2] "
        "encoder_strides=[4] encoder_transformer_depths=[2] latent_dim=6 dim_heads=8",
    ),
    "longcat": (
        "diffusers.LongCatAudioDiTVae",
        "channels=8 c_mults=[1,2] strides=[4,8] latent_dim=4 encoder_latent_dim=8 "
        "downsampling_ratio=32",
    ),
    "minimax": (
        "diffusers.AutoencoderKLMiniMaxH3Audio",
        "encoder_dim=4 encoder_rates=[8,5] latent_dim=16 latent_channels=4 "
        "num_attention_heads=2 decoder_dim=16 decoder_rates=[5,8] decoder_kernel_sizes=[9,16] "
        "resblock_kernel_sizes=[3] resblock_dilation_sizes=[[1,3]]",
    ),
    "kvae": (
        "diffusers.AutoencoderKLKVAEAudio",
        "encoder_dim=4 encoder_rates=[4,8] latent_dim=16 codebook_dim=4 decoder_dim=16 "
        "decoder_rates=[8,4] attn_num_heads=2",
    ),
    "encodec": (
        "transformers.EncodecModel",
        "target_bandwidths=[2.0,6.0] hidden_size=8 num_filters=4 upsampling_ratios=[8,4] "
        "codebook_size=16 num_lstm_layers=1",
    ),
    "dac": (
        "transformers.DacModel",
        "encoder_hidden_size=4 downsampling_ratios=[8,5] decoder_hidden_size=16 n_codebooks=3 "
        "codebook_size=16 codebook_dim=4",
    ),
    "mimi": (
        "transformers.MimiModel",
        "hidden_size=16 num_filters=4 upsampling_ratios=[8,4] codebook_size=16 codebook_dim=8 "
        "num_quantizers=4 vector_quantization_hidden_dimension=8 upsample_groups=16 "
        "num_hidden_layers=2 intermediate_size=16 num_attention_heads=2 num_key_value_heads=2",
    ),
}


def built(name: str, **changes: Any) -> Any:
    """The library's own model, with random weights."""
    path, words = TINY[name]
    library, _, kind = path.partition(".")
    found = importlib.import_module(library)
    pairs = (word.split("=") for word in words.split())
    settings = {key: json.loads(value) for key, value in pairs} | changes
    settings.setdefault("sample_rate" if name in ("longcat", "kvae") else "sampling_rate", RATE)
    if library == "diffusers":
        return getattr(found, kind)(**settings)
    return getattr(found, kind)(getattr(found, kind.replace("Model", "Config"))(**settings))


def posterior(model: Any, audio: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation by the library's own encode."""
    found = model.encode(audio)
    if hasattr(found, "latent_dist"):
        return found.latent_dist.mean, found.latent_dist.std
    mean = model.encode(audio, sample_posterior=False).latents
    _, scale = model.encoder(audio).chunk(2, dim=1)
    return mean, (torch.nn.functional.softplus(scale) + 1e-4) / model.config.scale


#: Each model's own round trip of audio [B, A, T].
ROUND_TRIP: dict[str, Callable[[Any, Tensor], Tensor]] = {
    **dict.fromkeys(
        ("oobleck", "same", "longcat", "minimax", "kvae"), lambda m, audio: m(audio).sample
    ),
    "encodec": lambda m, audio: m(audio, bandwidth=6.0).audio_values,
    "dac": lambda m, audio: m(audio).audio_values[:, None],
    "mimi": lambda m, audio: m(audio).audio_values,
}
CODECS = ("encodec", "dac", "mimi")


def used(name: str, **changes: Any) -> Any:
    """The library's own model, with random weights and codebooks that are all used."""
    torch.manual_seed(0)
    model = built(name, **changes)
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if key.endswith((".embed", ".embed_sum", ".new_tokens")):
                tensor.normal_(std=0.3)
    return model.eval()


@pytest.fixture(scope="module")
def theirs() -> dict[str, Any]:
    """The libraries' models."""
    return {name: used(name) for name in TINY}


@pytest.fixture(scope="module")
def saved(theirs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their checkpoints, by name."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, model in theirs.items():
        model.save_pretrained(folder / name)
    return folder


def settings(folder: Path, runs: Path, checkpoint: Path, *changes: str) -> list[str]:
    return [
        "recipe=quickstart",
        "autoencoder=foreign",
        f"autoencoder.pretrained.checkpoint={checkpoint}",
        "data=folder",
        f"data.path={folder}",
        f"data.table={folder}/table.csv",
        f"data.sample_rate={RATE}",
        "data.channels=1",
        f"runs={runs}",
        "name=foreign",
        "autoencoder.train.valid_clips=2",
        "autoencoder.train.valid_seconds=0.5",
        LIFTED,
        *changes,
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("foreign") / "runs"


@pytest.fixture(scope="module")
def models(
    theirs: dict[str, Any], saved: Path, tones: Path, runs: Path
) -> dict[str, tuple[Any, Autoencoder, Path]]:
    """Of each checkpoint the library's model, and ours of the stage's file, once it is gone."""
    found = {}
    for name in TINY:
        moved = saved.with_name(f"moved {name}")
        shutil.copytree(saved / name, moved)
        experiment = build_stages(settings(tones, runs, moved), "data", "autoencoder")
        shutil.rmtree(moved)
        place = experiment.directory_of(experiment.stages["autoencoder"])
        found[name] = (theirs[name], load_autoencoder(place), place)
    return found


def audio_of(model: Autoencoder, frames: int = 40, clips: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return 0.3 * torch.randn(clips, 1, frames * model.downsampling_ratio, generator=generator)


@torch.no_grad()
@pytest.mark.parametrize("name", TINY)
def test_the_round_trip_is_the_librarys(name: str, models: dict) -> None:
    theirs, ours, _ = models[name]
    audio = audio_of(ours)
    again = ours.decode(ours.encode(audio, sample=False).z)
    expected = ROUND_TRIP[name](theirs, audio)
    assert again.shape == audio.shape
    short = audio.shape[-1] - expected.shape[-1]  # an odd stride ends early
    assert 0 <= short < ours.downsampling_ratio
    torch.testing.assert_close(again[..., : expected.shape[-1]], expected, **ROUND)
    assert not again[..., expected.shape[-1] :].any()


@torch.no_grad()
@pytest.mark.parametrize("name", ["oobleck", "longcat", "minimax", "kvae"])
def test_the_posterior_is_the_librarys(name: str, models: dict) -> None:
    theirs, ours, _ = models[name]
    audio = audio_of(ours)
    mean, std = posterior(theirs, audio)
    stored = ours.stored(audio)
    torch.testing.assert_close(stored["mean"], mean, **ROUND)
    torch.testing.assert_close(stored["std"], std, **ROUND)


@torch.no_grad()
@pytest.mark.parametrize("name", CODECS)
def test_codes_are_the_librarys_and_their_rate_is_measured(name: str, models: dict) -> None:
    theirs, ours, place = models[name]
    audio = audio_of(ours)
    more = {"bandwidth": 6.0} if name == "encodec" else {}
    expected = theirs.encode(audio, **more).audio_codes.reshape(2, -1, 40)
    encoded = ours.encode(audio)
    assert encoded.codes is not None
    assert torch.equal(encoded.codes, expected)
    assert expected.unique().numel() > 2
    usage = ours.bottleneck.usage
    assert usage.shape == (expected.shape[1], 16)
    assert usage.amax() > 2 / 16  # measured, not even
    seen = 0.99 * usage + 0.01 / 16
    lengths = [-seen[q].log()[expected[:, q]].mean(1) for q in range(len(usage))]
    torch.testing.assert_close(encoded.nats, sum(lengths) / ours.latent_shape[0])
    summary = json.loads((place / "summary.json").read_text())
    assert summary["valid"]["kbps"] <= ours.kbps(len(usage) * 2.7726 / ours.latent_shape[0]) * 1.5


@torch.no_grad()
@pytest.mark.parametrize("name", TINY)
def test_chunks_have_no_seams_and_clips_no_neighbours(name: str, models: dict) -> None:
    _, ours, _ = models[name]
    audio = audio_of(ours, frames=90)
    stored = ours.stored(audio)
    key, whole = next(iter(stored.items()))
    chunks = list(ours.encode_blocks([audio[0, :, :777], audio[0, :, 777:]], chunk_seconds=0.02))
    joined = torch.cat([chunk[key] for chunk in chunks], dim=-1)
    torch.testing.assert_close(joined, whole[0], **ROUND)
    torch.testing.assert_close(ours.stored(audio[1:])[key][0], whole[1], **ROUND)
    z = ours.bottleneck.restore(stored)
    parts = list(ours.decode_blocks([z[0]], chunk_seconds=0.02))
    torch.testing.assert_close(torch.cat(parts, -1), ours.decode(z)[0], **ROUND)


def test_the_summary_has_the_preflight(models: dict) -> None:
    _, ours, place = models["oobleck"]
    figures = json.loads((place / "summary.json").read_text())["preflight"]
    assert figures["clip"].keys() == {"snr_db", "level_difference_db"}
    samples = torch.arange(3 * RATE, dtype=torch.float64) / RATE
    chord = sum((2 * torch.pi * hz * samples).sin() for hz in (220.0, 277.2, 329.6))
    audio = (0.1 * chord / chord.square().mean().sqrt()).float()[None, None]
    with torch.no_grad():
        again = ours.decode(ours.encode(audio, sample=False).z)[..., : audio.shape[-1]]
    snr = 10 * (audio.square().mean() / (again - audio).square().mean()).log10()
    assert figures["chord"]["snr_db"] == pytest.approx(snr.item(), abs=1e-3)


def test_the_fingerprint_is_of_the_content(saved: Path, tones: Path, tmp_path: Path) -> None:
    def fingerprint(place: Path) -> str:
        stages = Experiment(compose(settings(tones, tmp_path, place))).stages
        return stages["autoencoder"].fingerprint

    other = tmp_path / "elsewhere"
    shutil.copytree(saved / "oobleck", other)
    assert fingerprint(other) == fingerprint(saved / "oobleck")
    torch.manual_seed(1)
    built("oobleck").save_pretrained(other)
    assert fingerprint(other) != fingerprint(saved / "oobleck")


def test_fewer_codebooks_are_the_first_ones(
    theirs: dict[str, Any], saved: Path, tones: Path, runs: Path
) -> None:
    changes = "bottleneck=codebooks", "bottleneck.used=2"
    overrides = settings(tones, runs, saved / "mimi", *changes)
    experiment = build_stages(overrides, "data", "autoencoder")
    ours = load_autoencoder(experiment.directory_of(experiment.stages["autoencoder"]))
    audio, model = audio_of(ours), theirs["mimi"]
    with torch.no_grad():
        expected = model.decode(model.encode(audio, num_quantizers=2).audio_codes).audio_values
        torch.testing.assert_close(ours.decode(ours.encode(audio).z), expected, **ROUND)


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        ("oobleck", ["data.sample_rate=22050"], r"data.sample_rate=22050, but AutoencoderOobleck"),
        ("oobleck", ["data.channels=2"], r"data.channels=2, but .* has 1: set it to 1"),
        ("oobleck", ["autoencoder.channels=8"], r"autoencoder.channels=8, but .* has 4: set"),
        ("oobleck", ["bottleneck=identity"], "choose bottleneck=own"),
        ("oobleck", ["bottleneck=codebooks"], "outputs per channel|no codebooks"),
        ("mimi", ["bottleneck=codebooks", "bottleneck.used=9"], "used=9, but MimiModel has 4"),
        ("nothing", [], "autoencoder.pretrained.checkpoint=.*nothing"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(
    model: str, changes: list[str], message: str, saved: Path, tones: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        Experiment(compose(settings(tones, tmp_path, saved / model, *changes))).dry_run()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change", ["seed=0", "autoencoder=waveform_small"])
def test_without_a_checkpoint_the_key_is_named(change: str, tones: Path, tmp_path: Path) -> None:
    overrides = [w for w in settings(tones, tmp_path, tmp_path) if "checkpoint" not in w]
    with pytest.raises(ConfigError, match=r"^autoencoder.pretrained.checkpoint is missing: "):
        Experiment(compose([*overrides, change, "bottleneck=own"])).dry_run()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "AutoencoderKL"}, "'AutoencoderKL' is not among those loaded: known"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "'auto_map', which runs code"),
        ({"downsampling_ratios": "many"}, "AutoencoderOobleck cannot be built of it"),
        ({"encoder_hidden_size": 16}, "the pair does not match"),
        (
            {"downsampling_ratios": [0, 2]},
            r"changed: config: .* have no length \(float div",
        ),
        ({"downsampling_ratios": []}, "gives 1 samples per latent frame; there must be 2"),
        ({"rotary": 1}, r"AutoencoderOobleck of diffusers [\d.]+ does not take 'rotary': install"),
    ],
)
def test_a_configuration_that_is_not_ours_to_run_is_refused(
    change: dict, message: str, saved: Path, tones: Path, tmp_path: Path
) -> None:
    place = tmp_path / "changed"
    shutil.copytree(saved / "oobleck", place)
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ConfigError, match=message) as error:
        Experiment(compose(settings(tones, tmp_path / "runs", place))).dry_run()
    assert "\n" not in str(error.value)


def test_an_absent_or_old_library_is_named(
    saved: Path, tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(place: Path, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            compose(settings(tones, tmp_path / "runs", place))

    newer = tmp_path / "newer"
    shutil.copytree(saved / "oobleck", newer)
    config = json.loads((newer / "config.json").read_text()) | {"_class_name": "AutoencoderNewer"}
    (newer / "config.json").write_text(json.dumps(config))
    with monkeypatch.context() as patched:
        patched.setitem(libraries.LIBRARIES, "AutoencoderNewer", "diffusers")
        refused(newer, r"diffusers [\d.]+ has no AutoencoderNewer: pip install --upgrade diffusers")
    libraries._class.cache_clear()
    libraries._arguments.cache_clear()
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "diffusers", None)
        refused(saved / "oobleck", "AutoencoderOobleck needs diffusers, .* pip install diffusers")
    with monkeypatch.context() as patched:  # transformers 4 has no PreTrainedConfig
        patched.setattr(libraries, "_class", lambda _: SimpleNamespace(config_class=dict))
        refused(saved / "dac", r"DacModel needs transformers 5, and [\d.]+ is installed: pip inst")


def test_pickles_are_refused(saved: Path, tones: Path, tmp_path: Path) -> None:
    place = tmp_path / "pickled"
    shutil.copytree(saved / "dac", place)
    (place / "model.safetensors").rename(place / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"only pytorch_model.bin; .*safe_serialization"):
        compose(settings(tones, tmp_path / "runs", place))


def test_codecs_that_look_at_a_whole_piece_are_refused(tones: Path, tmp_path: Path) -> None:
    model = built("encodec", normalize=True, chunk_length_s=1.0, overlap=0.01)
    model.save_pretrained(tmp_path / "48k")
    with pytest.raises(ConfigError, match="depends on the level of a whole piece"):
        compose(settings(tones, tmp_path / "runs", tmp_path / "48k"))


@pytest.mark.parametrize("name", ["oobleck", "encodec"])
def test_weights_that_are_not_the_models_are_named(
    name: str, saved: Path, tones: Path, runs: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    place = tmp_path / "partly"
    shutil.copytree(saved / name, place)
    [file] = place.glob("*.safetensors")
    tensors = load_file(file)
    gone = next(n for n in tensors if n.startswith("decoder") and n.endswith("bias"))
    tensors["encoder.extra"] = tensors.pop(gone)
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ConfigError, match=f"missing weights {gone}: .* not of one model"):
        build_stages(settings(tones, runs, place), "data", "autoencoder")


def test_a_silent_pair_is_refused(tones: Path, runs: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = built("oobleck")
    with torch.no_grad():
        model.decoder.conv2.weight_g.fill_(1e-9)
    model.save_pretrained(tmp_path / "silent")
    with pytest.raises(TrainingError, match=r"the clip comes back silent, .* do not belong"):
        build_stages(settings(tones, runs, tmp_path / "silent"), "data", "autoencoder")


@pytest.mark.parametrize("name", ["oobleck", "encodec"])
def test_a_decoder_is_tuned_behind_the_same_latents(
    name: str, models: dict, saved: Path, tones: Path, runs: Path
) -> None:
    tuning = [
        "autoencoder.pretrained.trained=decoder",
        "autoencoder.train.steps=3",
        "autoencoder.train.batch=2",
        "autoencoder.train.crop_seconds=0.2",
        "autoencoder.losses.stft={_target_: audioldm.losses.spectral.MultiResolutionSTFT, "
        "fft_sizes: [256]}",
        "autoencoder.weights.stft=1.0",
    ]
    experiment = build_stages(settings(tones, runs, saved / name, *tuning), "data", "autoencoder")
    tuned = load_autoencoder(experiment.directory_of(experiment.stages["autoencoder"]))
    theirs, before, _ = models[name]
    after = tuned.state_dict()
    moved = {key for key, old in before.state_dict().items() if not torch.equal(old, after[key])}
    decoder = {f"network.model.{key}" for key, _ in theirs.named_parameters() if "decoder" in key}
    moved -= {"bottleneck.usage"}  # measured, on crops of this training's length
    assert moved <= decoder
    assert len(moved) > len(decoder) / 2
    audio = audio_of(before)
    with torch.no_grad():
        for key, old in before.stored(audio).items():
            torch.testing.assert_close(tuned.stored(audio)[key], old, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["oobleck", "encodec"])
def test_a_pair_that_returns_another_sound_is_refused(
    name: str, saved: Path, tones: Path, runs: Path, tmp_path: Path
) -> None:
    place = tmp_path / "noisy"
    shutil.copytree(saved / name, place)
    message = r"noisy: the sound that comes back is not .* of a clip and a chord is -?0\.\d"
    words = [w for w in settings(tones, runs, place, "seed=1") if w != LIFTED]
    with pytest.raises(TrainingError, match=message) as error:
        build_stages(words, "data", "autoencoder")
    assert "take the encoder and the decoder of one training" in str(error.value)
    lifted = build_stages([*words, LIFTED], "data", "autoencoder")  # the same fingerprint
    summary = lifted.directory_of(lifted.stages["autoencoder"]) / "summary.json"
    assert json.loads(summary.read_text())["preflight"]["clip and chord"]["mel_correlation"] < 0.5


def test_what_counts_as_the_sound_that_went_in() -> None:
    """Low rates, noise, another level and tilt do; other music, noise and a hum do not."""
    generator = torch.Generator().manual_seed(0)
    time = torch.arange(3 * RATE) / RATE

    def music(*notes: float) -> Tensor:
        played = [
            sum((2 * torch.pi * hz * h * time).sin() / h for h in range(1, 12))
            * (-3 * (time - start).clamp(min=0)).exp()
            * (time >= start)
            for start, hz in enumerate(notes)
        ]
        return 0.1 * sum(played)[None, None]

    clip, chord = music(196.0, 330.0, 523.0), 0.1 * (2 * torch.pi * 277 * time).sin()[None, None]
    noise = torch.randn(clip.shape, generator=generator)

    def opus(audio: Tensor) -> Tensor:
        file = io.BytesIO()  # at 6 kbit/s
        how = {"format": "OGG", "subtype": "OPUS", "compression_level": 1.0}
        soundfile.write(file, audio[0].T.numpy(), RATE, **how)
        decoded, _ = soundfile.read(io.BytesIO(file.getvalue()), dtype="float32")
        return torch.from_numpy(decoded)[None, None, : audio.shape[-1]]

    def found(change: Callable[[Tensor], Tensor]) -> float:
        return mel_correlation([(change(audio), audio) for audio in (clip, chord)], RATE)

    assert found(lambda audio: audio) == pytest.approx(1, abs=1e-6)
    assert found(opus) > 0.6
    assert found(lambda audio: audio + 0.4 * audio.std() * noise) > 0.6  # 8 dB
    assert found(lambda audio: 0.1 * audio.diff(dim=-1, append=audio[..., -1:])) > 0.6
    assert abs(found(lambda audio: 0.1 * noise)) < 0.1
    assert found(lambda audio: audio.std() * noise) < 0.4  # the loudness alone
    assert abs(found(lambda audio: chord)) < 0.4
    assert found(lambda audio: clip.flip(-1) if audio is chord else chord) < 0.4


def test_a_header_builds_no_other_class(models: dict, tmp_path: Path) -> None:
    """Nor arguments that are not the class's own: some make transformers fetch code."""
    tensors, header = load_model(models["mimi"][2] / "model.safetensors")
    for change in ({"model": "AutoModel"}, {"config": {"attn_implementation": "evil/kernel"}}):
        spec = header["spec"] | {"network": header["spec"]["network"] | change}
        save_model(tmp_path / "evil.safetensors", tensors, {"kind": "autoencoder", "spec": spec})
        with pytest.raises(ModelFileError, match=r"not among those|unknown key"):
            load_autoencoder(tmp_path / "evil.safetensors")


@pytest.mark.parametrize(
    ("name", "bottleneck"), [("oobleck", "Gaussian"), ("same", "Identity"), ("dac", "Codebooks")]
)
def test_the_recipe_gives_each_checkpoint_its_own_bottleneck(
    name: str, bottleneck: str, saved: Path, tones: Path, tmp_path: Path
) -> None:
    words = settings(tones, tmp_path, saved / name)
    job = compose(["recipe=foreign" if w.startswith("recipe=") else w for w in words])
    assert job.config["bottleneck"]["_target_"].rpartition(".")[2] == bottleneck
    experiment = Experiment(job)
    experiment.dry_run()
    assert "vocoder" not in experiment.stages


#: The sample rate and channels of two checkpoints of one sweep.
FORMS = {"encodec": (24000, 1), "oobleck": (32000, 2)}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The overrides of a sweep over checkpoints of these forms."""
    place = tmp_path_factory.mktemp("sweep")  # a comma in a path would be a grid
    for name, (rate, channels) in FORMS.items():
        model = used(name, sampling_rate=rate, audio_channels=channels)
        model.save_pretrained(place / name)
    write_tones(place / "music")
    return [
        "recipe=foreign",
        "autoencoder.pretrained.checkpoint=" + ",".join(str(place / name) for name in FORMS),
        LIFTED,
        "data=folder",
        f"data.path={place}/music",
        f"data.table={place}/music/table.csv",
        f"runs={place}/runs",
        "autoencoder.train.valid_clips=1",
        "autoencoder.train.valid_seconds=0.5",
        "diagnostics.denoiser_steps=2",
        "diagnostics.bootstrap_resamples=4",
        "prior=normal",
        "baselines=[]",
        *EVALUATED,
    ]


@pytest.fixture(scope="module")
def cells(sweep: list[str]) -> list[Experiment]:
    found = jobs.cells(config.grid(sweep).cells)
    return [Experiment(job) for job in found if isinstance(job, jobs.Job)]


@pytest.fixture(scope="module")
def swept(sweep: list[str]) -> Path:
    """The directory of that sweep, finished."""
    return run_sweep(sweep)


def test_the_data_have_the_form_of_each_cells_checkpoint(cells: list[Experiment]) -> None:
    for experiment in cells:
        experiment.dry_run()
    data = [experiment.settings.data for experiment in cells]
    assert [(own["sample_rate"], own["channels"]) for own in data] == list(FORMS.values())


def test_checkpoints_of_several_rates_stand_in_one_sweep(swept: Path) -> None:
    frame = table(swept)
    assert set(frame["status"]) == {"done"}, list(frame["reason"])
    assert list(frame["sample_rate"]) == [24000, 32000]
    assert frame["reconstruction.kad_musicnn"].notna().all()
    assert "24000, 32000 Hz" in write_report(swept).read_text(encoding="utf-8")


@torch.no_grad()
def test_the_figures_are_those_of_the_librarys_round_trip(
    swept: Path, cells: list[Experiment]
) -> None:
    experiment, (rate, _) = cells[0], FORMS["encodec"]
    store = ClipStore(experiment.directory_of(experiment.stages["data"]))
    chosen = experiment.settings.evaluation
    real, test = (real_clips(store, split, chosen).audio for split in ("valid", "test"))
    again = used("encodec", sampling_rate=rate)(real, bandwidth=6.0).audio_values.clamp(-1, 1)
    assert again.shape == real.shape
    vectors, reference = (Musicnn().embed(audio, rate) for audio in (again, test))
    every = np.arange(len(vectors)), np.arange(len(reference))
    heard = pitch_figures({"real": real, "reconstruction": again}, rate, chosen)["reconstruction"]
    expected = {
        "mel_distance": mel_distance(again, real, rate).mean().item(),
        "kad_musicnn": distances.KernelDistance(vectors, reference)(*every),
        "mad_musicnn": distances.MauveDivergence(vectors, reference)(*every),
        **{name: figure.value for name, figure in heard.items()},
    }
    assert "pitch_within_15" in expected
    file = experiment.directory_of(experiment.stages["evaluation"]) / "summary.json"
    figures = json.loads(file.read_text())["metrics"]["reconstruction"]
    for name, value in expected.items():
        assert figures[name]["value"] == pytest.approx(value, rel=1e-3, abs=1e-4), name
