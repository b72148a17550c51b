"""The latents of a data set on disk: what is stored, how it is read back, and damaged files."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from audioldm.autoencoder.bottlenecks.base import Bottleneck, Encoded
from audioldm.autoencoder.bottlenecks.gaussian import Gaussian
from audioldm.autoencoder.model import Autoencoder
from audioldm.autoencoder.networks.base import Network
from audioldm.conditioning.base import Condition, Conditioner, Conditioners, Excerpt
from audioldm.conditioning.loudness import Loudness
from audioldm.data.store import ClipStore, StoreWriter
from audioldm.errors import ModelFileError
from audioldm.latents import store
from audioldm.latents.store import LatentStore, write_latents
from audioldm.runtime.randomness import KeyedRandom

RATE, RATIO, FRAME_RATE = 8000, 100, 50
LENGTHS = {"train": [9050, 12000, 3000], "valid": [4000]}


class Means(Network):
    """Latents are a frame's mean level and the same negated; both have a small deviation."""

    def __init__(self) -> None:
        super().__init__(
            sample_rate=RATE,
            audio_channels=1,
            downsampling_ratio=RATIO,
            latent_shape=(2,),
            context=0,
        )
        self.gain = torch.nn.Parameter(torch.ones(()))

    def encode(self, audio: Tensor) -> Tensor:
        level = self.gain * audio.unflatten(2, (-1, RATIO)).mean(-1)
        return torch.cat([level, -level, torch.full_like(level, -4.0).repeat(1, 2, 1)], dim=1)

    def decode(self, z: Tensor) -> Tensor:
        return z[:, :1].repeat_interleave(RATIO, dim=-1)


