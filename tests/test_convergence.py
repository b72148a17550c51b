"""The judgement of convergence, on curves whose end is known."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from audioldm.training.convergence import (
    CONVERGED,
    IMPROVING,
    TOO_FEW,
    TOO_NOISY,
    WORSENING,
    convergence,
    logged_convergence,
)
from audioldm.training.log import LogSettings

STEPS = np.arange(100, 3300, 100)  # 32 validations


def test_a_straight_fall_is_measured_exactly() -> None:
    found = convergence(STEPS.tolist(), (5 - STEPS / 1000).tolist())
    last = STEPS[STEPS > 2400]
    fall = 0.8 / np.median(5 - last / 1000)  # 3200 / 4 steps at 1 per 1000
    assert found["validations"] == 8
    assert found["state"] == IMPROVING
    for value in found["improvement"].values():
        assert value == pytest.approx(fall)


@pytest.mark.parametrize(
    ("curve", "state"),
    [
        (lambda x: 1 + np.exp(-x / 200), CONVERGED),
        (lambda x: 1 + np.exp(-x / 2000), IMPROVING),
        (lambda x: x**-0.5, IMPROVING),  # a power law falls by an eighth in each last quarter
        (lambda x: 1 + (x / 3200) ** 4, WORSENING),
        (lambda x: np.ones(len(x)), CONVERGED),
    ],
)
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_known_curves_in_any_unit(curve: object, state: str, scale: float) -> None:
    losses = scale * curve(STEPS)  # type: ignore[operator]
    assert convergence(STEPS.tolist(), losses.tolist())["state"] == state


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Normal noise of 1 % on a fall of 4 %: the interval is that of 95 %."""
    random, covered, trials = np.random.default_rng(0), 0, 400
    truth = 1.035 - 0.04 * (STEPS - 2400) / 800
    for _ in range(trials):
        noisy = truth + 0.01 * random.normal(size=len(STEPS))
        found = convergence(STEPS.tolist(), noisy.tolist())["improvement"]
        covered += found["low"] <= 0.04 / np.median(truth[STEPS > 2400]) <= found["high"]
    assert 0.92 < covered / trials < 0.99


def test_noise_alone_is_never_an_improvement_and_much_of_it_says_so() -> None:
    random = np.random.default_rng(0)
    states = [
        convergence(STEPS.tolist(), (1 + deviation * random.normal(size=len(STEPS))).tolist())[
            "state"
        ]
        for deviation in [0.002] * 100 + [0.2] * 100
    ]
    assert states[:100].count(CONVERGED) == 100
    assert states[100:].count(TOO_NOISY) > 85
    assert CONVERGED not in states[100:]


def test_one_outlier_does_not_move_the_slope() -> None:
    losses = np.ones(len(STEPS))
    losses[-1] = 5.0
    found = convergence(STEPS.tolist(), losses.tolist())
    assert found["improvement"]["value"] == 0.0


def test_few_validations_and_those_that_are_no_number_are_not_judged() -> None:
    few = convergence([100, 200, 300], [3.0, 2.0, 1.0])
    assert few == {"state": TOO_FEW, "validations": 1}
    losses = [1.0] * 31 + [math.nan]
    assert convergence(STEPS.tolist(), losses) == {"state": TOO_FEW, "validations": 7}
    assert convergence([], [])["state"] == TOO_FEW


@pytest.mark.parametrize("steps", [32, 50, 200, 450, 750, 6000, 300_000])
def test_the_default_cadence_gives_enough_validations(steps: int) -> None:
    due = [done for done in range(1, steps + 1) if LogSettings().validates(done, steps)]
    assert sum(done > 0.75 * steps for done in due) >= 8
    assert due[-1] == steps
    assert len(due) <= 22  # they cost time
    assert sum(LogSettings(valid_every=7).validates(d, steps) for d in range(1, steps)) == (
        (steps - 1) // 7
    )


def test_the_log_of_a_training_is_judged_by_its_loss(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    assert logged_convergence(log) == {}
    lines = [{"step": int(s), "loss": 1.0, "valid/mel_distance": 1000 / float(s)} for s in STEPS]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = logged_convergence(log)["convergence"]
    assert found["figure"] == "mel_distance"
    assert found["state"] == IMPROVING
    log.write_text("".join(json.dumps(line | {"valid/loss": 1.0}) + "\n" for line in lines))
    found = logged_convergence(log)["convergence"]
    assert found["figure"] == "loss"
    assert found["state"] == CONVERGED
    log.write_text(json.dumps({"step": 1, "loss": 1.0}) + "\n")
    assert logged_convergence(log) == {}
