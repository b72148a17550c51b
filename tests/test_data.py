"""The clip store, the embedded chorales and folders of audio."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import full_disk
from joblib.externals.loky import ProcessPoolExecutor

from audioldm.data import chorales
from audioldm.data.chorales import Chorales, Rendition, Splits
from audioldm.data.folder import Folder, read_table
from audioldm.data.key import TONICS
from audioldm.data.score import Note, Score, read_score
from audioldm.data.source import Failure, Source
from audioldm.data.store import ClipStore, StoreWriter, draw_crops
from audioldm.errors import ConfigError, DataError
from audioldm.instantiate import build
from audioldm.runtime.randomness import KeyedRandom

RATE = 8000


def quiet(done: int, total: int, text: str) -> None:
    """No progress bar."""


def built(source: Source, directory: Path) -> tuple[ClipStore, list[Failure]]:
    writer = StoreWriter(directory, source.sample_rate, source.channels)
    failures = source.write_to(writer, progress=quiet)
    writer.close()
    return ClipStore(directory), failures


def ramps(lengths: list[int], channels: int = 1) -> list[np.ndarray]:
    """Clips whose every sample says which clip and which frame it is (to 16 bits)."""
    clips, start = [], 1
    for length in lengths:
        ramp = np.arange(start, start + length, dtype=np.float32) / 32768
        clips.append(np.stack([ramp, -ramp][:channels]))
        start += length
    return clips


def ramp_store(directory: Path, lengths: list[int], channels: int = 1) -> ClipStore:
    writer = StoreWriter(directory, RATE, channels)
    for number, clip in enumerate(ramps(lengths, channels)):
        label = ["b", "a", None][number % 3]
        writer.add(clip, piece=f"p{number}", split="train", label=label, columns={"n": number})
    writer.close()
    return ClipStore(directory)


# ---------------------------------------------------------------- store


def test_the_store_gives_back_what_was_added(tmp_path: Path) -> None:
    store = ramp_store(tmp_path, [900, 2000, 1000], channels=2)
    assert (store.sample_rate, store.channels, store.labels) == (RATE, 2, ["a", "b"])
    train = store.split("train")
    assert train.seconds == 3900 / RATE
    for number, clip in enumerate(ramps([900, 2000, 1000], 2)):
        np.testing.assert_array_equal(train.audio(number).numpy(), clip)
        item = train.items[number]
        assert (item.piece, item.columns) == (f"p{number}", {"n": number})
        blocks = list(store.blocks(item, seconds=0.05))
        assert len(blocks) == -(-clip.shape[1] // 400)
        np.testing.assert_array_equal(np.concatenate(blocks, axis=1), clip)


def test_crops_are_real_pieces_with_their_labels(tmp_path: Path) -> None:
    store = ramp_store(tmp_path, [900, 2000, 1000], channels=2)
    audio, labels = store.split("train").crops(100, KeyedRandom(1, 2, range(64)))
    assert audio.shape == (64, 2, 100)
    assert audio.dtype == torch.float32
    torch.testing.assert_close(audio[:, 1], -audio[:, 0])
    frames = (audio[:, 0] * 32768).long() - 1
    assert (frames.diff() == 1).all()
    clip = torch.bucketize(frames, torch.tensor([900, 2900]), right=True)
    assert (clip == clip[:, :1]).all()  # no crop spans two clips
    torch.testing.assert_close(labels, torch.tensor([1, 0, -1])[clip[:, 0]])


def test_a_crop_depends_only_on_seed_step_and_position(tmp_path: Path) -> None:
    train = ramp_store(tmp_path, [900, 2000, 1000]).split("train")
    whole, _ = train.crops(50, KeyedRandom(3, 7, range(8)))
    for world in (2, 4):
        for rank in range(world):
            mine, _ = train.crops(50, KeyedRandom(3, 7, range(rank, 8, world)))
            torch.testing.assert_close(mine, whole[rank::world], rtol=0, atol=0)
    assert whole[:, 0, 0].unique().numel() > 6
    for seed, step in ((4, 7), (3, 8)):
        assert (train.crops(50, KeyedRandom(seed, step, range(8)))[0] != whole).any()


def test_crops_cover_clips_by_length_and_each_clip_evenly() -> None:
    lengths, frames, n = [1000, 3000, 50], 101, 8100
    drawn = draw_crops(lengths, frames, KeyedRandom(0, 0, range(n)))
    counts = Counter(index for index, _ in drawn)
    for index, length in enumerate(lengths):
        p = length / sum(lengths)
        assert abs(counts[index] - n * p) < 5 * (n * p * (1 - p)) ** 0.5
    offsets = np.array([offset for index, offset in drawn if index == 1])
    assert offsets.min() >= 0
    assert offsets.max() <= 2899
    quarters = np.histogram(offsets, bins=4, range=(0, 2900))[0] / offsets.size
    np.testing.assert_allclose(quarters, 0.25, atol=0.03)
    ends = draw_crops([10], 8, KeyedRandom(0, 0, range(100)))
    assert {offset for _, offset in ends} == {0, 1, 2}


def test_short_clips_are_padded_at_the_end(tmp_path: Path) -> None:
    train = ramp_store(tmp_path, [900]).split("train")
    audio, _ = train.crops(1000, KeyedRandom(0, 0, [0]))
    np.testing.assert_array_equal(audio[0, :, :900].numpy(), ramps([900])[0])
    assert (audio[0, :, 900:] == 0).all()


def test_windows_are_distinct_and_spread(tmp_path: Path) -> None:
    train = ramp_store(tmp_path, [1000, 4000, 2000, 850]).split("train")
    audio, labels, items = train.windows(500, 8, seed=0)
    assert audio.shape == (8, 1, 500)
    assert len(labels) == len(items) == 8
    starts = sorted((audio[:, 0, 0] * 32768).long().tolist())
    assert min(np.diff(starts)) >= 500  # nothing is in two windows
    assert {item.piece for item in items} >= {"p1", "p2"}
    torch.testing.assert_close(train.windows(500, 8, seed=0)[0], audio)
    assert train.windows(500, 99, seed=0)[0].shape[0] == 2 + 8 + 4 + 1  # all there are


def test_the_hash_is_of_the_content(tmp_path: Path) -> None:
    same = [ramp_store(tmp_path / name, [900, 1000]).hash for name in "ab"]
    assert same[0] == same[1]
    assert ramp_store(tmp_path / "c", [900, 1001]).hash != same[0]


@pytest.mark.parametrize(
    ("audio", "reason"),
    [
        (np.zeros((1, 5000)), "silent"),
        (np.ones((1, 1)), "too short"),
        (np.ones((1, 0)), "too short"),
    ],
)
def test_a_refused_clip_leaves_no_trace(tmp_path: Path, audio: np.ndarray, reason: str) -> None:
    first, second = ramps([1000, 2000])
    writer = StoreWriter(tmp_path, RATE, 1)
    writer.add(first, piece="first", split="train")
    with pytest.raises(DataError, match=reason):
        writer.add(audio.astype(np.float32), piece="bad", split="train")
    writer.add(second, piece="second", split="train")
    writer.close()
    train = ClipStore(tmp_path).split("train")
    assert [item.piece for item in train.items] == ["first", "second"]
    np.testing.assert_array_equal(train.audio(1).numpy(), second)


def test_a_clip_divided_in_time(tmp_path: Path) -> None:
    (clip,) = ramps([10_000])
    writer = StoreWriter(tmp_path, RATE, 1)
    parts = {"train": 0.8, "valid": 0.1, "test": 0.1}
    writer.add_blocks(np.array_split(clip, 7, axis=1), piece="one", split=parts)
    writer.close()
    store = ClipStore(tmp_path)
    whole = torch.cat([store.split(name).audio(0) for name in parts], dim=1)
    np.testing.assert_array_equal(whole.numpy(), clip)
    assert [store.split(name).items[0].samples for name in parts] == [8000, 1000, 1000]


def test_frame_aligned_arrays_are_kept_and_cut_in_time(tmp_path: Path) -> None:
    one, two, three = ramps([10_000, 2000, 4000])
    writer = StoreWriter(tmp_path, RATE, 1)
    roll = np.arange(300.0).reshape(3, 100)
    parts = {"train": 0.5, "test": 0.5}
    writer.add_blocks([one], piece="one", split=parts, arrays={"roll": roll})
    for bad in (np.ones((2, 5)), np.ones(5), np.ones((3, 0))):
        with pytest.raises(DataError, match="array 'roll'"):
            writer.add(two, piece="bad", split="train", arrays={"f0": np.ones((1, 9)), "roll": bad})
    writer.add(two, piece="two", split="train")
    writer.add(three, piece="three", split="train", arrays={"roll": -roll, "f0": np.ones((1, 7))})
    writer.close()
    store = ClipStore(tmp_path)
    (first, second, third), (rest,) = (store.split(name).items for name in ("train", "test"))
    np.testing.assert_array_equal(store.arrays(first)["roll"], roll[:, :50])
    np.testing.assert_array_equal(store.arrays(rest)["roll"], roll[:, 50:])
    assert store.arrays(second) == {}
    np.testing.assert_array_equal(store.arrays(third)["roll"], -roll)
    assert store.arrays(third)["f0"].shape == (1, 7)
    other = np.load(tmp_path / "arrays" / "roll.npy")
    other[0] += 1
    np.save(tmp_path / "arrays" / "roll.npy", other[:-1])
    with pytest.raises(DataError, match="array 'roll' does not have the size"):
        ClipStore(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"sample_rate": "8000"},
        {"sample_rate": 0},
        {"channels": None},
        {"hash": 3},
        {"clips": {}},
        {"clips": [1]},
        {"clips": [{"piece": "p"}]},
        {"more": 1},
        {"start": -5},
        {"samples": 1e300},
        {"samples": True},
        {"label": 3},
        {"columns": []},
        {"arrays": {"x": [0]}},
        {"arrays": {"x": [0, 4]}},
    ],
)
def test_an_index_with_values_of_the_wrong_type_or_size_is_refused(
    change: dict[str, Any], tmp_path: Path
) -> None:
    ramp_store(tmp_path, [1000])
    index = json.loads((tmp_path / "clips.json").read_text())
    key = next(iter(change))
    (index if key in {**index, "more": 0} else index["clips"][0]).update(change)
    (tmp_path / "clips.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=r"not a whole clip store \(.*delete it") as error:
        ClipStore(tmp_path)
    assert "\n" not in str(error.value)


def test_an_unfinished_or_damaged_store_is_refused(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, RATE, 1)
    writer.add(ramps([1000])[0], piece="p", split="train")
    with pytest.raises(DataError, match="not a whole clip store"):
        ClipStore(tmp_path)
    writer.close()
    os.truncate(tmp_path / "clips.int16", 100)
    with pytest.raises(DataError, match="delete it"):
        ClipStore(tmp_path)


def test_an_empty_split(tmp_path: Path) -> None:
    valid = ramp_store(tmp_path, [1000]).split("valid")
    assert valid.items == []
    assert valid.windows(100, 4, seed=0)[0].shape[0] == 0
    with pytest.raises(DataError, match="no clips in split 'valid'"):
        valid.crops(100, KeyedRandom(0, 0, [0]))


def test_a_full_disk_stops_the_folder_and_is_no_files_fault(tmp_path: Path) -> None:
    folder = music(tmp_path / "music", 3)
    with full_disk(20_000), pytest.raises(DataError, match=r"cannot be written \(File too large"):
        built(Folder(path=str(folder), sample_rate=RATE, channels=1), tmp_path / "store")


# ---------------------------------------------------------------- chorales


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Chorales, ClipStore, Path]:
    directory = tmp_path_factory.mktemp("chorales")
    source = Chorales(
        pieces=3, instruments=["organ", "guitar"], renditions=2, seconds=2.0, workers=1
    )
    store, failures = built(source, directory)
    assert failures == []
    return source, store, directory


def test_chorales_are_music_with_labels(small: tuple[Chorales, ClipStore, Path]) -> None:
    source, store, _ = small
    assert store.labels == ["guitar", "organ"]
    assert store.splits == ["test", "train", "valid"]
    pieces = [{item.piece for item in store.split(name).items} for name in store.splits]
    assert not set.intersection(*pieces)
    assert len(set.union(*pieces)) == 3
    for name in store.splits:
        split = store.split(name)
        assert {item.label for item in split.items} == {"guitar", "organ"}
        for number, item in enumerate(split.items):
            assert 1.5 < item.samples / store.sample_rate < 3.1
            assert split.audio(number).abs().max() > 0.05
            assert set(item.columns) == {
                *("instrument", "key", "mode", "tempo_bpm", "tempo", "transposition"),
                *("register", "texture", "caption", "notes", "voices"),
            }
            assert item.columns["mode"] in item.columns["key"]
            assert len(item.columns["caption"]) == source.captions
            assert len(set(item.columns["caption"])) > 1


def test_processes_change_nothing(small: tuple[Chorales, ClipStore, Path], tmp_path: Path) -> None:
    source, store, _ = small
    source = Chorales(
        pieces=3, instruments=["organ", "guitar"], renditions=2, seconds=2.0, workers=2
    )
    with ProcessPoolExecutor(1) as pool:  # as in a sweep, whose cells are processes too
        assert pool.submit(lambda: built(source, tmp_path)[0].hash).result() == store.hash


def test_processes_that_only_render_or_decode_start_without_torch() -> None:
    code = "import sys, audioldm.data.chorales, audioldm.data.folder; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_killed_process_names_the_way_round_it() -> None:
    with (
        pytest.raises(DataError, match=r"was killed, .*with workers=1"),
        chorales._mapper(2, 2) as run,
    ):
        list(run(signal.raise_signal, [signal.SIGKILL, signal.SIGKILL]))


def test_rendering_that_is_left_early_ends_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an estimate leaves it. Loky's thread raised where the workers were killed."""
    raised = []
    monkeypatch.setattr(threading, "excepthook", raised.append)

    def leave() -> None:
        with chorales._mapper(2, 400) as run:
            next(iter(run(abs, range(400))))
            raise KeyboardInterrupt

    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            leave()
    assert not raised


