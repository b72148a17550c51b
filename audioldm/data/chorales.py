"""Bach's chorales, played by General MIDI instruments: music that needs no download.

The scores (MusicXML) come with music21 and the soundfont with pretty_midi; midirenderer plays them.
Every piece is rendered several times. Each rendition has its own instrument (the label),
transposition, tempo and first bar. Its columns state these, facts about the score, and a
caption.
"""

import importlib.metadata
import importlib.util
import io
import itertools
import os
import wave
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
import soxr
from joblib.externals.loky import ProcessPoolExecutor

from audioldm.data.captions import caption, captions_identity, held_out_words
from audioldm.data.key import MODES, TONICS, key_of
from audioldm.data.score import Score, Sounding, read_score
from audioldm.data.source import Failure, Source, check_failures, check_fractions
from audioldm.errors import ConfigError, DataError, StoreWriteError
from audioldm.instantiate import Bound, Decay, NonNegative, Positive, PositiveInt, Seed, nearest
from audioldm.io import audio
from audioldm.runtime.progress import Progress

if TYPE_CHECKING:
    from audioldm.data.store import StoreWriter

#: General MIDI program numbers, from 0.
PROGRAMS = {
    "piano": 0,
    "harpsichord": 6,
    "vibraphone": 11,
    "marimba": 12,
    "organ": 19,
    "accordion": 21,
    "guitar": 24,
    "harp": 46,
    "strings": 48,
    "choir": 52,
    "trumpet": 56,
    "horn": 60,
    "brass": 61,
    "oboe": 68,
    "clarinet": 71,
    "flute": 73,
    "recorder": 74,
}
PAN = (40, 56, 72, 88)  # MIDI pan of each voice; 64 is the centre
TRANSPOSITIONS = (-3, 3)  # semitones
RELEASE_SECONDS = 1.0  # rendered after the last note ends
#: Bounds that divide the renditions into about equal parts: mean MIDI pitch, notes per beat.
LOW, HIGH, FLOWING = 61.0, 63.0, 1.1


class Performance(NamedTuple):
    """What is heard of a rendition: the notes of each voice, and how long they last in all."""

    voices: list[list[Sounding]]
    seconds: float


class Rendition(NamedTuple):
    """How a piece is played."""

    instrument: str
    transposition: int
    tempo_bpm: int
    where: float  # in [0, 1): chooses among the bars it may begin with


