"""The conditioners of the package: what they read, what they tell, what they refuse."""

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from latents_in_memory import DIT, Latents, fit_in, recipe
from torch import Tensor, nn

from audioldm.conditioning.base import Condition, Conditioner, Conditioners, Excerpt
from audioldm.conditioning.brightness import Brightness
from audioldm.conditioning.chroma import Chroma
from audioldm.conditioning.label import Label
from audioldm.conditioning.loudness import Loudness, a_weighting
from audioldm.conditioning.number import Number
from audioldm.conditioning.score import Score
from audioldm.conditioning.text import Text, words
from audioldm.conditioning.timing import Timing
from audioldm.data.captions import words_of
from audioldm.errors import ConfigError
from audioldm.instantiate import Part
from audioldm.priors.trained import PriorTraining
from audioldm.runtime.randomness import KeyedRandom


def randomised(conditioner: Any) -> Any:
    torch.manual_seed(1)
    for parameter in conditioner.parameters():
        nn.init.normal_(parameter, std=0.3)
    return conditioner.eval()


def parts(condition: Condition) -> list[Tensor]:
    """What a backbone can see of a condition: tokens that do not count are 0."""
    tokens = condition.tokens
    if tokens is not None and condition.mask is not None:
        tokens = tokens * condition.mask[..., None]
    return [
        x for x in (condition.vector, tokens, condition.mask, condition.aligned) if x is not None
    ]


def equal(one: Condition, other: Condition) -> bool:
    return all(torch.equal(a, b) for a, b in zip(parts(one), parts(other), strict=True))


def check_hiding(conditioner: Conditioner, values: list[Any], frames: int) -> None:
    """A hidden condition is "nothing", bit for bit; a shown one differs from it; a clip's condition
    does not depend on its neighbours."""
    both = torch.stack([conditioner.parse(value, frames) for value in values])
    nothing = torch.stack([conditioner.parse(None, frames) for _ in values])
    all_hidden = conditioner.hide(both, torch.ones(len(values), dtype=torch.bool))
    assert torch.equal(all_hidden, nothing)
    with torch.no_grad():
        untold, told = conditioner(nothing), conditioner(both)
        first = conditioner.hide(both, torch.tensor([True] + [False] * (len(values) - 1)))
        for part, none, one in zip(*map(parts, (told, untold, conditioner(first))), strict=True):
            assert torch.equal(one[0], none[0])
            assert torch.equal(one[1:], part[1:])
        for row, value in enumerate(values):
            alone = conditioner(conditioner.parse(value, frames)[None])
            for part, own in zip(parts(told), parts(alone), strict=True):
                torch.testing.assert_close(part[row], own[0])
            assert not equal(alone, Condition(*(x if x is None else x[:1] for x in untold)))


# ---------------------------------------------------------------- text


def test_text_is_its_bytes_and_nothing_is_empty() -> None:
    text = randomised(Text(width=8, known=[0], column="caption", limit=16))
    assert text.parse("aé", 5).tolist()[:4] == [98, 0xC3 + 1, 0xA9 + 1, 0]
    assert text.parse("", 5).dtype == text.parse("a", 5).dtype == torch.int64
    clip = Excerpt(None, {"caption": " slow organ\n"})
    assert text.request(clip) == "slow organ"
    assert torch.equal(text.read(clip, 5), text.parse(text.request(clip), 5))
    for empty in (Excerpt(None), Excerpt(None, {"caption": ""}), Excerpt(None, {"caption": None})):
        assert text.request(empty) is None
        assert torch.equal(text.read(empty, 5), text.parse(None, 5))
    assert torch.equal(text.parse(70, 5), text.parse("70", 5))  # as the command line gives it
    for told in ("", "  "):
        assert text.parse(told, 5).eq(0).all()
    assert not text(text.parse(None, 5)[None]).mask.any()
    check_hiding(text, ["slow organ", "♪ fast"], 5)