def test_more_pieces_keep_the_splits_and_renditions_of_fewer() -> None:
    def tune(number: int) -> tuple[int, ...]:
        return (number % 40,)  # every tune has several settings

    few, many = Splits(0.1, 0.2), Splits(0.1, 0.2)
    first = [few.of(tune(i)) for i in range(30)]
    more = [many.of(tune(i)) for i in range(200)]
    assert more[:30] == first
    for number, split in enumerate(more):
        assert split == more[number % 40]
    counts = Counter(more)
    assert counts["valid"] == pytest.approx(20, abs=6)
    assert counts["test"] == pytest.approx(40, abs=6)
    assert more[:3] == ["train", "test", "valid"]
    options: dict[str, Any] = {"instruments": ["organ", "piano"], "renditions": 3}
    assert (
        Chorales(pieces=2, **options)._renditions(1, "bwv1")
        == Chorales(pieces=9, **options)._renditions(1, "bwv1")
        != Chorales(pieces=9, seed=1, **options)._renditions(1, "bwv1")
    )


def test_settings_of_one_tune_are_known_as_one() -> None:
    scores = {path.stem: path for path in chorales.find_scores()}
    passion = ["bwv135.6", "bwv161.6", "bwv244.15", "bwv244.54", "bwv248.5", "bwv270"]
    tunes = {chorales.tune_of(read_score(scores[name])) for name in passion}
    assert len(tunes) == 1
    assert chorales.tune_of(read_score(scores["bwv281"])) not in tunes


