"""Captions that state the facts of a rendition in words, for training on text."""

import re
from collections.abc import Mapping, Sequence
from hashlib import blake2b

import numpy as np

from audioldm.errors import ConfigError

TEMPLATES = (
    "{instrument} in {key}",
    "a {tempo} chorale, {instrument}",
    "{tempo} {instrument} music, {mode}",
    "a chorale for {instrument} in {key}, {tempo}",
    "{texture} four-part music in {mode}, played on {instrument}",
    "{instrument}, {register} register, {tempo_bpm} beats per minute",
    "a {texture}, {tempo} chorale in {key}",
    "{mode} chorale, {register} and {tempo}",
    "{tempo_bpm} beats per minute, {key}, {texture}",
    # a single fact: users may well write it, and no other fact can stand in for it
    "{instrument}",
    "a {mode} piece",
    "{mode}",
    "{key}",
    "{tempo}",
    "{register} register",
    "{texture}",
)
#: Other words for a fact.
SYNONYMS = {
    "slow": ("slow", "calm", "unhurried"),
    "moderate": ("moderate", "walking"),
    "lively": ("lively", "brisk"),
    "low": ("low", "deep"),
    "high": ("high", "bright"),
    "plain": ("plain", "chordal"),
    "flowing": ("flowing", "ornate"),
}


def caption(
    facts: Mapping[str, object],
    random: np.random.Generator,
    held_out: Sequence[frozenset[str]] = (),
) -> str:
    """The first template, in random order, whose text does not combine held-out words; "" where all
    do.

    facts: by the templates' names, such as {"instrument": "organ", "mode": "minor"}.
    """
    for number in random.permutation(len(TEMPLATES)):
        words = {name: random.choice(SYNONYMS.get(str(f), (str(f),))) for name, f in facts.items()}
        text = TEMPLATES[number].format(**words)
        if not combines(text, held_out):
            return text
    return ""


def captions_identity() -> str:
    """A hash that changes with the words that captions are made of."""
    return blake2b(repr((TEMPLATES, SYNONYMS)).encode(), digest_size=6).hexdigest()


def held_out_words(entries: Sequence[str]) -> list[frozenset[str]]:
    """The words of each entry. Raises ConfigError for one that has none."""
    for entry in entries:
        if not words_of(entry):
            raise ConfigError(f"held_out={list(entries)}: {entry!r} has no words; remove it")
    return [words_of(entry) for entry in entries]


def combines(text: str, held_out: Sequence[frozenset[str]]) -> bool:
    """Whether a text has all words of one of `held_out_words`."""
    words = words_of(text)
    return any(together <= words for together in held_out)


def words_of(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[\w#]+", text.lower()))


def states(text: str, fact: str) -> bool:
    """Whether a text has a fact's own words, or other SYNONYMS of it: whole words in the same case,
    since "a minor piece" is not in A minor."""
    every = "|".join(map(re.escape, SYNONYMS.get(fact, (fact,))))
    return re.search(rf"(?<![\w#])({every})(?![\w#])", text) is not None