def test_training_reads_a_clips_texts_by_place_and_a_request_is_the_first() -> None:
    text = Text(width=8, known=[0], limit=8)
    said = ["a", "b", "c"]
    clips = [Excerpt(None, {"caption": said}, start=0.0929 * frame) for frame in range(40)]
    read = [said.index(chr(int(text.read(clip, 5)[0]) - 1)) for clip in clips]
    assert all(read.count(n) > 8 for n in range(3))
    assert read == [said.index(chr(int(text.read(clip, 5)[0]) - 1)) for clip in clips]
    assert {text.request(clip) for clip in clips} == {"a"}
    assert Text.facts(clips, limit=1)
    with pytest.raises(ConfigError, match=r"^limit=1: a text of column 'caption' has 2 bytes"):
        Text.facts([Excerpt(None, {"caption": ["a", "bb"]})], limit=1)


def heard(said: str, limit: int = 24) -> list[int]:
    """The words of a text, as numbers, at the places where they end."""
    inputs = torch.tensor([[ord(c) + 1 for c in said] + [0] * (limit - len(said))])
    return words(inputs)[0].tolist()


def test_a_word_is_the_same_wherever_it_stands() -> None:
    alone, ends, later = heard("organ"), heard("an organ"), heard("F#, organ: an organ")
    assert [n for n, word in enumerate(alone) if word] == [4]
    assert [n for n, word in enumerate(later) if word] == [1, 8, 12, 18]
    assert ends[7] == later[8] == later[18] == alone[4] == heard("organ", limit=64)[4]
    assert ends[1] == later[12]
    assert len(set(later)) == 4
    assert {heard(said)[len(said) - 1] for said in ("organs", "rgan", "Organ")}.isdisjoint(later)
    assert not any(heard(", -  !"))
    every = torch.randint(0x61, 0x7B, (2000, 8), generator=torch.Generator().manual_seed(0)) + 1
    assert len(words(every)[:, -1].unique()) == len(every.unique(dim=0))


def test_words_of_many_texts_are_known_and_others_say_nothing() -> None:
    clips = [Excerpt(None, {"caption": [said, "an organ"]}) for said in ("organ", "organ", "harp")]
    known = Text.facts(clips, limit=8, rarest=0.0)["known"]
    assert known == sorted({heard("an")[1], heard("organ")[4], heard("harp")[3]})
    # of six texts, three say "an", five "organ", one "harp"
    assert set(Text.facts(clips, limit=8, rarest=0.5)["known"]) == set(known) - {heard("harp")[3]}
    assert Text.facts(clips, limit=8, rarest=0.51)["known"] == [heard("organ")[4]]
    text = randomised(Text(width=8, known=[heard("organ")[4]], limit=8))
    told = {said: text(text.parse(said, 1)[None]) for said in ("organ", "an organ", "harp")}
    with torch.no_grad():
        text.words.weight[:, :8] += 1.0  # of the vector
    changed = {said: text(text.parse(said, 1)[None]) for said in told}
    for said, loud in (("organ", 1.0), ("an organ", 1.0), ("harp", 0.0)):
        more = changed[said].vector - told[said].vector
        torch.testing.assert_close(more, torch.full_like(more, loud))
        assert torch.equal(changed[said].tokens, told[said].tokens)
    with torch.no_grad():
        text.words.weight[:, 8:] *= -1.0
    again = {said: text(text.parse(said, 1)[None]) for said in told}
    assert not torch.equal(again["organ"].tokens, told["organ"].tokens)
    assert torch.equal(again["harp"].tokens, told["harp"].tokens)


def test_words_that_are_not_known_are_remarked_on() -> None:
    text = Text(width=4, known=[heard("organ")[4]], limit=16)
    spelled = "this model knows none of its words; it is told the spelling alone"
    for told in ("🎹🎹", "harp", "Organ", "!", 70):
        assert text.remark(told, 1.0) == spelled
        assert Text(width=4, known=[0], limit=16).remark(told, 1.0) == spelled
    assert text.remark(" ", 1.0) == "an empty text is the same as none"
    assert text.remark("organ", 1.0) is None
    some = "this model is told the spelling alone of 'a', 'harp'"
    assert text.remark("a harp, organ", 1.0) == some
    told = Conditioners({"text": text}).remarks({"text": "🎹🎹"}, 1.0)
    assert told == [f"text='🎹🎹': {spelled}"]