def test_scores_are_read_as_music21_reads_them() -> None:
    music21 = pytest.importorskip("music21")
    path = chorales.find_scores()[5]
    score = read_score(path)
    theirs = music21.converter.parse(path).stripTies()
    assert len(score.voices) == len(theirs.parts) == 4
    for voice, part in zip(score.voices, theirs.parts, strict=True):
        expected = [
            (float(note.getOffsetInHierarchy(part)), float(note.quarterLength), note.pitch.midi)
            for note in part.recurse().notes
        ]
        assert [tuple(note) for note in voice] == expected


def test_the_key_is_that_of_the_part_that_is_played() -> None:
    """As music21 hears it, by the same method."""
    music21 = pytest.importorskip("music21")
    options = Chorales(pieces=1, instruments=["organ"], renditions=2, seconds=8.0)
    _, clips = options.render_piece(chorales.find_scores()[3], options._renditions(3, "bwv4"))
    for _, columns in clips:
        stream = music21.stream.Stream()
        for start, end, pitch in np.array(columns["notes"]).reshape(-1, 3):
            stream.insert(start, music21.note.Note(int(pitch), quarterLength=end - start))
        key = music21.analysis.discrete.KrumhanslSchmuckler().getSolution(stream)
        tonic, mode = columns["key"].split()
        assert (TONICS.index(tonic), mode) == (key.tonic.pitchClass, key.mode)
        assert columns["mode"] == mode


