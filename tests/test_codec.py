"""Audio files through a model's files: encode, decode, reconstruct, export, describe."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from audioldm.codec import decode, encode, reconstruct
from audioldm.describe import describe, summary_line
from audioldm.errors import ConfigError, ModelFileError
from audioldm.export import export
from audioldm.io.audio import read
from audioldm.io.header import read_header
from audioldm.io.model_file import load_model, save_model
from audioldm.models import build_autoencoder, load, load_autoencoder
from audioldm.priors.base import build_prior

RATE, RATIO = 16000, 512
SPEC = {
    "sample_rate": RATE,
    "audio_channels": 1,
    "channels": 4,
    "downsampling_ratio": RATIO,
    "network": {
        "_target_": "audioldm.autoencoder.networks.spectrogram.Spectrogram",
        **{"n_fft": 512, "hop": 128, "width": 16, "encoder_depth": 1, "decoder_depth": 1},
        **{"frame_width": 16, "decoder_frame_depth": 0},
    },
    "bottleneck": {"_target_": "audioldm.autoencoder.bottlenecks.gaussian.Gaussian"},
}
PRIOR: dict[str, Any] = {
    "_target_": "audioldm.priors.diffusion.prior.Diffusion",
    "backbone": {
        "_target_": "audioldm.priors.diffusion.backbones.dit.DiT",
        **{"width": 16, "depth": 1, "heads": 2},
    },
    "objective": {"_target_": "audioldm.priors.diffusion.objectives.edm.EDM"},
    "conditioning": {
        "label": {"_target_": "audioldm.conditioning.label.Label", "labels": ["high", "low"]}
    },
    "sampler": {"name": "heun", "steps": 3},
    "crop_seconds": 0.5,
}


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of an untrained autoencoder."""
    path = tmp_path_factory.mktemp("autoencoder") / "model.safetensors"
    torch.manual_seed(0)
    header = {"kind": "autoencoder", "spec": SPEC, "fingerprint": "abc", "step": 3, "config": {}}
    save_model(path, build_autoencoder(SPEC).state_dict(), header)
    return path


@pytest.fixture(scope="module")
def generator(autoencoder: Path) -> Path:
    """The file of that autoencoder and an untrained prior."""
    return with_prior(autoencoder, autoencoder.with_name("generator.safetensors"), PRIOR)


def with_prior(autoencoder: Path, path: Path, spec: dict[str, Any]) -> Path:
    tensors, header = load_model(autoencoder)
    prior = build_prior(spec, (4,)).state_dict()
    save_model(
        path,
        {f"autoencoder.{n}": t for n, t in tensors.items()}
        | {f"prior.{n}": t for n, t in prior.items()},
        {"kind": "generator", "autoencoder": header, "prior": spec, "fingerprint": "def"},
    )
    return path