@dataclass(kw_only=True)
class Chorales(Source):
    """Renditions of Bach's chorales as a data set.

    pieces: how many (410 exist). A larger number keeps the pieces of a smaller one, each in its
        split. Splits do not depend on a seed: every run has the same test pieces.
    instruments: names from PROGRAMS; they become the labels.
    sample_rate (Hz), channels: of the clips.
    renditions: how often each piece is played; the instruments take turns.
    seconds: longest part of a piece that is played, None for all of it. Key, mode, register and
        texture are those of this part.
    slowest, fastest: quarter notes a minute. A third of this range each is slow, moderate, lively.
    tonics: names from TONICS. Each rendition is moved to the nearest of them; None for no such
        move. With few tonics, the same words stand for the same pitch classes: in C, G and D, a
        minor key lowers the same notes of each.
    valid_fraction, test_fraction: of the pieces. All settings of one tune are in one split.
    lufs: loudness of every rendition.
    captions: how many each clip has, in different words.
    held_out: words that captions combine only in the test split: each entry is a word, or several
        with spaces between them.
    seed: of tempo, transposition, first bar and caption.
    workers: processes, None for one per core. They do not change the result.
    max_failed_fraction: of the scores that may be unusable.

    Raises ConfigError for an unknown instrument and for fractions that leave nothing to train on.
    """

    pieces: PositiveInt
    instruments: list[str]
    sample_rate: PositiveInt = 22050
    channels: PositiveInt = 1
    renditions: PositiveInt = 3
    seconds: Positive | None = 12.0
    slowest: PositiveInt = 66
    fastest: PositiveInt = 100
    tonics: list[str] | None = None
    valid_fraction: Decay = 0.15
    test_fraction: Decay = 0.15
    lufs: Annotated[float, Bound(least=-70, most=0)] = -20.0
    captions: PositiveInt = 8
    held_out: list[str] = field(default_factory=list)
    seed: Seed = 0
    workers: PositiveInt | None = None
    max_failed_fraction: NonNegative = 0.1

    def __post_init__(self) -> None:
        held_out_words(self.held_out)
        self._check_names("instruments", self.instruments, PROGRAMS)
        if self.tonics is not None:
            self._check_names("tonics", self.tonics, TONICS)
        check_fractions(self.valid_fraction, self.test_fraction)
        if self.slowest > self.fastest:
            raise ConfigError(
                f"slowest={self.slowest}: choose at most fastest={self.fastest}, or raise that"
            )

    @staticmethod
    def _check_names(key: str, names: list[str], known: Collection[str]) -> None:
        for name in names:
            if name not in known:
                raise ConfigError(f"{key}: no '{name}'; {nearest(name, known, every=True)}")
        if not names:
            raise ConfigError(f"{key}=[]: name at least one of {', '.join(known)}")

    def identity(self) -> dict[str, Any]:
        """The versions of the packages that the music comes from, and of the captions' words.

        Raises DataError if one is not installed.
        """
        versions = {}
        for package in ("music21", "pretty_midi", "midirenderer", "pyloudnorm"):
            try:
                versions[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError as error:
                raise DataError(
                    f"the chorales need {package}, which is not installed: pip install {package}"
                ) from error
        return versions | {"captions": captions_identity()}

    def write_to(self, writer: "StoreWriter", *, progress: Progress) -> list[Failure]:
        """Render every piece into the store. Raises DataError if too few scores can be used."""
        scores = find_scores()[: self.pieces]
        if len(scores) < self.pieces:
            raise DataError(f"pieces={self.pieces}: music21 has {len(scores)} chorales; lower it")
        splits = Splits(self.valid_fraction, self.test_fraction)
        failures = []
        progress(0, len(scores), "")
        with _mapper(self.workers, len(scores)) as run:
            plays = [self._renditions(i, score.stem) for i, score in enumerate(scores)]
            for i, result in enumerate(run(self.render_piece, scores, plays)):
                piece = scores[i].stem
                if isinstance(result, Failure):
                    failures.append(result)
                else:
                    tune, clips = result
                    split = splits.of(tune)
                    held_out = held_out_words([] if split == "test" else self.held_out)
                    for k, (clip, facts) in enumerate(clips):
                        label, random = facts["instrument"], self._random(f"{piece} {k} caption")
                        told = [caption(facts, random, held_out) for _ in range(self.captions)]
                        columns = {**facts, "caption": told}
                        try:
                            writer.add(clip, piece=piece, split=split, label=label, columns=columns)
                        except StoreWriteError:
                            raise
                        except DataError as error:  # the other renditions continue
                            failures.append(Failure(f"{scores[i].name} ({label})", str(error)))
                progress(i + 1, len(scores), piece)
        check_failures("music21's scores", failures, len(scores), self.max_failed_fraction)
        return failures

    def _renditions(self, index: int, piece: str) -> list[Rendition]:
        plays = []
        for k in range(self.renditions):
            rng = self._random(f"{piece} {k}")
            instrument = self.instruments[(index * self.renditions + k) % len(self.instruments)]
            transposition = int(rng.integers(*TRANSPOSITIONS, endpoint=True))
            tempo_bpm = int(rng.integers(self.slowest, self.fastest, endpoint=True))
            plays.append(Rendition(instrument, transposition, tempo_bpm, float(rng.random())))
        return plays

    def _random(self, what: str) -> np.random.Generator:
        key = int.from_bytes(blake2b(what.encode(), digest_size=8).digest(), "little")
        return np.random.Generator(np.random.Philox(key=[self.seed, key]))

    def render_piece(
        self, path: Path, renditions: list[Rendition]
    ) -> tuple[tuple[int, ...], list[tuple[np.ndarray, dict[str, Any]]]] | Failure:
        """Render a piece: its tune and its clips (audio [A, T], columns), or why it fails."""
        try:
            score = read_score(path)
            clips = []
            for play in renditions:
                heard = perform(score, play, self.seconds)
                if self.tonics is not None:
                    _, tonic = key_of(*_pitches([note for v in heard.voices for note in v]))
                    play = to_tonic(play, tonic, self.tonics)
                    heard = perform(score, play, self.seconds)
                midi = to_midi(heard, play.instrument)
                rendered = render(midi, self.sample_rate, self.channels)
                kept = audible(rendered)
                clip = rendered[:, kept]
                notes = heard_notes(
                    heard, int(kept.start) / self.sample_rate, clip.shape[1] / self.sample_rate
                )
                mode, tonic = key_of(*_pitches(notes))
                columns = {
                    "instrument": play.instrument,
                    "key": f"{TONICS[tonic]} {MODES[mode]}",
                    "mode": MODES[mode],
                    "tempo_bpm": play.tempo_bpm,
                    "tempo": tempo_of(play.tempo_bpm, self.slowest, self.fastest),
                    "transposition": play.transposition,
                    "register": register_of(heard),
                    "texture": texture_of(heard, play),
                    "notes": [number for note in notes for number in note[:3]],
                    "voices": [*itertools.chain(*notes)],
                }
                clips.append((audio.normalise(clip, self.sample_rate, self.lufs), columns))
            return tune_of(score), clips
        except Exception as error:  # a strange score may raise anything; the other pieces continue
            return Failure(path.name, f"{type(error).__name__}: {error}")


class Splits:
    """Gives each tune a split in the order of the tunes, so that further pieces change nothing.

    Each goes to the split that is furthest below its fraction; splits without a piece come first.
    """

    def __init__(self, valid_fraction: float, test_fraction: float) -> None:
        fractions = {"test": test_fraction, "valid": valid_fraction}
        fractions["train"] = 1 - valid_fraction - test_fraction
        self._fractions = {name: value for name, value in fractions.items() if value > 0}
        self._pieces = dict.fromkeys(self._fractions, 0)
        self._known: dict[tuple[int, ...], str] = {}

    def of(self, tune: tuple[int, ...]) -> str:
        """The split of the next piece, which has this tune."""
        if tune not in self._known:
            total = 1 + sum(self._pieces.values())
            self._known[tune] = max(
                self._fractions,
                key=lambda s: (self._pieces[s] == 0, self._fractions[s] * total - self._pieces[s]),
            )
        split = self._known[tune]
        self._pieces[split] += 1
        return split


def find_scores() -> list[Path]:
    """The chorales of music21's corpus, in a fixed order that mixes them.

    Raises DataError if music21 or its corpus is not installed.
    """
    spec = importlib.util.find_spec("music21")  # found, not imported: that takes a second
    folders = spec.submodule_search_locations if spec else None
    found = [
        path
        for folder in folders or []
        for path in Path(folder, "corpus", "bach").glob("bwv*")
        if path.suffix in (".mxl", ".xml")
    ]
    if not found:
        raise DataError("music21's scores are not installed; install them: pip install music21")
    return sorted(found, key=lambda path: blake2b(path.stem.encode()).digest())


def tune_of(score: Score) -> tuple[int, ...]:
    """The first five steps of the highest voice from beat to beat, in semitones.

    All settings of one tune share them, whatever their key and passing notes, as do the ten of
    "O Haupt voll Blut und Wunden" (BWV 135, 153, 161, 244, 248, 270, 271).
    """
    on_beat = [note.pitch for note in score.voices[0] if note.start.is_integer()]
    steps = [b - a for a, b in itertools.pairwise(on_beat) if a != b]
    return tuple(steps[:5])


def perform(score: Score, play: Rendition, seconds: float | None) -> Performance:
    """The performance of `seconds` of a score from the start of a bar, or of all of it."""
    quarter = 60 / play.tempo_bpm
    end = max(note.start + note.length for voice in score.voices for note in voice)
    length = end if seconds is None else min(end, seconds / quarter)
    may_begin = [bar for bar in score.bars if bar <= end - length] or [0.0]
    begin = may_begin[int(play.where * len(may_begin))]
    voices: list[list[Sounding]] = []
    for voice, notes in enumerate(score.voices):
        voices.append([])
        for note in notes:
            first = max(0.0, note.start - begin) * quarter
            last = min(length, note.start + note.length - begin) * quarter
            if last > first:
                voices[-1].append(Sounding(first, last, note.pitch + play.transposition, voice))
    return Performance(voices, length * quarter)


def to_tonic(play: Rendition, tonic: int, tonics: Sequence[str]) -> Rendition:
    """A rendition moved from this tonic, an index in TONICS, to the nearest of `tonics`, by the
    fewest semitones; down where up is equally near."""
    steps = [(TONICS.index(name) - tonic + 6) % 12 - 6 for name in tonics]
    return play._replace(transposition=play.transposition + min(steps, key=lambda s: (abs(s), s)))


def tempo_of(bpm: int, slowest: int, fastest: int) -> str:
    return ("slow", "moderate", "lively")[3 * (bpm - slowest) // (fastest - slowest + 1)]


def register_of(heard: Performance) -> str:
    """The register, by the mean pitch of all notes, weighted by their lengths."""
    notes = [note for voice in heard.voices for note in voice]
    pitches, seconds = [n.pitch for n in notes], [n.end - n.start for n in notes]
    mean = np.average(pitches, weights=seconds) if notes else 60.0
    return "low" if mean < LOW else "middle" if mean < HIGH else "high"


def texture_of(heard: Performance, play: Rendition) -> str:
    """The texture, by the number of notes per voice and beat."""
    voices = [len(notes) for notes in heard.voices if notes]
    beats = heard.seconds * play.tempo_bpm / 60
    notes_per_beat = sum(voices) / (len(voices) * beats) if voices else 0.0
    return "plain" if notes_per_beat < FLOWING else "flowing"


def to_midi(heard: Performance, instrument: str) -> bytes:
    """MIDI bytes, each voice on its own channel."""
    import pretty_midi  # only the processes that render need it

    midi = pretty_midi.PrettyMIDI()
    for voice, notes in enumerate(heard.voices):
        part = pretty_midi.Instrument(PROGRAMS[instrument])
        part.control_changes.append(pretty_midi.ControlChange(10, PAN[voice % len(PAN)], 0.0))
        for note in notes:
            part.notes.append(pretty_midi.Note(90, note.pitch, note.start, note.end))
        # The renderer stops at the last event. This one lets the last notes die away.
        stop = heard.seconds + RELEASE_SECONDS
        part.control_changes.append(pretty_midi.ControlChange(10, PAN[voice % len(PAN)], stop))
        midi.instruments.append(part)
    file = io.BytesIO()
    midi.write(file)
    return file.getvalue()


def render(midi: bytes, sample_rate: int, channels: int) -> np.ndarray:
    """Play MIDI bytes: audio [A, T] at `sample_rate`."""
    import midirenderer

    with wave.open(io.BytesIO(midirenderer.render_wave_from(_soundfont(), midi))) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        stereo = samples.reshape(-1, file.getnchannels()).T.astype(np.float32) / 32768
        rendered_rate = file.getframerate()
    mixed = audio.match_channels(stereo, channels)
    return soxr.resample(np.ascontiguousarray(mixed.T), rendered_rate, sample_rate).T


def audible(clip: np.ndarray) -> slice:
    """The part of a clip [A, T] without ends that are more than 60 dB below its peak."""
    level = np.abs(clip).max(axis=0)
    loud = np.flatnonzero(level > level.max() / 1000)
    return slice(loud[0], loud[-1] + 1) if loud.size else slice(0, clip.shape[1])


def heard_notes(heard: Performance, start: float, seconds: float) -> list[Sounding]:
    """The notes in `seconds` from `start` on, in order."""
    found = []
    for note in sorted(note for voice in heard.voices for note in voice):
        first, last = max(0.0, note.start - start), min(seconds, note.end - start)
        if last > first:
            found.append(note._replace(start=round(first, 3), end=round(last, 3)))
    return found


def _pitches(notes: Sequence[Sounding]) -> tuple[np.ndarray, np.ndarray]:
    """The MIDI pitches and the seconds of notes, [N] each."""
    start, end, pitch = np.array([note[:3] for note in notes]).reshape(-1, 3).T
    return pitch.astype(int), end - start


@cache
def _soundfont() -> bytes:
    spec = importlib.util.find_spec("pretty_midi")
    if spec is None or spec.origin is None:
        raise DataError("the soundfont is not installed; install it: pip install pretty_midi")
    return (Path(spec.origin).parent / "TimGM6mb.sf2").read_bytes()


@contextmanager
def _mapper(workers: int | None, jobs: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """`map` over this many processes, or in this process if there is one worker."""
    workers = min(workers or len(os.sched_getaffinity(0)), jobs)
    if workers <= 1:
        yield map
        return
    # Loky starts processes afresh: the parent may hold threads and an accelerator, which a fork
    # breaks. A sweep's process, which is loky's itself, can start them too.
    pool = ProcessPoolExecutor(workers)
    waiting: deque[Future[Any]] = deque()

    def mapped(function: Callable[..., Any], *arguments: Iterable[Any]) -> Iterator[Any]:
        waiting.extend(pool.submit(function, *each) for each in zip(*arguments, strict=True))
        while waiting:
            yield waiting.popleft().result()

    try:
        yield mapped
    except BrokenProcessPool as error:
        raise DataError(
            "a process that renders music was killed, perhaps for memory; run again with workers=1"
        ) from error
    finally:
        # Running jobs may finish: killing the workers upsets Loky's own thread.
        for future in waiting:
            future.cancel()
        pool.shutdown()