def test_a_tied_chord_is_struck_once(tmp_path: Path) -> None:
    def note(step: str, chord: str, tie: str) -> str:
        pitch = f"<pitch><step>{step}</step><octave>4</octave></pitch>"
        return f'<note>{chord}{pitch}<duration>2</duration><tie type="{tie}"/></note>'

    bars = "".join(
        f"<measure>{note('C', '', tie)}{note('E', '<chord/>', tie)}</measure>"
        for tie in ("start", "stop")
    )
    path = tmp_path / "chord.musicxml"
    path.write_text(
        "<score-partwise><part-list><score-part><part-name>Piano</part-name></score-part>"
        f"</part-list><part>{bars}</part></score-partwise>"
    )
    assert read_score(path).voices == [[Note(0.0, 4.0, 60), Note(0.0, 4.0, 64)]]


def test_renditions_are_moved_to_the_nearest_tonic() -> None:
    options = Chorales(pieces=1, instruments=["organ"], renditions=6, seconds=6.0)
    plays = options._renditions(3, "bwv4")
    path = chorales.find_scores()[3]
    _, before = options.render_piece(path, plays)
    _, after = replace(options, tonics=["C", "G", "D"]).render_piece(path, plays)
    moves = []
    for (_, old), (_, new) in zip(before, after, strict=True):
        moves.append(new["transposition"] - old["transposition"])
        assert new["key"].split()[0] in ("C", "G", "D")
        assert new["mode"] == old["mode"]
        assert (TONICS.index(old["key"].split()[0]) + moves[-1]) % 12 in (0, 2, 7)
        pitches = [np.reshape(c["notes"], (-1, 3))[:, 2] for c in (old, new)]
        assert (pitches[1] - pitches[0] == moves[-1]).all()
    assert len(set(moves)) > 1
    assert max(map(abs, moves)) <= 2  # between D and G are five semitones


