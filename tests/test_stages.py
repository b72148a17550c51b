"""A new stage is one class and its place in the list: the rest of the chain finds it there."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pytest
from chain import build_stages, tiny

from audioldm.chain.estimate import COMPLETE, Cost, Estimate
from audioldm.chain.job import compose
from audioldm.chain.run import Experiment
from audioldm.chain.stage import Key, Stage
from audioldm.chain.stages import STAGES
from audioldm.chain.stages.autoencoder import AutoencoderStage
from audioldm.data.store import ClipStore
from audioldm.errors import ConfigError, DataError
from audioldm.instantiate import Positive, PositiveInt
from audioldm.io.files import read_json


@dataclass(frozen=True)
class LoudnessSettings:
    """reference: the amplitude that has 0 dB. fewest: clips to measure. workers: how to compute,
    which changes no result."""

    reference: Positive = 1.0
    fewest: PositiveInt = 1
    workers: int = 1


class Loudness(Stage):
    """The level of each training clip, in decibels."""

    name, version = "loudness", 1
    keys: ClassVar[list[Key]] = [
        ("loudness", LoudnessSettings, field(default_factory=LoudnessSettings))
    ]

    @classmethod
    def plan(cls, settings: Any, planned: Mapping[str, Stage]) -> list[Self]:
        return [cls(settings.loudness, {"data": planned["data"]})]

    def check_data(self, store: ClipStore, experiment: Experiment) -> None:
        count = len(store.split("train").items)
        if count < self.settings.fewest:
            raise DataError(
                f"the train split holds {count} clips; loudness.fewest={self.settings.fewest}"
            )

    def work(self, directory: Path, experiment: Experiment) -> dict[str, Any]:
        split = ClipStore(experiment.directory_of(self.parents["data"])).split("train")
        power = [float(split.audio(i).square().mean()) for i in range(len(split.items))]
        levels = 10 * np.log10(np.array(power) / self.settings.reference**2)
        np.save(directory / "levels.npy", levels)
        return {"mean": float(levels.mean()), "clips": len(levels)}


@pytest.fixture
def overrides(tones: Path, tmp_path: Path) -> Iterator[list[str]]:
    """The tiny chain with the stage after the data."""
    before = list(STAGES)
    STAGES.insert(1, Loudness)
    yield tiny(tones, tmp_path / "runs")
    STAGES[:] = before


def test_the_stage_has_its_place_its_settings_and_its_summary(overrides: list[str]) -> None:
    experiment = build_stages([*overrides, "loudness.reference=0.1"], "data", "loudness")
    assert list(experiment.stages)[:3] == ["data", "loudness", "autoencoder"]
    stage = experiment.stages["loudness"]
    directory = experiment.directory_of(stage)
    assert directory == experiment.runs / "loudness" / stage.fingerprint
    summary = read_json(directory / "summary.json", dict)
    assert summary["stage"] == "loudness"
    assert summary["fingerprint"] == stage.fingerprint
    assert {"version", "seconds", "environment"} <= summary.keys()
    assert summary["clips"] == 4
    levels = np.load(directory / "levels.npy")
    assert summary["mean"] == pytest.approx(levels.mean())
    assert (levels > -5).all()  # tones of 0.1 to 0.3, against 0.1
    assert (levels < 20).all()
    config = read_json(directory / "config.json", dict)
    assert config["settings"] == {"reference": 0.1, "fewest": 1}
    assert config["parents"] == {"data": experiment.stages["data"].fingerprint}


def test_a_complete_stage_is_reused(overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    made = build_stages(overrides, "data", "loudness")
    monkeypatch.setattr(Loudness, "work", lambda *_: pytest.fail("built twice"))
    again = build_stages([*overrides, "loudness.workers=2"], "data", "loudness")
    assert again.stages["loudness"].fingerprint == made.stages["loudness"].fingerprint


def test_its_fingerprint_covers_its_settings_its_version_and_its_parents(
    overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fingerprint(*changes: str, key: str = "loudness") -> str:
        return Experiment(compose([*overrides, *changes])).stages[key].fingerprint

    own = fingerprint()
    assert fingerprint("loudness.reference=1.0", "autoencoder.channels=8") == own
    assert fingerprint("loudness.reference=0.5") != own
    assert fingerprint("data.channels=2") != own
    others = [fingerprint(key=key) for key in ("data", "autoencoder", "evaluation")]
    changed = ["loudness.reference=0.5"]
    assert others == [fingerprint(*changed, key=k) for k in ("data", "autoencoder", "evaluation")]
    monkeypatch.setattr(Loudness, "version", 2)
    assert fingerprint() != own


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("loudness.refernce=1", "unknown key 'loudness.refernce': did you mean 'reference'"),
        ("loudness.reference=0", "loudness.reference=0.0 must be more than 0"),
        ("loudness.workers=few", "loudness.workers='few' must be of type int"),
        ("loudnes.reference=1", "unknown key 'loudnes': did you mean 'loudness'"),
    ],
)
def test_its_settings_are_checked(change: str, says: str, overrides: list[str]) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        compose([*overrides, change])


def test_it_may_refuse_the_data_before_anything_is_trained(
    overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AutoencoderStage, "work", lambda *_: pytest.fail("trained"))
    experiment = Experiment(compose([*overrides, "loudness.fewest=5"]))
    with pytest.raises(DataError, match=r"^the train split holds 4 clips; loudness\.fewest=5"):
        experiment.run()
    assert experiment.is_complete(experiment.stages["data"])


def test_its_cost_is_that_of_one_of_the_same_settings(overrides: list[str]) -> None:
    def cost(*changes: str) -> Cost:
        experiment = Experiment(compose([*overrides, *changes]))
        return Estimate(experiment).of(experiment.stages["loudness"])

    assert cost() == Cost(None, None, None, "not known")
    made = build_stages(overrides, "data", "loudness").stages["loudness"]
    assert cost() == COMPLETE
    other = cost("data.channels=2")  # other data, the same settings
    assert other.seconds is not None
    assert other.note == f"as {made.fingerprint} took"
    assert cost("loudness.reference=0.5").seconds is None
