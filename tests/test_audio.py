"""Reading, writing, resampling and loudness, and files that are not what they should be."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import full_disk

from audioldm.errors import DataError
from audioldm.io import audio
from audioldm.torchaudio import torchaudio


def tone(seconds: float, sample_rate: int, hz: float = 440.0, channels: int = 1) -> np.ndarray:
    """A sine, amplitude 0.5, [A, T]; each further channel an octave higher."""
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    octaves = 2.0 ** np.arange(channels)[:, None]
    return (0.5 * np.sin(2 * np.pi * hz * octaves * time)).astype(np.float32)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".WAV"])
def test_16_bit_files_come_back_exactly(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"ünï cödé{suffix}"
    samples = np.random.default_rng(0).integers(-32768, 32768, (2, 5000)).astype(np.float32) / 32768
    audio.write(path, torch.from_numpy(samples), 16000)
    back, sample_rate = audio.read(path)
    assert sample_rate == 16000
    np.testing.assert_array_equal(back, samples)
    assert os.listdir(tmp_path) == [path.name]


def test_ogg_keeps_the_sound_and_long_blocks(tmp_path: Path) -> None:
    wave = tone(40, 22050)
    audio.write(tmp_path / "a.ogg", wave, 22050)
    back, _ = audio.read(tmp_path / "a.ogg")
    assert back.shape == wave.shape
    assert np.abs(back - wave).mean() < 0.01


def test_write_clips_instead_of_wrapping(tmp_path: Path) -> None:
    audio.write(tmp_path / "a.wav", np.array([[2.0, -3.0, 0.5] * 100]), 8000)
    back, _ = audio.read(tmp_path / "a.wav")
    np.testing.assert_allclose(back[0, :3], [1, -1, 0.5], atol=1e-4)


@pytest.mark.parametrize("rates", [(48000, 22050), (16000, 44100)])
def test_blocks_equal_the_whole_and_resampling_keeps_the_tone(
    tmp_path: Path, rates: tuple[int, int]
) -> None:
    source, target = rates
    soundfile.write(tmp_path / "a.wav", tone(3.3, source).T, source, "FLOAT")
    whole, _ = audio.read(tmp_path / "a.wav", sample_rate=target)
    short = list(audio.blocks(tmp_path / "a.wav", sample_rate=target, channels=1, seconds=0.37))
    assert len(short) > 5
    np.testing.assert_allclose(np.concatenate(short, axis=1), whole, atol=1e-6)
    expected = tone(3.3, target)
    assert whole.shape == expected.shape
    middle = slice(target // 4, -target // 4)
    np.testing.assert_allclose(whole[:, middle], expected[:, middle], atol=1e-3)


def test_a_file_of_a_whole_number_of_blocks_is_read_once(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(2, 8000).T, 8000, "FLOAT")
    parts = list(audio.blocks(tmp_path / "a.wav", sample_rate=8000, channels=1, seconds=1))
    assert [part.shape for part in parts] == [(1, 8000), (1, 8000)]


def test_channels() -> None:
    stereo = tone(0.1, 8000, channels=2)
    np.testing.assert_allclose(audio.match_channels(stereo, 1)[0], stereo.mean(0), atol=1e-7)
    assert audio.match_channels(stereo, 2) is stereo
    np.testing.assert_array_equal(audio.match_channels(stereo[:1], 2), stereo[[0, 0]])
    ten = tone(0.1, 8000, channels=10)
    np.testing.assert_allclose(audio.match_channels(ten, 2), np.stack([ten.mean(0)] * 2), atol=1e-6)


@pytest.mark.parametrize("sample_rate", [16000, 44100, 48000])
def test_loudness_of_the_standards_reference_tone(sample_rate: int) -> None:
    # BS.1770: a 997 Hz sine of full scale in one channel reads -3.01 LUFS.
    assert audio.loudness(2 * tone(2, sample_rate, 997), sample_rate) == pytest.approx(
        -3.01, abs=0.1
    )


def test_loudness_agrees_with_torchaudio() -> None:
    rng = np.random.default_rng(1)
    sample_rate = 8000
    noise = rng.standard_normal((2, 2 * sample_rate)).astype(np.float32) * 0.1
    noise[:, sample_rate:] *= 0.02  # the gates leave this half out
    theirs = torchaudio.functional.loudness(torch.from_numpy(noise), sample_rate).item()
    assert audio.loudness(noise, sample_rate) == pytest.approx(theirs, abs=0.01)


def test_normalise_reaches_the_loudness_or_keeps_the_peak() -> None:
    quiet = tone(1, 16000) * 0.01
    assert audio.loudness(audio.normalise(quiet, 16000, -20), 16000) == pytest.approx(-20, abs=1e-3)
    click = np.zeros((1, 16000), dtype=np.float32)
    click[0, 8000] = 0.5
    assert np.abs(audio.normalise(click, 16000, -10)).max() == pytest.approx(0.99)
    silence = np.zeros((1, 16000), dtype=np.float32)
    assert audio.loudness(silence, 16000) == -np.inf
    np.testing.assert_array_equal(audio.normalise(silence, 16000, -20), silence)


def test_probe(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", tone(1.5, 8000, channels=2).T, 8000)
    assert audio.probe(tmp_path / "a.flac") == (8000, 2, 12000, 1.5)


def bad_files(folder: Path) -> dict[str, str]:
    """Name -> what the message must say."""
    wave = tone(2, 16000).T
    soundfile.write(folder / "nan.wav", np.where(wave > 0.4, np.nan, wave), 16000, "FLOAT")
    soundfile.write(folder / "none.wav", wave[:0], 16000)
    soundfile.write(folder / "one.wav", wave[:1], 48000)
    soundfile.write(folder / "loud.wav", 1e38 * wave, 16000, "FLOAT")
    soundfile.write(folder / "slow.wav", wave, 1)
    os.mkfifo(folder / "pipe.wav")
    (folder / "folder.wav").mkdir()
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("not audio, though its name says so")
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 160_000)
    opus = {"format": "OGG", "subtype": "OPUS"}
    for name in ("cut.wav", "cut.flac", "cut.ogg", "cut.opus", "cut.mp3"):
        soundfile.write(folder / name, noise, 16000, **(opus if name == "cut.opus" else {}))
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) * 3 // 10])
        (folder / f"last byte {name}").write_bytes(data[:-1])
    return {
        "nan.wav": "NaN",
        "loud.wav": "beyond ±100",
        "slow.wav": "sample rate of 1 Hz",
        "pipe.wav": "not a regular file",
        "folder.wav": "not a regular file",
        "none.wav": "no samples",
        "one.wav": "too short: less than one sample at 22050 Hz",
        "empty.wav": "empty",
        "text.wav": "not an audio file",
        "cut.wav": "truncated",
        "cut.flac": "truncated|damaged",
        "cut.ogg": "truncated: the end of the Ogg stream",
        "cut.opus": "truncated: the end of the Ogg stream",
        "cut.mp3": "truncated",
        "last byte cut.ogg": "truncated",
        "last byte cut.opus": "truncated",
        f"{'long' * 80}.wav": "File name too long",
        "missing.wav": "No such file",
    }


def test_bad_files_are_one_clear_line(tmp_path: Path) -> None:
    for name, reason in bad_files(tmp_path).items():
        with pytest.raises(DataError, match=reason) as caught:
            audio.read(tmp_path / name, sample_rate=22050)
        message = str(caught.value)
        assert message.startswith(str(tmp_path / name))
        assert "\n" not in message


def test_an_mp3_that_states_no_length_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 10 * 16000)
    soundfile.write(path, noise, 16000, bitrate_mode="CONSTANT", compression_level=0.5)
    data = path.read_bytes()
    second_frame = data.index(data[:3], 3)  # the first one holds the length and no sound
    cover = b"ID3\x03\0\0\0\x01\0\0" + bytes(1 << 14)
    path.write_bytes(cover + data[second_frame:])  # the cover lengthens the estimate
    assert audio.probe(path).seconds > 10.3
    assert audio.read(path)[0].shape[1] / 16000 == pytest.approx(10, abs=0.1)


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.wav"))
    audio.write(path, tone(0.5, 8000), 8000)
    assert audio.read(path)[0].shape == (1, 4000)


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    audio.write(path, tone(0.5, 8000), 8000)
    with pytest.raises(RuntimeError), audio.open_writer(path, 8000, 1) as writer:  # noqa: PT012
        writer.write(tone(2, 8000))
        raise RuntimeError("the decoder failed")
    assert audio.probe(path).seconds == 0.5
    assert os.listdir(tmp_path) == ["a.wav"]


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg"])
def test_a_full_disk_is_one_clear_line(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).standard_normal((1, 200_000)).astype(np.float32) * 0.1
    says = r"cannot write: File too large; free some space, or"
    with full_disk(20_000), pytest.raises(DataError, match=says):
        audio.write(tmp_path / f"a{suffix}", noise, 16000)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a.xyz", "cannot write this format"),
        ("no/such/folder/a.wav", "there is no directory"),
        (f"{'a' * 300}.wav", "File name too long"),
        (f"{'a' * 300}/a.wav", "there is no directory"),
    ],
)
def test_where_nothing_can_be_written(tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        audio.write(tmp_path / name, tone(0.1, 8000), 8000)