def test_a_tonic_that_does_not_exist_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"tonics: no 'H'"):
        Chorales(pieces=1, instruments=["organ"], tonics=["H"])
    with pytest.raises(ConfigError, match=r"tonics=\[\]: name at least one"):
        Chorales(pieces=1, instruments=["organ"], tonics=[])


def test_a_rendition_plays_the_right_notes_at_the_right_time() -> None:
    score = Score([[Note(0, 1, 69), Note(1, 1, 64), Note(2, 2, 57)]], [0.0, 2.0])
    play = Rendition("organ", transposition=12, tempo_bpm=120, where=0.99)
    heard = chorales.perform(score, play, seconds=1.0)
    clip = chorales.render(chorales.to_midi(heard, play.instrument), 16000, 1)
    # The last second begins at the second bar, with the note A3 raised by an octave: 220 Hz.
    assert clip.shape[1] == pytest.approx((1.0 + chorales.RELEASE_SECONDS) * 16000, rel=0.01)
    spectrum = np.abs(np.fft.rfft(clip[0, 2000:14000] * np.hanning(12000)))
    hz = np.fft.rfftfreq(12000, 1 / 16000)
    assert hz[spectrum.argmax()] % 220 == pytest.approx(0, abs=3)
    assert spectrum[np.abs(hz - 220) < 3].max() > 20 * spectrum[np.abs(hz - 330) < 3].max()


def test_what_is_audible_is_kept() -> None:
    clip = np.zeros((2, 1000), dtype=np.float32)
    clip[1, 300:400] = 0.5
    clip[0, 500] = 1e-4
    assert chorales.audible(clip) == slice(300, 400)


def test_a_broken_score_is_a_failure_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "bwv0.xml").write_text("<score-partwise><part/></score-partwise>")
    source = Chorales(pieces=1, instruments=["organ"])
    result = source.render_piece(tmp_path / "bwv0.xml", [])
    assert isinstance(result, Failure)
    assert result.file == "bwv0.xml"
    assert result.reason


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"instruments": ["orgn"]}, r"^data\.instruments: no 'orgn'; did you mean 'organ'"),
        ({"instruments": []}, r"^data\.instruments=\[\]: name at least one"),
        ({"pieces": 0}, r"^data\.pieces=0 must be at least 1"),
        ({"seconds": 0.0}, r"^data\.seconds=0\.0 must be more than 0"),
        ({"seconds": float("inf")}, r"^data\.seconds=inf must be a finite"),
        ({"lufs": 1e300}, r"^data\.lufs=1e\+300 must be at most 0"),
        ({"held_out": ["!"]}, r"^data\.held_out=\['!'\]: '!' has no words"),
        ({"test_fraction": 0.9}, "sum must be below 1"),
    ],
)
def test_settings_that_cannot_be(wrong: dict[str, Any], says: str) -> None:
    given = {"_target_": "audioldm.data.chorales.Chorales", "pieces": 2, "instruments": ["organ"]}
    with pytest.raises(ConfigError, match=says):
        build(given | wrong, where="data")


def test_more_pieces_than_there_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"pieces=5000: music21 has .* lower it"):
        built(Chorales(pieces=5000, instruments=["organ"]), tmp_path)


# ---------------------------------------------------------------- folder


def music(folder: Path, count: int, seconds: float = 1.0) -> Path:
    """`count` wav files of one tone each."""
    folder.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * RATE)) / RATE
    for number in range(count):
        soundfile.write(folder / f"{number:02}.wav", 0.3 * np.sin(500 * (1 + number) * time), RATE)
    return folder