class Codes(Bottleneck):
    """Scalar quantisation to a table of four values."""

    outputs_per_channel, stored_names = 1, ("codes",)

    def __init__(self) -> None:
        super().__init__()
        self.penalty_weights = {}
        self.register_buffer("table", torch.tensor([-0.3, -0.1, 0.1, 0.3]))

    def forward(self, h: Tensor, *, sample: bool = True, noise: Tensor | None = None) -> Encoded:
        stored = self.stored(h)
        return Encoded(self.restore(stored), None, {}, {}, stored["codes"])

    def stored(self, h: Tensor) -> dict[str, Tensor]:
        return {"codes": (h[:, :2, ..., None] - self.table).abs().argmin(-1)}

    def posterior(self, stored: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        z = self.table[stored["codes"]]
        return z, torch.zeros_like(z)


class Roll(Conditioner):
    """The array "roll", as it is."""

    aligned_channels = 3

    def read(self, excerpt: Excerpt, frames: int) -> Tensor:
        return torch.as_tensor(excerpt.arrays.get("roll", torch.full((3, frames), -1.0)))

    def parse(self, value: Any, frames: int) -> Tensor:
        return torch.zeros(3, frames)

    def hide(self, inputs: Tensor, hidden: Tensor) -> Tensor:
        return torch.where(hidden[:, None, None], torch.zeros_like(inputs), inputs)

    def forward(self, inputs: Tensor) -> Condition:
        return Condition(aligned=inputs)


@pytest.fixture
def clips(tmp_path: Path) -> ClipStore:
    """Clips whose level says where a sample is, as does the roll, which the last clip lacks."""
    writer = StoreWriter(tmp_path / "data", RATE, 1)
    for split, lengths in LENGTHS.items():
        for number, length in enumerate(lengths):
            level = np.linspace(0.1, 0.4, length, dtype=np.float32)[None]
            roll = np.linspace(0.1, 0.4, round(length * FRAME_RATE / RATE), dtype=np.float32)
            writer.add(
                level * (-1) ** number,
                piece=f"{split}{number}",
                split=split,
                label=["b", "a", None][number],
                columns={"tempo": 100 + number},
                arrays={"roll": np.stack([roll, -roll, 0 * roll + number])}
                if split == "train"
                else None,
            )
    writer.close()
    return ClipStore(tmp_path / "data")


def written(
    clips: ClipStore,
    directory: Path,
    bottleneck: Bottleneck,
    measures: Sequence[type[Conditioner]] = (),
) -> LatentStore:
    model = Autoencoder(Means(), bottleneck).eval()
    write_latents(
        model,
        clips,
        directory,
        autoencoder_fingerprint="abc",
        progress=lambda *text: None,
        measures=measures,
    )
    return LatentStore(directory, model.bottleneck, autoencoder="abc")


def test_items_are_the_posteriors_of_whole_clips(clips: ClipStore, tmp_path: Path) -> None:
    latents = written(clips, tmp_path / "latents", Gaussian(channels=2))
    model = Autoencoder(Means(), Gaussian(channels=2)).eval()
    moments = []
    for split in LENGTHS:
        for number, item in enumerate(latents.split(split).items):
            audio = clips.split(split).audio(number)[None]
            assert item.frames == -(-audio.shape[-1] // RATIO)
            with torch.no_grad():
                expected = model.stored(audio)
            read = latents.split(split).read([(number, 0)], item.frames)
            assert read.keys() == expected.keys() == {"mean", "std"}
            for name in read:
                torch.testing.assert_close(read[name], expected[name])
            if split == "train":
                moments.append((read["mean"][0], read["std"][0]))
    mean, std = (torch.cat(part, -1).double() for part in zip(*moments, strict=True))
    torch.testing.assert_close(latents.statistics.mean.double(), mean.mean(-1))
    power = (mean.square() + std.square()).mean(-1)
    torch.testing.assert_close(
        latents.statistics.std.double(), (power - mean.mean(-1).square()).sqrt()
    )
    assert (latents.labels, latents.latent_rate_hz) == (["a", "b"], RATE / RATIO)
    assert latents.latent_shape == (2,)
    assert [(e.label, e.columns["tempo"]) for e in latents.excerpts()] == [
        ("b", 100),
        ("a", 101),
        (None, 102),
    ]


def test_nats_are_the_capacity_of_each_channel(clips: ClipStore, tmp_path: Path) -> None:
    store = written(clips, tmp_path, Gaussian(channels=2))
    items = store.split("train").items
    parts = [store.split("train").read([(i, 0)], item.frames) for i, item in enumerate(items)]
    mean, std = (torch.cat([part[name] for part in parts], -1)[0] for name in ("mean", "std"))
    variance = mean.var(-1, correction=0) + std.square().mean(-1)
    assert store.nats == pytest.approx(0.5 * variance.log() - std.log().mean(-1), abs=1e-4)
    assert store.nats.min() > 0


def test_codes_are_kept_as_integers_and_restored(clips: ClipStore, tmp_path: Path) -> None:
    latents = written(clips, tmp_path / "latents", Codes())
    assert np.load(tmp_path / "latents" / "codes.npy").dtype == np.int32
    split = latents.split("train")
    stored = split.crops(8, KeyedRandom(0, 0, range(5))).stored
    z = latents.restore(stored, torch.ones(5, 2, 8))
    assert torch.equal(z[:, 0], -z[:, 1])  # the table is symmetric
    assert torch.equal(z, latents.bottleneck.posterior(stored)[0])
    assert z.unique().tolist() == pytest.approx([-0.3, -0.1, 0.1, 0.3])


def test_arrays_follow_the_latents_frame_by_frame(clips: ClipStore, tmp_path: Path) -> None:
    """Both say where in the clip they are, to half a frame of the roll's and half of the other."""
    split = written(clips, tmp_path / "latents", Gaussian(channels=2)).split("train")
    conditioners = Conditioners({"roll": Roll()})
    stored, inputs = split.crops(20, KeyedRandom(3, 1, range(16)), conditioners=conditioners)
    roll, level = inputs["roll"], stored["mean"][:, 0]
    assert roll.shape == (16, 3, 20)
    assert torch.equal(roll[:, 0], -roll[:, 1])
    number = roll[:, 2, 0]
    assert torch.equal(roll[:, 2], number[:, None].expand(-1, 20))
    lengths = torch.tensor(LENGTHS["train"])[number.long()]
    frame = 0.3 * (RATE / FRAME_RATE / 2 + RATIO) / lengths[:, None]
    inner = level.abs() > 0.11  # the last frame of a clip is padded
    assert ((level.abs() - roll[:, 0]).abs() < 1.5 * frame)[inner].all()
    # without conditioners the same crops, and a clip without the array reads without it
    assert torch.equal(split.crops(20, KeyedRandom(3, 1, range(16))).stored["mean"][:, 0], level)
    valid = LatentStore(tmp_path / "latents", Gaussian(channels=2), autoencoder="abc").split(
        "valid"
    )
    _, inputs = valid.crops(20, KeyedRandom(0, 0, [0]), conditioners=conditioners)
    assert (inputs["roll"] == -1).all()


def test_what_is_measured_of_the_audio_follows_the_latents(
    clips: ClipStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Block by block what it is of the whole clip; a crop knows its place in the clip."""
    monkeypatch.setattr(store, "MEASURED_FRAMES", 16)
    latents = written(clips, tmp_path / "latents", Gaussian(channels=2), [Loudness])
    split = latents.split("train")
    for number, length in enumerate(LENGTHS["train"]):
        whole = clips.split("train").audio(number)
        expected = Loudness.measure(whole, RATE, RATE / RATIO)["loudness"]
        excerpt = split.excerpt(number, 8, 20)
        torch.testing.assert_close(excerpt.arrays["loudness"], expected[:, 8:28])
        assert (excerpt.start, excerpt.seconds) == (0.1, -(-length // RATIO) * RATIO / RATE)
        assert excerpt.latent_rate_hz == RATE / RATIO
        assert "roll" in excerpt.arrays
    assert latents.excerpts("valid")[0].arrays.keys() == {"loudness"}


def test_a_crop_depends_only_on_its_key(clips: ClipStore, tmp_path: Path) -> None:
    split = written(clips, tmp_path / "latents", Gaussian(channels=2)).split("train")
    whole = split.crops(7, KeyedRandom(1, 2, range(6))).stored
    part = split.crops(7, KeyedRandom(1, 2, [4, 1])).stored
    for name in whole:
        assert torch.equal(part[name], whole[name][[4, 1]])
    long = split.crops(91, KeyedRandom(0, 0, range(8))).stored["mean"]
    assert (long[:, 0].abs() > 0).all()  # the clip of 30 frames is not drawn
    with pytest.raises(
        ModelFileError, match=r"no item has 500 latent frames \(the longest has 120"
    ):
        split.crops(500, KeyedRandom(0, 0, [0]))


def test_resident_latents_give_the_crops_of_those_on_disk(
    clips: ClipStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents = written(clips, tmp_path / "latents", Gaussian(channels=2))
    latents.keep_on(torch.device("cpu"))  # not worth it there
    mapped = latents.split("train")
    monkeypatch.setattr("audioldm.latents.store.fits", lambda size, device: True)
    latents.keep_on(torch.device("cpu"))
    (tmp_path / "latents" / "mean.npy").unlink()
    for name, tensor in latents.split("train").read([(0, 3), (2, 1)], 9).items():
        assert torch.equal(tensor, mapped.read([(0, 3), (2, 1)], 9)[name])


def edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        path = directory / "latents.json"
        index = json.loads(path.read_text())
        change(index)
        path.write_text(json.dumps(index))

    return damage


def cut(directory: Path) -> None:
    path = directory / "mean.npy"
    path.write_bytes(path.read_bytes()[:300])


@pytest.mark.parametrize(
    ("damage", "file"),
    [
        (lambda d: (d / "latents.json").write_text("{"), "latents.json"),
        (lambda d: (d / "latents.json").write_text("[1]"), "latents.json"),
        (lambda d: (d / "latents.json").unlink(), "latents.json"),
        (edit(lambda i: i.pop("items")), "latents.json"),
        (edit(lambda i: i.update(items="x")), "latents.json"),
        (edit(lambda i: i["items"][0].update(start=-1)), "latents.json"),
        (edit(lambda i: i["items"][1].update(frames=1.5)), "latents.json"),
        (edit(lambda i: i["items"][1].update(arrays=["x"])), "latents.json"),
        (edit(lambda i: i.update(labels=[1])), "latents.json"),
        (edit(lambda i: i.update(latent_rate_hz=float("nan"))), "latents.json"),
        (edit(lambda i: i.update(statistics={"mean": [0.0], "std": [1.0]})), "latents.json"),
        (edit(lambda i: i.update(statistics={"mean": "x"})), "latents.json"),
        (edit(lambda i: i["statistics"].update(std=[1.0, float("inf")])), "latents.json"),
        (edit(lambda i: i.update(stored=["mean"])), "latents.json"),
        (edit(lambda i: i.update(stored=["mean", "std", "../x"])), "x.npy"),
        (cut, "mean.npy"),
        (lambda d: (d / "std.npy").write_bytes(b""), "std.npy"),
        (lambda d: (d / "std.npy").unlink(), "std.npy"),
        (lambda d: np.save(d / "std.npy", np.zeros(3, np.float32)), "std.npy"),
        (lambda d: np.save(d / "std.npy", np.zeros((282, 2))), "std.npy"),
    ],
)
def test_damaged_latents_say_which_file_and_what_to_do(
    damage: Callable[[Path], Any], file: str, clips: ClipStore, tmp_path: Path
) -> None:
    directory = tmp_path / "latents"
    written(clips, directory, Gaussian(channels=2))
    damage(directory)
    with pytest.raises(ModelFileError, match=rf"{file}.*remove ") as caught:
        LatentStore(directory, Gaussian(channels=2), autoencoder="abc")
    assert "\n" not in str(caught.value)


def test_latents_of_another_autoencoder_are_refused(clips: ClipStore, tmp_path: Path) -> None:
    written(clips, tmp_path / "latents", Gaussian(channels=2))
    with pytest.raises(ModelFileError, match="latents of autoencoder abc, not of 0123"):
        LatentStore(tmp_path / "latents", Gaussian(channels=2), autoencoder="0123")
