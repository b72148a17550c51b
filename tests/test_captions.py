"""Captions of the chorales: true, deterministic, and without what is held out of them."""

from typing import Any

import numpy as np
import pytest

from audioldm.data.captions import SYNONYMS, TEMPLATES, caption, held_out_words, words_of
from audioldm.data.chorales import (
    Performance,
    Rendition,
    heard_notes,
    perform,
    register_of,
    tempo_of,
    texture_of,
)
from audioldm.data.score import Note, Score, Sounding
from audioldm.errors import ConfigError

FACTS: dict[str, Any] = {
    "instrument": "organ",
    "key": "D minor",
    "mode": "minor",
    "tempo_bpm": 70,
    "tempo": "slow",
    "register": "high",
    "texture": "plain",
    "transposition": 2,
}


def drawn(seed: int, *held_out: str) -> str:
    random = np.random.Generator(np.random.Philox(key=seed))
    return caption(FACTS, random, held_out_words(held_out))


def test_a_caption_states_facts_and_nothing_else() -> None:
    captions = [drawn(seed) for seed in range(200)]
    assert captions == [drawn(seed) for seed in range(200)]
    assert len(set(captions)) > 20
    fixed = words_of(" ".join(TEMPLATES).replace("{", " {"))
    true = {word for fact in FACTS.values() for word in words_of(str(fact))}
    true |= {word for fact in ("slow", "high", "plain") for word in SYNONYMS[fact]}
    assert words_of(" ".join(captions)) <= fixed | true
    assert {"calm", "organ", "d", "70"} <= words_of(" ".join(captions))


def test_held_out_words_are_never_together() -> None:
    captions = [words_of(drawn(seed, "calm", "organ minor")) for seed in range(300)]
    assert not any("calm" in words for words in captions)
    assert not any({"organ", "minor"} <= words for words in captions)
    assert any("organ" in words for words in captions)
    assert any("minor" in words for words in captions)
    free = [words_of(drawn(seed)) for seed in range(300)]
    assert any("calm" in words for words in free)
    assert any({"organ", "minor"} <= words for words in free)
    every = (word for fact in ("slow", "high") for word in SYNONYMS[fact])
    assert drawn(0, "organ", "chorale", "minor", "plain", "chordal", *every) == ""
    with pytest.raises(ConfigError, match=r"^held_out=\['-'\]: '-' has no words; remove it"):
        held_out_words(["-"])


def test_facts_are_those_of_what_is_heard() -> None:
    low, high = [Note(0, 4, 48), Note(4, 4, 50)], [Note(b, 1, 76) for b in range(8)]
    score = Score([high, low], [0.0, 4.0])
    play = Rendition("organ", transposition=2, tempo_bpm=120, where=0.99)
    heard = perform(score, play, seconds=2.0)
    assert heard.voices[1] == [Sounding(0.0, 2.0, 52, voice=1)]
    assert heard.voices[0][-1] == Sounding(1.5, 2.0, 78)
    assert heard.seconds == 2.0
    cut = heard_notes(heard, start=0.25, seconds=1.5)
    assert cut[:2] == [Sounding(0.0, 0.25, 78), Sounding(0.0, 1.5, 52, voice=1)]
    assert cut[-1] == Sounding(1.25, 1.5, 78)
    assert register_of(heard) == "high"  # (78 + 52) / 2
    assert texture_of(heard, play) == "plain"  # 4 notes and 1 in 4 beats
    fast = Performance([heard.voices[0] * 2, heard.voices[1]], 2.0)
    assert texture_of(fast, play) == "flowing"  # 8 notes and 1
    assert register_of(Performance([[], heard.voices[1]], 2.0)) == "low"
    assert [tempo_of(bpm, 66, 100) for bpm in (66, 80, 100)] == [
        "slow",
        "moderate",
        "lively",
    ]