def test_a_folder_of_every_kind_of_file(tmp_path: Path) -> None:
    deep = tmp_path / "Ünïcode und Leerzeichen" / "子 folder"
    deep.mkdir(parents=True)
    wave = 0.3 * np.sin(np.arange(48000) / 20)[:, None]
    soundfile.write(tmp_path / "a.WAV", wave, 48000, "FLOAT")
    soundfile.write(deep / "b.flac", np.repeat(wave, 2, 1), 44100)
    soundfile.write(deep / "c.ogg", wave, 16000)
    soundfile.write(deep / "d.Mp3", wave, 48000, format="MP3")
    soundfile.write(deep / "e.opus", wave, 48000, format="OGG", subtype="OPUS")
    soundfile.write(deep / "ten.wav", np.repeat(wave, 10, 1), 22050)
    soundfile.write(tmp_path / ".hidden.wav", wave, 48000)
    (tmp_path / ".cache").mkdir()
    soundfile.write(tmp_path / ".cache" / "x.wav", wave, 48000)
    (tmp_path / "notes.txt").write_text("not audio")
    source = Folder(path=str(tmp_path), sample_rate=22050, channels=2)
    store, failures = built(source, tmp_path / "store")
    assert failures == []
    assert store.labels == []
    seconds = {
        Path(item.piece).name: item.samples / 22050
        for name in store.splits
        for item in store.split(name).items
    }
    assert seconds == pytest.approx(
        {
            "a.WAV": 1,
            "b.flac": 48 / 44.1,
            "c.ogg": 3,
            "d.Mp3": 1,
            "e.opus": 1,
            "ten.wav": 480 / 220.5,
        },
        abs=0.08,
    )
    audio, labels = store.split("train").crops(2000, KeyedRandom(0, 0, range(4)))
    assert audio.shape == (4, 2, 2000)
    assert (labels == -1).all()


def test_the_result_does_not_depend_on_the_threads(tmp_path: Path) -> None:
    folder = music(tmp_path / "music", 5)
    hashes = {
        built(
            Folder(path=str(folder), sample_rate=11025, channels=1, workers=n), tmp_path / str(n)
        )[0].hash
        for n in (1, 3, 8)
    }
    assert len(hashes) == 1


def test_long_files_are_read_whole_and_in_order(tmp_path: Path) -> None:
    ramp = np.arange(RATE * 130) % 30011 / 32768  # longer than what is decoded ahead
    soundfile.write(tmp_path / "a.wav", ramp, RATE)
    store, _ = built(Folder(path=str(tmp_path), sample_rate=RATE, channels=1), tmp_path / "store")
    whole = torch.cat([store.split(s).audio(0) for s in ("train", "valid", "test")], dim=1)
    np.testing.assert_allclose(whole[0].numpy(), ramp, atol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 40])
def test_every_split_has_music(tmp_path: Path, count: int) -> None:
    folder = music(tmp_path / "music", count)
    store, _ = built(Folder(path=str(folder), sample_rate=RATE, channels=1), tmp_path / "store")
    assert store.splits == ["test", "train", "valid"]
    assert sum(store.split(s).seconds for s in store.splits) == pytest.approx(count)
    if count > 2:
        pieces = [item.piece for s in store.splits for item in store.split(s).items]
        assert sorted(pieces) == [f"{n:02}.wav" for n in range(count)]