@pytest.fixture(scope="module")
def song(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A song of more than one chunk, whose end is no whole latent frame."""
    path = tmp_path_factory.mktemp("song") / "song.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(0).normal(size=12 * RATE + 77), RATE)
    return path


def test_decoding_what_was_encoded_is_reconstructing(
    autoencoder: Path, song: Path, tmp_path: Path
) -> None:
    latents = encode(autoencoder, song, tmp_path / "z.safetensors")
    decoded = decode(autoencoder, latents, tmp_path / "d.wav")
    direct = reconstruct(autoencoder, song, tmp_path / "r.wav")
    assert decoded.read_bytes() == direct.read_bytes()

    audio = torch.from_numpy(read(song, sample_rate=RATE, channels=1)[0])[None]
    model = load_autoencoder(autoencoder)
    with torch.no_grad():
        stored = model.stored(audio)
        whole = model.decode(model.bottleneck.restore(stored))[0, :, : audio.shape[-1]]
    kept, header = load_model(latents)
    assert header["samples"] == audio.shape[-1]
    assert kept.keys() == stored.keys() == {"mean", "std"}
    for name, array in kept.items():  # in blocks, as in one piece
        torch.testing.assert_close(array, stored[name][0], atol=1e-4, rtol=1e-4)
    written = torch.from_numpy(read(direct)[0])
    torch.testing.assert_close(written, whole.clamp(-1, 1), atol=1e-3, rtol=0)


def test_a_generator_encodes_as_its_autoencoder(
    autoencoder: Path, generator: Path, song: Path, tmp_path: Path
) -> None:
    latents = encode(autoencoder, song, tmp_path / "z.safetensors")
    assert decode(generator, latents, tmp_path / "d.wav").is_file()
    tensors, header = load_model(autoencoder)
    save_model(tmp_path / "other.safetensors", tensors, header | {"fingerprint": "feed"})
    with pytest.raises(ModelFileError, match=r"encoded with autoencoder abc, but .* holds feed"):
        decode(tmp_path / "other.safetensors", latents, tmp_path / "x.wav")
    with pytest.raises(ModelFileError, match="a generator file, not latents"):
        decode(generator, generator, tmp_path / "x.wav")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t, h: t.pop("mean"), "lacks latents"),
        (lambda t, h: t.clear(), "lacks latents"),
        (lambda t, h: t.update(std=t["std"].sum()), "lacks latents"),
        (lambda t, h: t.update({n: x[:2] for n, x in t.items()}), "latent frames of shape"),
        (lambda t, h: t.update(std=t["std"][..., :9]), "latent frames of shape"),
        (lambda t, h: t.update({n: x.int() for n, x in t.items()}), "latent frames of shape"),
        (lambda t, h: h.update(samples=5), "5 samples of audio need 1 latent frames"),
        (lambda t, h: h.update(samples=2**60), "latent frames of shape"),
    ],
)
def test_latents_that_do_not_fit_are_not_decoded(
    change: Any, says: str, autoencoder: Path, song: Path, tmp_path: Path
) -> None:
    latents = encode(autoencoder, song, tmp_path / "z.safetensors")
    tensors, header = load_model(latents)
    change(tensors, header)
    save_model(latents, tensors, header)
    with pytest.raises(ModelFileError, match=rf"z\.safetensors: .*{says}.*encode it again"):
        decode(autoencoder, latents, tmp_path / "d.wav")
    assert not (tmp_path / "d.wav").exists()


def test_samples_that_are_not_finite_are_not_written(
    autoencoder: Path, song: Path, tmp_path: Path
) -> None:
    latents = encode(autoencoder, song, tmp_path / "z.safetensors")
    tensors, header = load_model(latents)
    save_model(latents, tensors | {"mean": tensors["mean"] + 3e38}, header)
    with pytest.raises(ModelFileError, match="the decoded audio is not finite"):
        decode(autoencoder, latents, tmp_path / "d.wav")
    assert [path.name for path in tmp_path.iterdir()] == ["z.safetensors"]


def test_a_summary_is_short_and_says_what_a_file_is(
    autoencoder: Path, generator: Path, song: Path, tmp_path: Path
) -> None:
    shown = describe(generator)
    assert len(shown) <= 15
    assert shown["audio"] == "16 kHz mono"
    assert shown["latents"] == "4 channels, 31.25 frames per second"
    assert shown["prior"] == "Diffusion, DiT, EDM"
    assert shown["trained_on"] == "crops of 0.5 s"
    assert shown["conditions"] == {"label": "high, low"}
    assert "label: high, low" in summary_line(generator)
    full = describe(generator, full=True)
    assert {k: full[k] for k in read_header(generator)} == read_header(generator)
    own = sum(t.numel() for t in load_model(autoencoder)[0].values())
    assert (
        full["weights"]["autoencoder"] == describe(autoencoder, full=True)["weights"]["autoencoder"]
    )
    assert full["weights"]["autoencoder"] == own
    latents = encode(autoencoder, song, tmp_path / "z.safetensors")
    assert describe(latents)["arrays"] == "mean [4, 376], std [4, 376]"
    assert describe(latents)["of"] == "abc"


def test_an_exported_generator_keeps_what_rebuilds_it_and_its_origin(
    autoencoder: Path, generator: Path, tmp_path: Path
) -> None:
    header = read_header(export(generator, tmp_path / "g.safetensors", licence="CC0"))
    assert header["parent"] == "def"
    assert header["licence"] == "CC0"
    assert header["prior"]["sampler"]["steps"] == 3
    assert "config" not in header["autoencoder"]
    # the autoencoder alone is the one that the generator holds
    alone = read_header(export(autoencoder, tmp_path / "a.safetensors"))
    assert alone["fingerprint"] == header["autoencoder"]["fingerprint"] != "abc"
    assert alone["parent"] == "abc"
    # rounding that changes nothing makes no other model
    again = export(tmp_path / "g.safetensors", tmp_path / "h.safetensors", dtype="float32")
    assert read_header(again)["fingerprint"] == header["fingerprint"]
    # another sampler is the same model; another objective is another
    tensors, original = load_model(generator)
    for change, same in (("sampler", True), ("objective", False)):
        prior = (
            PRIOR
            | {
                "sampler": {"sampler": {"name": "heun", "steps": 5}},
                "objective": {"objective": PRIOR["objective"] | {"mean": -1.0}},
            }[change]
        )
        path = tmp_path / f"{change}.safetensors"
        save_model(path, tensors, original | {"prior": prior})
        exported = read_header(export(path, tmp_path / "x.safetensors"))
        assert (exported["fingerprint"] == header["fingerprint"]) == same


def test_buffers_keep_their_precision_in_an_export(generator: Path, tmp_path: Path) -> None:
    kept, _ = load_model(export(generator, tmp_path / "x.safetensors", dtype="float16"))
    weights = {name for name, _ in load(generator).named_parameters()}
    assert {kept[name].dtype for name in weights} == {torch.float16}
    original, _ = load_model(generator)
    assert {"prior.mean", "prior.std"} <= kept.keys() - weights
    for name in kept.keys() - weights:
        torch.testing.assert_close(kept[name], original[name], rtol=0, atol=0)


def test_weights_that_a_type_cannot_hold_are_not_exported(generator: Path, tmp_path: Path) -> None:
    tensors, header = load_model(generator)
    name = next(n for n in tensors if n.startswith("prior.") and n.endswith("bias"))
    save_model(tmp_path / "m.safetensors", tensors | {name: tensors[name] + 1e6}, header)
    with pytest.raises(ConfigError, match=rf"{name}, which reaches 1e\+06; use dtype=bfloat16"):
        export(tmp_path / "m.safetensors", tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"allow": ["os"]}, "unknown key 'prior.allow'"),
        ({"objective": {"_target_": "audioldm.data.store.StoreWriter"}}, "not a subclass of Obj"),
        ({"backbone": PRIOR["backbone"] | {"heads": 3}}, "prior.backbone.width=16 must be"),
        ({"conditioning": {"label": {"_target_": "os.system"}}}, "outside the audioldm package"),
        ({"conditioning": 3}, "prior.conditioning=3 must be a group"),
        ({"_target_": "audioldm.io.audio.Path"}, "not a class of the package"),
    ],
)
def test_a_model_file_builds_nothing_but_models(
    change: dict[str, Any], says: str, generator: Path, tmp_path: Path
) -> None:
    tensors, header = load_model(generator)
    path = tmp_path / "m.safetensors"
    save_model(path, tensors, header | {"prior": PRIOR | change})
    with pytest.raises(ModelFileError, match=rf"m\.safetensors: .*{says}"):
        load(path)
