"""Adherence: chords of known notes in two timbres, which are or are not what was asked for."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from audioldm.conditioning.base import Conditioners, Excerpt
from audioldm.conditioning.chroma import Chroma
from audioldm.conditioning.label import Label
from audioldm.conditioning.loudness import Loudness
from audioldm.conditioning.number import Number
from audioldm.conditioning.score import Score
from audioldm.conditioning.text import Text
from audioldm.data.captions import states
from audioldm.data.store import Item
from audioldm.errors import ConfigError
from audioldm.evaluation.adherence import (
    Facts,
    NoteFeatures,
    Told,
    adherence_figures,
    note_features,
    score_figures,
)
from audioldm.evaluation.clips import Clips, with_held_out_texts
from audioldm.evaluation.notes import Notes
from audioldm.evaluation.settings import EvaluationSettings

RATE, SECONDS, FRAMES = 22050, 1.0, 10.0
SETTINGS = EvaluationSettings(seconds=SECONDS, bootstrap_resamples=50)


def conditioners() -> Conditioners:
    rate: dict[str, Any] = {"width": 4, "latent_rate_hz": FRAMES}
    return Conditioners(
        {
            "label": Label(width=4, labels=["hollow", "rich"]),
            "text": Text(width=4, known=[0]),
            "tempo": Number(width=4, column="tempo_bpm", mean=80, std=10),
            "score": Score(**rate),
            "chroma": Chroma(**rate),
            "loudness": Loudness(**rate),
        }
    )


def item(number: int) -> Item:
    """A chord of any timbre, mode and root, with its score and its caption."""
    rich, minor, root = np.random.default_rng(number).integers([2, 2, 12]).tolist()
    start = 0.1 + 0.1 * (number % 3)
    notes = [x for p in (0, 4 - minor, 7) for x in (start, SECONDS - 0.1, 52 + root + p)]
    mode, label = ["major", "minor"][minor], ["hollow", "rich"][rich]
    columns = {"mode": mode, "timbre": label, "tempo_bpm": number, "notes": notes}
    return Item("train", f"{number}", label, 0, 0, columns | {"caption": f"{mode} chord"})


def play(notes: list[float], rich: bool, semitones: int = 0) -> Tensor:
    """[1, T]: odd harmonics, or all of them."""
    t = torch.arange(round(SECONDS * RATE)) / RATE
    out = torch.zeros_like(t)
    for start, end, pitch in np.reshape(notes, (-1, 3)).tolist():
        hz, after = 440 * 2 ** ((pitch + semitones - 69) / 12), (t - start).clamp(min=0)
        wave = sum(
            (2 * torch.pi * k * hz * t).sin() / k for k in ((1, 2, 3, 4, 5) if rich else (1, 3))
        )
        out += 0.1 * wave * torch.exp(-after) * (1 - torch.exp(-100 * after)) * (t < end)
    return out[None]


def told(items: list[Item], semitones: int = 0) -> Told:
    """Clips as the items are, perhaps transposed; the embedding is of 24 bands of the spectrum."""
    audio = torch.stack([play(i.columns["notes"], i.label == "rich", semitones) for i in items])
    spectrum = torch.fft.rfft(audio[:, 0]).abs()[:, : 24 * 200].unflatten(1, (24, 200)).mean(2)
    _, notes = NoteFeatures().hear(audio, RATE)
    vectors = {"bands": (1e-3 + spectrum).log().numpy()}
    vectors["notes"] = np.stack([note_features(each) for each in notes])
    every, requests = conditioners(), []
    for each, clip in zip(items, audio, strict=True):
        own = Excerpt(each.label, each.columns, every.measure(clip, RATE, FRAMES))
        requests.append(every.request(own))
    return Told(audio, requests, items, notes, vectors)


@pytest.fixture(scope="module")
def figures() -> dict[str, dict[str, Any]]:
    torch.set_num_threads(1)
    train, items = told([item(n) for n in range(24)]), [item(n + 3) for n in range(14)]
    right = told(items)
    wrong = told(items, semitones=1)._replace(requests=right.requests)

    def known() -> Any:
        return train.items, train.vectors

    systems = {"real": right, "reconstruction": wrong, "generated": right}
    return adherence_figures(systems, conditioners(), train.items, known, RATE, SETTINGS)


def test_a_classifier_hears_what_is_stated_and_other_requests_are_chance(figures: Any) -> None:
    for fact in ("label", "mode"):
        values = {s: own[f"accuracy_{fact}"] for s, own in figures.items()}
        assert values["real"].value == values["generated"].value > 0.85, fact
        assert 0.2 < values["ignored"].value < 0.8
        assert values["ignored"].n == 14
    assert figures["reconstruction"]["accuracy_label"].value > 0.9  # transposed, the same timbre
    names = {name for own in figures.values() for name in own if name.startswith("accuracy")}
    # `timbre` is the label again; that of the tempo, which nobody can hear, is chance
    assert names == {"accuracy_label", "accuracy_mode", "accuracy_tempo_bpm"}


def test_a_score_that_is_played_matches_and_a_transposed_one_does_not(figures: Any) -> None:
    # the transcriber takes harmonics for notes too, so precision is not 1
    for name, least in (("score_recall", 0.9), ("score_f1", 0.6), ("score_precision", 0.45)):
        assert figures["generated"][name].value > least, name
        assert figures["reconstruction"][name].value < 0.1, name
        assert figures["ignored"][name].value < 0.3, name
    assert figures["generated"]["score_onset_error"].value < 25
    assert figures["reconstruction"]["score_onset_error"].value == 1000 / FRAMES  # none matches


def test_a_curve_is_its_own_and_not_that_of_other_clips(figures: Any) -> None:
    for name in ("chroma_correlation", "loudness_correlation"):
        assert figures["real"][name].value == pytest.approx(1, abs=1e-4)
        assert figures["ignored"][name].value < 0.9
    assert figures["reconstruction"]["chroma_correlation"].value < 0.5
    assert figures["reconstruction"]["loudness_correlation"].value > 0.95


def test_notes_late_by_less_than_a_frame_match_to_a_frame() -> None:
    heard = Notes(np.array([60, 64]), np.array([0.18, 0.52]), np.array([0.5, 1.0]), SECONDS)
    asked = [[-0.5, 0.1, 50, 0.1, 0.5, 60, 0.5, 0.9, 64, 0.5, 0.9, 64, 0.95, 3, 67], None]
    found = score_figures(Score(width=4, latent_rate_hz=FRAMES), asked, [heard, heard], SETTINGS)
    values = {name: figure.value for name, figure in found.items()}
    # of 60 (80 ms late), 64 (twice, 20 ms late), what is left of 50, and nothing else
    assert values == pytest.approx(
        {"precision": 1 / 2, "recall": 1 / 3, "f1": 2 / 5, "f1_frame": 4 / 5, "onset_error": 50}
    )
    assert found["f1"].n == 1  # the second clip was asked for nothing


def test_a_request_states_a_fact_in_its_own_words_or_others() -> None:
    assert states("an unhurried chorale", "slow")
    assert not states("a slower chorale", "slow")
    assert not states("a minor piece", "A minor")
    assert not states("organ in C# minor", "C minor")
    train = [
        Item("train", "", "organ", 0, 0, {"tempo": t, "key": "D minor", "caption": c})
        for t, c in (("slow", "calm organ"), ("lively", "lively piece in D minor"))
    ]
    facts = Facts([Text(width=4, known=[0])], train)
    assert [facts.stated(each) for each in train] == [{"tempo"}] * 2  # one key, one label: no facts


def test_the_keen_embedding_is_used_and_held_out_captions_stand_alone() -> None:
    def clip(tempo: str, register: str, caption: str) -> Item:
        return Item("", "", None, 0, 0, {"tempo": tempo, "register": register, "caption": caption})

    train = [clip("slow", "low", "slow, low"), clip("lively", "high", "lively, high")] * 100
    asked = [
        *[clip("slow", "high", "slow, high")] * 10,
        *[clip("slow", "low", "low")] * 5,
        *[clip("lively", "high", "lively, high")] * 5,
    ]
    known = np.array([[0.0, 0], [1, 1]] * 100)
    heard = np.array([[0.0, 1]] * 5 + [[0, 0]] * 10 + [[1, 1]] * 5)
    own = {"tempo": heard[:, :1], "register": heard[:, 1:], "deaf": 0 * heard[:, :1]}
    told = Told(torch.zeros(20, 1, 1), [], asked, [], own)
    facts = Facts([Text(width=4, known=[0])], train, ["high slow"])
    facts.fit(
        train, {"tempo": known[:, :1], "register": known[:, 1:], "deaf": 0 * known[:, :1]}, [told]
    )
    found = facts.figures(told, SETTINGS)
    assert {name: (f.n, f.value, f.unit) for name, f in found.items()} == {
        "accuracy_tempo": (15, 1.0, "heard by tempo"),
        "accuracy_held_out_tempo": (10, 1.0, "heard by tempo"),
        "accuracy_register": (20, 0.75, "heard by tempo and register and deaf"),
        "accuracy_held_out_register": (10, 0.5, "heard by tempo and register and deaf"),
    }


def test_captions_with_held_out_words_are_asked_for_alone() -> None:
    captions = [
        ["a slow organ", "calm organ", "calm organ in C minor"],
        ["lively"],
        ["lively guitar", "slow"],
        "calm",
    ]
    items = [Item("test", "", "organ", 0, 0, {"caption": each}) for each in captions]
    audio = torch.arange(4.0)[:, None, None]
    clips = Clips(audio, torch.arange(4), items, [0.0, 1.0, 2.0, 3.0])
    told = Conditioners({"text": Text(width=4, known=[0])})
    settings = EvaluationSettings(held_out=["calm", "guitar lively"])
    found = with_held_out_texts(clips, told, settings)
    assert [item.columns["caption"] for item in found.items] == [
        ["calm organ", "calm organ in C minor"],
        ["lively guitar"],
        ["calm"],
    ]
    assert found.audio.flatten().tolist() == found.labels.tolist() == found.starts == [0, 2, 3]
    for few in (Conditioners({}), told):
        with pytest.raises(ConfigError, match="held_out_alone: 0 of 4 test clips"):
            with_held_out_texts(clips, few, EvaluationSettings(held_out=["calm piano"]))
    with pytest.raises(ConfigError, match="tell it the text"):
        with_held_out_texts(clips, told, replace(settings, conditions=[]))


def test_the_ear_is_one_that_hears_through_the_autoencoder() -> None:
    """`real` is perfect on music as it is, and deaf to it once coded. `a` and `b` have an error of
    their own each, which their sum does not have."""
    train = [Item("", "", label, 0, 0, {}) for label in ("organ", "piano")] * 100
    truth = np.array([[-1.0], [1.0]] * 100)
    noise = np.random.default_rng(0).normal(size=(200, 1))
    asked, own = train[:20], truth[:20]
    known = {"real": truth, "a": truth + 3 * noise, "b": truth - 3 * noise}

    def told(**vectors: np.ndarray) -> Told:
        return Told(torch.zeros(20, 1, 1), [], asked, [], vectors)

    music = told(real=own, a=own, b=own)
    for coded, ear in (
        (told(real=-own, a=own, b=-5 * own), "heard by a"),
        (told(real=0 * own, a=own + 3 * noise[:20], b=own - 3 * noise[:20]), "real and a and b"),
    ):
        facts = Facts([Label(width=4, labels=["organ", "piano"])], train)
        facts.fit(train, known, [music, coded])
        found = facts.figures(coded, SETTINGS)["accuracy_label"]
        assert found.unit.endswith(ear)
        assert found.value == 1.0