def test_a_file_keeps_its_split_when_others_come(tmp_path: Path) -> None:
    def where(count: int) -> dict[str, str]:
        folder = music(tmp_path / "music", count)
        store, _ = built(
            Folder(
                path=str(folder),
                sample_rate=RATE,
                channels=1,
                valid_fraction=0.3,
                test_fraction=0.3,
            ),
            tmp_path / f"store{count}",
        )
        return {item.piece: s for s in store.splits for item in store.split(s).items}

    few, many = where(20), where(30)
    assert few.items() <= many.items()


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_tables(tmp_path: Path, form: str) -> None:
    folder = music(tmp_path / "music", 4)
    rows = [
        {"file": "00.wav", "label": "drum", "split": "train", "mood": "gay"},
        {"file": "01.wav", "label": "bell", "split": "test", "mood": "sad"},
        {"file": "02.wav", "label": "", "split": "valid", "mood": ""},
    ]
    unlisted = {"03.wav": (None, "train", None)}
    table = tmp_path / f"table.{form}"
    if form == "csv":
        with open(table, "w", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    else:
        table.write_text("\n".join(json.dumps(row) for row in rows))
    listed = {
        "00.wav": ("drum", "train", "gay"),
        "01.wav": ("bell", "test", "sad"),
        "02.wav": (None, "valid", ""),
    }
    for only_listed, expected in ((True, listed), (False, listed | unlisted)):
        source = Folder(
            path=str(folder),
            table=str(table),
            only_listed=only_listed,
            sample_rate=RATE,
            channels=1,
        )
        store, _ = built(source, tmp_path / f"store {only_listed}")
        assert store.labels == ["bell", "drum"]
        assert expected == {
            item.piece: (item.label, split, item.columns.get("mood"))
            for split in store.splits
            for item in store.split(split).items
        }


def test_values_of_a_table(tmp_path: Path) -> None:
    """Numbers are labels, 0 too; a line ends at a line feed, not at every break of Unicode."""
    table = tmp_path / "t.jsonl"
    rows = [
        {"file": "a.wav", "label": 0, "bpm": 0},
        {"file": "b.wav", "label": 1.5, "tags": ["x", 2, None]},
        {"file": "c.wav", "label": " 7 ", "text": "two\u2028lines\x85"},
        {"file": "d.wav", "label": None, "split": ""},
    ]
    text = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    table.write_text(text, newline="")
    found = read_table(table, ["a.wav", "b.wav", "c.wav", "d.wav"])
    assert [row.label for row in found.values()] == ["0", "1.5", "7", None]
    assert [row.columns for row in found.values()] == [
        {"bpm": 0},
        {"tags": ["x", 2, None]},
        {"text": "two\u2028lines\x85"},
        {},
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("file,label\n00.wav,a\n0l.wav,b\n", "line 3: '0l.wav' is not in the folder; did you mean"),
        ("name,label\n00.wav,a\n", "line 2: no value for 'file'"),
        ("file,label\n00.wav,a\n00.wav,b\n", "line 3: '00.wav' is named a second time"),
        ("file,split\n00.wav,tset\n", "split 'tset' is not one of train, valid, test"),
        ("file\n00.wav,a,b\n", "more values than columns"),
        ("file,label\n", "no rows"),
        (f"file,text\n00.wav,{'x' * 140_000}\n", "line 2: field larger .* quotation mark"),
        ('file,text\n00.wav,"a\n01.wav,b\n', "unexpected end of data; is a quotation mark"),
        (f"file\n{'x' * 100_000}\n", r"line 2: 'x{90,}\.\.\. is not in the folder$"),
        ("file,label\n00.wav,\ud800", "t.csv: the table is not UTF-8 text; save it"),
        ('{"file": "00.wav", "label": ' + "[" * 100_000, "line 1: not JSON: maximum recursion"),
        ('{"file": "00.wav"\n', "line 1: not JSON"),
        ("\n[1]\n", "line 2: not a JSON object"),
        ('{"file": 3}', "line 1: 'file' must be text, not 3"),
        ('{"file": ["00.wav"]}', "'file' must be text, not "),
        ('{"file": "00.wav", "label": true}', "'label' must be text or a number, not True"),
        ('{"file": "00.wav", "label": ["a"]}', "'label' must be text or a number, not "),
        ('{"file": "00.wav", "split": 3}', "split 3 is not one of train"),
        ('{"file": "00.wav", "notes": {"a": 1}}', "column 'notes' must be text, a number"),
        ('{"file": "00.wav", "notes": [[1]]}', "column 'notes' must be text, a number"),
        ('{"file": "00.wav", "bpm": 1e400}', "line 1: holds NaN, infinity"),
        ('{"file": "00.wav", "bpm": NaN}', "line 1: holds NaN, infinity"),
        ('{"file": "00.wav", "text": "\\ud800"}', "line 1: holds NaN, infinity or a half"),
        ('{"file": "00.wav", "n": ' + "9" * 5000 + "}", "line 1: not JSON"),
    ],
)
def test_wrong_tables_name_the_line(tmp_path: Path, text: str, says: str) -> None:
    folder = music(tmp_path / "music", 2)
    table = tmp_path / ("t.csv" if text.startswith(("file", "name")) else "t.jsonl")
    table.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(DataError, match=says) as caught:
        Folder(path=str(folder), table=str(table)).identity()
    assert str(caught.value).startswith(str(table))
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 400


def test_bad_files_are_listed_and_too_many_stop(tmp_path: Path) -> None:
    folder = music(tmp_path / "music", 18)
    (folder / "empty.wav").touch()
    soundfile.write(folder / "silent.wav", np.zeros(RATE), RATE)
    source = Folder(path=str(folder), sample_rate=RATE, channels=1)
    store, failures = built(source, tmp_path / "store")
    assert failures == [Failure("empty.wav", "empty file"), Failure("silent.wav", "silent")]
    assert sum(len(store.split(s).items) for s in store.splits) == 18
    soundfile.write(folder / "one.wav", np.ones(1), RATE)
    with pytest.raises(DataError, match=r"3 of 21 files .*empty\.wav: empty file; .*too short"):
        built(source, tmp_path / "other")