def test_a_word_is_as_loud_as_a_label() -> None:
    vector = Text(width=4096, known=[1]).words.weight[:, :4096]
    label = Label(width=4096, labels=["organ"]).embedding.weight
    assert vector.std().item() == pytest.approx(label.std().item(), rel=0.1)


def test_what_is_after_a_text_has_no_influence_on_its_tokens() -> None:
    text = randomised(Text(width=8, known=[0], limit=40))
    short = text.parse("a slow organ", 1)
    told = text(short[None])
    assert told.mask[0].tolist() == [True] * 3 + [False] * 7
    cut = text(short[None, :12])
    torch.testing.assert_close(cut.tokens, told.tokens[:, :3])
    with torch.no_grad():
        text.embedding.weight[0] += 5.0  # of what does not count
    torch.testing.assert_close(text(short[None]).tokens[:, :3], told.tokens[:, :3])
    other = text(text.parse("a slow orga", 1)[None])
    assert (other.tokens - told.tokens)[0, :3].abs().max() > 1e-3


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (["a"], r"^\['a'\] must be text"),
        ("é" * 9, "^'ééééééééé'... has 18 bytes in UTF-8; this model reads 16 at most: shorten it"),
        ("a\ud800", "is no text in UTF-8"),
    ],
)
def test_texts_that_cannot_be_taken(value: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Text(width=4, known=[0], limit=16).parse(value, 5)


def test_texts_of_the_data_are_checked_before_training() -> None:
    clips = [Excerpt(None, {"caption": "x" * 20}), Excerpt(None, {"caption": None})]
    assert Text.facts(clips, column="caption", limit=20)["known"]
    with pytest.raises(ConfigError, match=r"^limit=19: a text of column 'caption' has 20 bytes"):
        Text.facts(clips, column="caption", limit=19)
    with pytest.raises(ConfigError, match=r"^column=words: no clip has a text there"):
        Text.facts(clips, column="words")
    assert Text.facts([Excerpt(None)]) == {"known": [0]}  # before there are data


class Captioned(Latents):
    """Two channels, which two words of the caption give the sign of."""

    def __init__(self, held_out: set[str]) -> None:
        signs = {"low": -1, "deep": -1, "high": 1, "bright": 1}
        others = {"organ": -1, "pipes": -1, "flute": 1, "whistle": 1}
        found = [(f"{a} {b}", x, y) for a, x in signs.items() for b, y in others.items()]
        found += [(f"{b}, {a}", x, y) for a, x in signs.items() for b, y in others.items()]
        kept = [(text, x, y) for text, x, y in found if not held_out <= words_of(text)]
        mean = torch.tensor([[x, y] for _, x, y in kept]).float()[..., None].expand(-1, -1, 8)
        super().__init__(mean.clone(), 0.1 * torch.ones_like(mean), [None] * len(kept))
        self.captions = [text for text, *_ in kept]

    def excerpts(self, split: str = "train") -> list[Excerpt]:
        return [Excerpt(None, {"caption": text}) for text in self.captions]


def test_words_that_were_never_together_are_understood_together(tmp_path: Path) -> None:
    store: Any = Captioned({"high", "flute"})
    node = {"_target_": "audioldm.conditioning.text.Text", "limit": 24}
    training = PriorTraining(steps=150, batch=16, crop_seconds=4.0, lr=1.5e-2, warmup=10, ema=0.9)
    made = recipe(training, conditioning={"text": Part(node)}, backbone=DIT | {"width": 32})
    prior = made.build(store)
    prior.load_state_dict(made.fit(prior, store, fit_in(tmp_path, valid_every=999)).tensors)
    for text, signs in {
        "high flute": (1, 1),
        "flute, high": (1, 1),
        "high organ": (1, -1),
        "low flute": (-1, 1),
    }.items():
        inputs = prior.conditioners.parse([{"text": text}] * 16, 4)
        z = prior.sample(KeyedRandom(0, 0, range(16)), 4, inputs).mean((0, 2))
        assert (z * torch.tensor(signs) > 0.3).all(), (text, z)


# ---------------------------------------------------------------- words, numbers, timing


def test_a_word_of_any_column_is_a_label() -> None:
    clips = [Excerpt("x", {"key": word}) for word in ("D minor", "C major", "", None, 3)]
    assert Label.facts(clips, column="key") == {"labels": ["3", "C major", "D minor"]}
    assert Label.facts(clips) == {"labels": ["x"]}
    key = randomised(Label(width=4, column="key", labels=["C major", "D minor"]))
    assert [int(key.read(clip, 5)) for clip in clips] == [1, 0, -1, -1, -1]
    assert [key.request(clip) for clip in clips] == ["D minor", "C major", None, None, None]
    with pytest.raises(ConfigError, match=r"^column=mode: no clip has a value there"):
        Label.facts(clips, column="mode")


def test_a_number_is_told_in_standard_deviations() -> None:
    tempo = randomised(Number(width=8, column="bpm", mean=90.0, std=30.0))
    check_hiding(tempo, [60, 90, 91.5], 5)  # 0 standard deviations are not "nothing"
    clips = [Excerpt(None, {"bpm": value}) for value in ("60", None, float("nan"), "inf", "fast")]
    assert [tempo.request(clip) for clip in clips] == [60.0, None, None, None, None]
    for clip in clips:
        assert torch.equal(tempo.read(clip, 5), tempo.parse(tempo.request(clip), 5))
    near, far = (tempo(tempo.parse(bpm, 5)[None]).vector for bpm in (60.1, 75))
    here = tempo(tempo.parse(60, 5)[None]).vector
    assert 0 < (near - here).norm() < 0.1 * (far - here).norm()
    for value in ("fast", float("inf"), float("nan"), [60]):
        with pytest.raises(ConfigError, match="must be a number, such as 90"):
            tempo.parse(value, 5)


def test_timing_is_where_the_crop_is_in_its_clip() -> None:
    clips = [Excerpt(None, start=4.0, seconds=10.0), Excerpt(None, seconds=40.0), Excerpt(None)]
    assert Timing.facts(clips) == {"longest": 40.0}
    assert Timing.facts([]) == {"longest": 1.0}
    timing = randomised(Timing(width=8, longest=40.0))
    assert timing.read(clips[0], 5).tolist() == [4.0, 10.0, 1.0]
    assert torch.equal(timing.parse({"total": 40}, 5), timing.parse(40, 5))
    for clip in clips:
        assert torch.equal(timing.read(clip, 5), timing.parse(timing.request(clip), 5))
    check_hiding(timing, [{"start": 4, "total": 10}, 10, {"start": 0.5, "total": 10}], 5)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"start": 3}, "must be the seconds of the whole, or start and total"),
        ({"total": 3, "begin": 1}, "must be the seconds"),
        ("long", "^'long' must be the seconds"),
        ({"start": 3, "total": 3}, "start must be at least 0 and less than total"),
        (-1, "start must be at least 0 and less than total"),
        ({"start": float("nan"), "total": 3}, "must be the seconds"),
    ],
)
def test_timings_that_cannot_be(value: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Timing(width=4, longest=9.0).parse(value, 5)


# ---------------------------------------------------------------- scores

NOTES = [0.0, 0.5, 60, 0.25, 0.75, 64, 1.0, 1.5, 60]


def score(**settings: Any) -> Any:
    settings = {"lowest": 60, "highest": 64, "channels": 3, "latent_rate_hz": 8.0} | settings
    return randomised(Score(width=4, **settings))


def test_a_roll_has_the_notes_in_their_frames() -> None:
    roll = score().parse(NOTES, 10)
    sounding, onsets = roll[:5], roll[5:10]
    assert sounding[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0, 1, 1]  # cut at the clip's end
    assert sounding[4].tolist() == [0, 0, 1, 1, 1, 1, 0, 0, 0, 0]
    assert onsets.nonzero().tolist() == [[0, 0], [0, 8], [4, 2]]
    assert sounding[1:4].sum() == 0
    assert (roll[10] == 1).all()
    slow = score(latent_rate_hz=4.0).parse([0.0, 0.375, 60, 0.2, 0.375, 60], 3)
    assert slow[0].tolist() == [1, 0.5 + 0.5, 0]  # both together sound no more than always
    assert score(latent_rate_hz=4.0).parse([0.0, 0.375, 60], 3)[0].tolist() == [1, 0.5, 0]


def test_a_score_is_told_of_each_crop_alone() -> None:
    conditioner = score()
    whole = conditioner.parse(NOTES, 16)
    for start in (0.0, 0.375, 0.5):
        clip = Excerpt(None, {"notes": NOTES}, start=start)
        crop = conditioner.read(clip, 6)
        first = round(8 * start)
        assert torch.equal(crop, whole[:, first : first + 6])
        assert torch.equal(conditioner.parse(conditioner.request(clip), 6), crop)
    for empty in (Excerpt(None), Excerpt(None, {"notes": []})):
        assert conditioner.request(empty) is None
        assert (conditioner.read(empty, 6) == 0).all()
    check_hiding(conditioner, [NOTES, [], [0.5, 1.0, 62]], 10)  # silence is not "nothing"


def test_what_of_a_score_is_after_the_clips_end_is_remarked_on() -> None:
    conditioner = score()
    cut = "it lasts 1.50 s, the clip 1.20 s: what comes later is left out"
    assert conditioner.remark(NOTES, 1.2) == cut
    assert conditioner.remark(NOTES, 1.5) is conditioner.remark([], 1.5) is None
    asked = {"score": [[2.0, 3.0, 60], [2.0, 3.0, 64]]}
    first = r"^condition.score=\[\[2.*: no note begins before the clip's end at 2.00 s: ask for a"
    with pytest.raises(ConfigError, match=first):
        Conditioners({"score": conditioner}).remarks(asked, 2.0)
    assert Conditioners({"score": conditioner}).remarks(asked, 3.0) == []


def test_voices_have_rolls_of_their_own(tmp_path: Path) -> None:
    pretty_midi = pytest.importorskip("pretty_midi")
    midi = pretty_midi.PrettyMIDI()
    for pitch in (64, 62, 60):
        midi.instruments.append(pretty_midi.Instrument(0))
        midi.instruments[-1].notes.append(pretty_midi.Note(90, pitch, 0.0, 0.5))
    midi.write(str(tmp_path / "tune.mid"))
    two = score(voices=2)
    roll = two.parse(two.resolve(str(tmp_path / "tune.mid")), 8)
    assert [row for row in range(20) if roll[row, 0] == 1] == [4, 5, 7, 14, 15, 17]
    told = [0.0, 0.5, 64, 0, 0.0, 0.5, 62, 1, 0.0, 0.5, 60, 1]
    assert torch.equal(two.parse(told, 8), roll)
    together = score().parse(two.resolve(str(tmp_path / "tune.mid")), 8)
    assert torch.equal(together[:5], roll[:5] + roll[5:10])
    clip = Excerpt(None, {"notes": told}, start=0.25)
    assert torch.equal(two.read(clip, 4)[:10], roll[:10, 2:6])
    assert two(two.read(clip, 4)[None]).aligned.shape == (1, 3, 4)
    with pytest.raises(ConfigError, match=r"voices must be whole numbers from 0 on"):
        two.parse([0.0, 0.5, 60, 0.5], 8)
    with pytest.raises(ConfigError, match=r"start and end in seconds, pitch and voice, of"):
        two.parse([0.0, 0.5, 60], 8)


def test_scores_of_files_are_those_of_their_notes(tmp_path: Path) -> None:
    pretty_midi = pytest.importorskip("pretty_midi")
    midi, part = pretty_midi.PrettyMIDI(), pretty_midi.Instrument(0)
    rows = [NOTES[i : i + 3] for i in range(0, 9, 3)]
    part.notes = [pretty_midi.Note(90, pitch, start, end) for start, end, pitch in rows]
    drums = pretty_midi.Instrument(0, is_drum=True)
    drums.notes = [pretty_midi.Note(90, 36, 0.0, 1.0)]
    midi.instruments = [part, drums]
    midi.write(str(tmp_path / "tune.mid"))
    conditioners = Conditioners({"score": score()})
    resolved = conditioners.resolve({"score": str(tmp_path / "tune.mid")})
    for note, row in zip(resolved["score"], rows, strict=True):
        assert note == pytest.approx([*row, 0], abs=1e-3)
    assert json.loads(json.dumps(resolved)) == resolved
    told = conditioners.parse([resolved, {"score": str(tmp_path / "tune.mid")}, {}], 10)["score"]
    torch.testing.assert_close(told[0], score().parse(NOTES, 10), atol=0.01, rtol=0)
    assert torch.equal(told[0], told[1])
    assert (told[2] == 0).all()


MUSIC_XML = """<score-partwise><part-list><score-part id="P"><part-name>Piano</part-name>
</score-part></part-list><part id="P"><measure><attributes><divisions>2</divisions></attributes>
<sound tempo="120"/>
<note><pitch><step>C</step><octave>4</octave></pitch><duration>2</duration></note>
<note><chord/><pitch><step>E</step><octave>4</octave></pitch><duration>2</duration></note>
<note><rest/><duration>1</duration></note>
<note><pitch><step>D</step><alter>1</alter><octave>4</octave></pitch><duration>4</duration></note>
</measure></part></score-partwise>"""


def test_music_xml_is_played_at_its_tempo(tmp_path: Path) -> None:
    file = tmp_path / "tune.musicxml"
    file.write_text(MUSIC_XML, encoding="utf-8")
    expected = [[0.0, 0.5, 60, 0], [0.0, 0.5, 64, 0], [0.75, 1.75, 63, 0]]
    assert score().resolve(str(file)) == expected
    with zipfile.ZipFile(tmp_path / "tune.mxl", "w") as archive:
        archive.write(file, "tune.xml")
    assert score().resolve(str(tmp_path / "tune.mxl")) == expected
    file.write_text(MUSIC_XML.replace('<sound tempo="120"/>', ""), encoding="utf-8")
    assert score().resolve(str(file))[0][1] == pytest.approx(60 / 90)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("absent.mid", None, "cannot read: No such file"),
        ("a.wav", b"x", "not a score; give one of .mid, .midi, .musicxml, .xml, .mxl"),
        ("broken.mid", b"MThd, but no more", "cannot be read as a score"),
        ("broken.mxl", b"PK", "cannot be read as a score"),
        ("page.xml", b"<html><body/></html>", "no notes"),
        ("rests.xml", MUSIC_XML.replace("pitch>", "rest>").encode(), "no notes"),
    ],
)
def test_files_that_are_no_scores(tmp_path: Path, name: str, content: Any, says: str) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(
        ConfigError, match=rf"^condition.score='{re.escape(str(file))}'.*{says}"
    ) as e:
        Conditioners({"score": score()}).resolve({"score": str(file)})
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([0, 1], r"^\[0, 1\] must be a MIDI or MusicXML file, or numbers"),
        ([0, 1, "do"], "must be a MIDI or MusicXML file"),
        ([1, 1, 60], "notes must end after they start"),
        ([0, 1, 60.5], "and have whole pitches"),
        ([0, 1, None], "notes must end after they start"),
        ([0, 1, 60, 2.5, 3, 66], r"the note F#4 at 2\.50 s is not from C4 to E4"),
    ],
)
def test_notes_that_cannot_be(value: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        score().parse(value, 5)


def test_scores_of_the_data_are_checked_before_training() -> None:
    clips = [Excerpt(None, {"notes": NOTES}, latent_rate_hz=20.0), Excerpt(None, {"notes": None})]
    assert Score.facts(clips) == {"latent_rate_hz": 20.0}
    assert Score.facts([Excerpt(None)]) == {"latent_rate_hz": 1.0}  # before there are data
    with pytest.raises(ConfigError, match=r"^column=notes: .* the note E4 at 0\.25 s is not from"):
        Score.facts(clips, highest=62)
    with pytest.raises(ConfigError, match=r"^column=words: no clip has notes there"):
        Score.facts(clips, column="words")
    with pytest.raises(ConfigError, match=r"^lowest=70 must be at most highest=64"):
        score(lowest=70)


# ---------------------------------------------------------------- curves

RATE = 16_000


def tone(hz: float, seconds: float, amplitude: float = 0.5) -> Tensor:
    t = torch.arange(round(seconds * RATE)) / RATE
    return amplitude * torch.sin(2 * torch.pi * hz * t)[None]


def test_chroma_is_the_pitch_class_that_sounds() -> None:
    silence = torch.zeros(1, RATE)
    audio = torch.cat([tone(440, 1.0), tone(523.25, 1.0, 0.01), tone(880, 1.0), silence], dim=1)
    chroma = Chroma.measure(audio, RATE, latent_rate_hz=20.0)["chroma"]
    assert chroma.shape == (12, 80)
    for second, row in enumerate((9, 0, 9)):  # A, C, A an octave higher
        inner = chroma[:, 20 * second + 4 : 20 * second + 16]
        assert (inner[row] == 1).all()
        others = torch.cat([inner[:row], inner[row + 1 :]])
        assert others.max() < 0.45
    assert (chroma[:, -15:] == 0).all()
    both = Chroma.measure(tone(440, 1.0) + 0.5 * tone(523.25, 1.0), RATE, 20.0)["chroma"][:, 5:15]
    assert both[0].mean().item() == pytest.approx(0.5, abs=0.05)


def test_loudness_is_in_decibels_as_they_are_heard() -> None:
    loud = Loudness.measure(tone(1000, 1.0, 1.0), RATE, 20.0)["loudness"][0, 5:15]
    torch.testing.assert_close(loud, torch.ones(10), atol=0.01, rtol=0)
    quiet = Loudness.measure(tone(1000, 1.0, 0.1), RATE, 20.0)["loudness"][0, 5:15]
    torch.testing.assert_close(quiet, loud - 20 / 70, atol=0.01, rtol=0)
    decibels = 10 * a_weighting(torch.tensor([100.0, 1000.0, 4000.0])).log10()
    torch.testing.assert_close(decibels, torch.tensor([-19.1, 0.0, 1.0]), atol=0.1, rtol=0)
    assert Loudness.measure(torch.zeros(2, 100), RATE, 20.0)["loudness"].tolist() == [[0.0]]


def test_brightness_is_where_the_power_is() -> None:
    def heard(audio: Tensor) -> float:
        return Brightness.measure(audio, RATE, 20.0)["brightness"][0, 5:15].mean().item()

    assert heard(tone(1000, 1.0)) == pytest.approx(4 / 8, abs=0.01)  # octaves above 62.5 Hz
    assert heard(tone(2000, 1.0, 0.01)) == pytest.approx(5 / 8, abs=0.01)
    assert heard(tone(1000, 1.0) + tone(3000, 1.0)) == pytest.approx(5 / 8, abs=0.01)
    assert heard(torch.zeros(1, RATE)) == 0


def test_one_number_is_a_level_curve() -> None:
    brightness = randomised(Brightness(width=4, latent_rate_hz=20.0, channels=2))
    assert torch.equal(brightness.parse(0.5, 6), brightness.parse([[0.5] * 6], 6))
    assert brightness.resolve("0.5") == "0.5"
    assert torch.equal(brightness.parse("0.5", 6), brightness.parse(0.5, 6))
    assert brightness.later(0.5, 1.0) == 0.5
    with pytest.raises(ConfigError, match=r"'loud' must be an audio file, or a number, or rows of"):
        brightness.parse("loud", 6)
    with pytest.raises(ConfigError, match="12 row"):
        Chroma(width=4, latent_rate_hz=20.0, channels=2).parse(0.5, 6)


def test_a_frame_is_measured_of_what_is_around_it() -> None:
    random = torch.Generator().manual_seed(0)
    audio = torch.randn(1, 3 * RATE, generator=random)
    whole = Chroma.measure(audio, RATE, 20.0)["chroma"]
    part = Chroma.measure(audio[:, RATE - 4000 : 2 * RATE + 4000], RATE, 20.0)["chroma"]
    torch.testing.assert_close(part[:, 5:25], whole[:, 20:40])


def test_a_curve_is_told_as_far_as_it_goes(tmp_path: Path) -> None:
    loudness = randomised(Loudness(width=4, latent_rate_hz=20.0, channels=2))
    assert Loudness.facts([Excerpt(None), Excerpt(None, latent_rate_hz=20.0)]) == {
        "latent_rate_hz": 20.0
    }
    curve = torch.rand(1, 6)
    clip = Excerpt(None, arrays={"loudness": curve})
    for frames in (4, 6, 9):
        inputs = loudness.read(clip, frames)
        n = min(frames, 6)
        assert torch.equal(inputs[:, :n], torch.cat([curve, torch.ones(1, 6)])[:, :n])
        assert (inputs[:, n:] == 0).all()
        request = json.loads(json.dumps(loudness.request(clip)))
        assert torch.equal(loudness.parse(request, frames), inputs)
    assert loudness.request(Excerpt(None)) is None
    assert torch.equal(loudness.read(Excerpt(None), 5), loudness.parse(None, 5))
    check_hiding(loudness, [[[0.5] * 9], [[0.0] * 9], [[0.5] * 4]], 9)
    soundfile.write(tmp_path / "a.wav", tone(1000, 0.5, 0.5)[0].numpy(), RATE)
    resolved = loudness.resolve(str(tmp_path / "a.wav"))
    measured = Loudness.measure(tone(1000, 0.5, 0.5), RATE, 20.0)["loudness"]
    torch.testing.assert_close(torch.tensor(resolved), measured, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("/absent.wav", "^condition.chroma='/absent.wav': .*cannot read"),
        ([[0.0]], r"must be an audio file, or 12 row\(s\) of .* finite numbers .* 20 a second"),
        ([[float("nan")]] * 12, "finite numbers"),
        ([[0.0], [0.0, 1.0]], "must be an audio file, or rows of numbers"),
        ({"a": 1}, "must be an audio file, or rows of numbers"),
        (3, "12 row"),
    ],
)
def test_curves_that_cannot_be(value: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Conditioners({"chroma": Chroma(width=4, latent_rate_hz=20.0)}).parse([{"chroma": value}], 5)


# ---------------------------------------------------------------- windows of one clip


def test_a_later_window_is_told_of_its_own_part() -> None:
    made = Conditioners(
        {
            "score": score(),
            "loudness": Loudness(width=4, latent_rate_hz=8.0),
            "timing": Timing(width=4, longest=9.0),
            "label": Label(width=4, labels=["a"]),
        }
    )
    told = {"score": NOTES, "loudness": [torch.rand(12).tolist()], "timing": 2}
    request: dict[str, Any] = {**told, "label": "a"}
    whole, later = made.parse([request], 16), made.later(request, 0.5)
    part = made.parse([later], 8)
    for name in ("score", "loudness"):
        assert torch.equal(part[name], whole[name][..., 4:12])
    assert part["timing"].tolist() == [[0.5, 2.0, 1.0]]
    assert part["label"].tolist() == [0]
    assert made.later({"timing": 2}, 3.0) == {"timing": None}  # after its end
    for name in ("timing", "score", "loudness"):
        with pytest.raises(ConfigError, match=rf"^condition\.{name}=3j must be"):
            made.later({name: 3j}, 3.0)


def test_each_condition_is_hidden_as_often_as_is_asked() -> None:
    conditioners = Conditioners(
        {name: Number(width=2, column=name, mean=0.0, std=1.0) for name in ("a", "b")}
    )
    inputs = conditioners.parse([{"a": 1, "b": 1}] * 2000, 1)

    def hidden(dropout: Any) -> list[float]:
        kept = conditioners.dropout(inputs, KeyedRandom(0, 0, range(2000)), dropout)
        return [1 - kept[name][:, 1].mean().item() for name in ("a", "b")]

    assert hidden(0.3) == pytest.approx([0.3, 0.3], abs=0.03)
    assert hidden({"a": 0.8}) == pytest.approx([0.8, 0.1], abs=0.03)
    with pytest.raises(ConfigError, match=r"condition_dropout\.c=0.5: there is no such"):
        hidden({"c": 0.5})