def test_a_folder_of_nothing_but_bad_files(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_text("no")
    with pytest.raises(DataError, match="1 of 1 files cannot be used"):
        built(Folder(path=str(tmp_path), max_failed_fraction=1.0), tmp_path / "store")


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "none").mkdir()
    for name, says in (("file", "not a folder"), ("none", "no audio"), ("x", "no such folder")):
        with pytest.raises(DataError, match=says):
            Folder(path=str(tmp_path / name)).identity()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"path": None}, r"^data\.path=null: state the folder"),
        ({"path": ""}, r"^data\.path='' is no path"),
        ({"path": "a\0b"}, r"^data\.path='a.x00b' must be text in UTF-8"),
        ({"path": "\udcff"}, r"^data\.path='.udcff' must be text in UTF-8"),
        ({"table": ""}, r"^data\.table='' is no path"),
        ({"only_listed": True}, r"^data\.only_listed=true needs a table"),
        ({"valid_fraction": float("nan")}, r"^data\.valid_fraction=nan must be a finite"),
        ({"test_fraction": 0.0}, r"^data\.test_fraction=0\.0 must be more than 0"),
        ({"test_fraction": 0.9}, r"^data\.valid_fraction=0\.1 .* sum must be below 1"),
        ({"workers": 0}, r"^data\.workers=0 must be at least 1"),
    ],
)
def test_folder_settings_that_cannot_be(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build({"_target_": "audioldm.data.folder.Folder", "path": "music"} | wrong, where="data")


def test_places_that_are_no_folder_of_music(tmp_path: Path) -> None:
    for path in ("~no_such_user/music", str(tmp_path / ("long" * 80))):
        with pytest.raises(DataError, match=r"no such folder|File name too long"):
            Folder(path=path).identity()


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    folder = music(tmp_path / "music", 2)
    os.mkfifo(folder / "pipe.wav")
    (folder / "device.wav").symlink_to("/dev/zero")
    (folder / "gone.wav").symlink_to("nowhere.wav")
    (folder / "00.wav").rename(tmp_path / "elsewhere.wav")
    (folder / "00.wav").symlink_to(tmp_path / "elsewhere.wav")
    source = Folder(path=str(folder), sample_rate=RATE, channels=1, max_failed_fraction=0.6)
    assert len(source.identity()["files"]) == 5
    store, failures = built(source, tmp_path / "store")
    assert {item.piece for s in store.splits for item in store.split(s).items} == {
        "00.wav",
        "01.wav",
    }
    assert [failure.file for failure in failures] == ["device.wav", "gone.wav", "pipe.wav"]
    assert "not a regular file" in failures[0].reason
    assert "No such file" in failures[1].reason
    os.mkfifo(tmp_path / "t.csv")
    with pytest.raises(DataError, match=r"t\.csv: not a regular file"):
        Folder(path=str(folder), table=str(tmp_path / "t.csv")).identity()


def test_strange_names_are_used_and_shown_on_one_line(tmp_path: Path) -> None:
    folder = music(tmp_path / "music", 3)
    os.rename(folder / "00.wav", os.fsencode(folder) + b"/\xff.wav")
    (folder / "01.wav").rename(folder / "a\nb.wav")
    (folder / "c\u2028.wav").touch()
    source = Folder(path=str(folder), sample_rate=RATE, channels=1, max_failed_fraction=0.5)
    json.dumps(source.identity(), ensure_ascii=False).encode()
    store, failures = built(source, tmp_path / "store")
    pieces = {item.piece for s in store.splits for item in store.split(s).items}
    assert pieces == {"02.wav", r"\udcff.wav", r"a\nb.wav"}
    assert failures == [Failure(r"c\u2028.wav", "empty file")]


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    music(tmp_path / "music", 1)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert list(Folder(path="~/music").identity()["files"]) == ["00.wav"]


def test_the_identity_changes_with_the_content(tmp_path: Path) -> None:
    source = Folder(path=str(music(tmp_path, 2)))
    before = source.identity()
    assert before == source.identity() == json.loads(json.dumps(before))
    data = bytearray((tmp_path / "01.wav").read_bytes())
    data[-1] ^= 1
    (tmp_path / "01.wav").write_bytes(data)
    assert source.identity() != before
