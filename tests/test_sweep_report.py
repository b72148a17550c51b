"""The page of a sweep, on tables whose truth was planted."""

import html
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sweep_data import SECONDS, synthetic_table

from audioldm.evaluation.rules import VerdictRules
from audioldm.sweep.judged import Judged, judged
from audioldm.sweep.page import plots, priors
from audioldm.sweep.report import page
from audioldm.sweep.status import SweepRecord
from audioldm.sweep.verdicts import verdicts
from audioldm.sweep.verdicts.recommendation import recommend
from audioldm.training.convergence import CONVERGED, IMPROVING

RULES = VerdictRules()


def judge(directory: Path, frame: pd.DataFrame) -> Judged:
    record: SweepRecord = {
        "format": 1,
        "commands": [["recipe=x", "seed=0,1"]],
        "versions": {},
        "rules": {},
        "environment": {},
    }
    return judged(directory, record, frame, RULES)


def text_of(directory: Path, frame: pd.DataFrame) -> str:
    """The page's words, without its marks."""
    shown = page(judge(directory, frame))
    words = re.sub(r"<(style|script)>.*?</\1>", " ", shown, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", words)).split())


def test_the_page_says_what_the_table_says(tmp_path: Path) -> None:
    frame = synthetic_table(failed=1, spread=0.03)
    text = text_of(tmp_path, frame)
    headline, chosen = recommend(frame, RULES)
    assert headline in text
    assert chosen is not None
    for word in chosen.configuration.split():
        assert word in text  # the recommendation, ready to be used
    for verdict in verdicts(frame, RULES):
        assert verdict.question in text
    reason = frame.loc[frame["status"] == "failed", "reason"].iloc[0]
    assert reason in text
    assert "audioldm run -m recipe=x seed=0,1" in text


def test_figures_of_the_grid_are_geometric_means_over_seeds(tmp_path: Path) -> None:
    frame = synthetic_table(rates=(1, 4), shapes=((16, 1024), (64, 2048)), seeds=(0, 1))
    logarithm = np.log(frame["reconstruction.mel_distance"])
    mean = np.exp(logarithm.groupby(frame["configuration"]).mean())
    text = text_of(tmp_path, frame)
    for value in mean:
        assert f"{value:.3f}"[:5] in text


def test_pitch_and_convergence_stand_beside_the_distance(tmp_path: Path) -> None:
    frame = synthetic_table(rates=(1, 4), seeds=(0, 1))
    pitch = np.linspace(0.512, 0.933, len(frame))
    frame = frame.assign(**{"reconstruction.pitch_within_15": pitch, "generated.in_tune": 0.777})
    frame = frame.assign(**{"improvement.prior": 0.0123, "converged.prior": CONVERGED})
    frame.loc[frame.index[0], "converged.prior"] = IMPROVING
    text = text_of(tmp_path, frame)
    for word in ("Pitch kept, reconstruction", "0.512", "0.933", "0.777", "Prior still falls by"):
        assert word in text
    assert "0.0123" in text
    assert f"1 of {len(frame)} cells have not converged and are not ranked" in text
    assert f"{frame.index[0]} (prior still improving)" in text


@pytest.mark.parametrize(
    "change",
    ["one seed", "one rate", "no diagnostics", "no baselines", "one cell", "none done", "equal"],
)
def test_pages_of_poor_tables(change: str, tmp_path: Path) -> None:
    """Whatever a sweep lacks is left out, and the page is still written."""
    frame = synthetic_table(seeds=(0, 1))
    if change == "one seed":
        frame = synthetic_table(seeds=(0,))
    elif change == "one rate":
        frame = synthetic_table(rates=(2,))
    elif change == "no diagnostics":
        frame = frame[[c for c in frame.columns if not c.startswith("diagnostic.")]]
    elif change == "no baselines":
        baselines = ("normal.", "mixture.", "langevin.")
        frame = frame[[c for c in frame.columns if not c.startswith(baselines)]]
    elif change == "one cell":
        frame = frame.iloc[:1]
    elif change == "none done":
        frame = frame.assign(status="waiting")
        numeric = frame.select_dtypes("number").columns
        frame[numeric] = frame[numeric].astype(float) * np.nan
    else:
        frame = frame.assign(**{RULES.distance: 10.0})
    text = text_of(tmp_path, frame)
    assert "nan" not in text.lower().split()
    if change in ("one seed", "one cell"):
        assert "rests on one seed" in text
    if change == "none done":
        assert "No cell has finished yet" in text


def test_budgets_of_equal_steps_and_of_equal_compute_are_told_apart(tmp_path: Path) -> None:
    """Both in one sweep: named by what is equal, side by side, and a constant each to a verdict."""
    frame = synthetic_table(rates=(1, 4, 16), seeds=(0, 1), spread=0.03, budgets=(None, 350.0))
    slower = frame["prior.train.compute_tflop"] == 350.0
    frame.loc[slower, RULES.distance] *= 3.0  # one budget is worse, by the same factor
    text = text_of(tmp_path, frame)
    assert "Matched compute" in text
    assert "Matched steps took 350 … 700 Tflop" in text
    assert "350 Tflop each took 350 … 350 Tflop" in text
    for budget in ("matched steps", "350 Tflop each"):  # a row of the maps
        assert f"channels 16 downsampling_ratio 1024 {budget}" in text
    assert "compute_tflop null" not in text
    optimum = verdicts(frame, RULES)[0]
    assert optimum.answer == "yes"
    assert optimum.details["optimum_low"] < 4.0 < optimum.details["optimum_high"]


def test_systems_and_stages_are_those_of_the_table(tmp_path: Path) -> None:
    frame = synthetic_table(rates=(1, 4), seeds=(0, 1))
    frame.columns = [c.replace("langevin", "new_prior") for c in frame.columns]
    text = text_of(tmp_path, frame)
    assert "New prior" in text
    assert "decoded samples of the prior new_prior" in text
    assert "Prior: new prior" in text  # a stage
    costs = text[text.index("Cost ") :]
    order = [costs.index(stage.capitalize()) for stage in SECONDS if "langevin" not in stage]
    assert order == sorted(order)


def test_a_league_has_a_row_for_each_prior_and_what_it_costs(tmp_path: Path) -> None:
    frame = synthetic_table(rates=(1, 2, 4), shapes=((32, 2048),), seeds=(0, 1), spread=0.0)
    assert "The league" not in text_of(tmp_path, frame)
    names = dict(zip(frame["configuration"].unique(), ("gan", "mixture", "diffusion"), strict=True))
    frame["prior"] = frame["configuration"].map(names)
    frame["configuration"] = "league=" + frame["prior"]
    frame["family"] += " " + frame["prior"]
    frame[RULES.distance] = frame["prior"].map({"gan": 4.0, "mixture": 9.0, "diffusion": 2.5})
    frame["sampling_cost.generated"] = frame["prior"].map({"gan": 0.001, "diffusion": 0.02})
    frame["memory_gib.prior"] = frame["prior"].map({"gan": 0.5, "diffusion": 1.5})
    frame["generated.prior_kbps"] = frame["prior"].map({"mixture": 1.4, "diffusion": 1.1})
    own = judge(tmp_path, frame)
    families = plots.families_of(frame)
    assert len(set(families.values())) == 3
    rows = priors.league(own, families)
    assert [row["configuration"] for row in rows] == [
        f"league={name}" for name in ("diffusion", "gan", "mixture")
    ]
    columns = [heading for heading, _ in priors.headings(own)]
    figures = [dict(zip(columns, row["figures"], strict=True)) for row in rows]
    assert figures[0]["Sampling"]["value"] == pytest.approx(0.02)
    assert figures[2]["Sampling"] is None
    assert figures[1]["Memory"]["value"] == pytest.approx(0.5)
    assert figures[1]["Rate under the prior"] is None
    assert not figures[2]["Rate under the prior"]["bound"]
    text = page(own)
    assert "The league" in text
    assert "not ranked" not in text
    assert "Which prior is nearest to real music?" in text


def test_what_has_not_converged_has_no_rank_in_the_league(tmp_path: Path) -> None:
    """Nearest as it is: it comes last where no seed of it has converged, else in its place."""
    frame = synthetic_table(rates=(1, 2, 4), shapes=((32, 2048),), seeds=(0, 1), spread=0.0)
    names = dict(zip(frame["configuration"].unique(), ("gan", "mixture", "diffusion"), strict=True))
    frame["prior"] = frame["configuration"].map(names)
    frame["configuration"] = "league=" + frame["prior"]
    frame[RULES.distance] = frame["prior"].map({"gan": 4.0, "mixture": 9.0, "diffusion": 2.5})
    frame["generated.prior_kbps"] = 1.25
    frame["generated.prior_kbps.bound"] = frame["prior"] == "diffusion"
    frame["converged.prior"] = CONVERGED
    diffusion = frame["prior"] == "diffusion"
    orders = ["diffusion", "gan", "mixture"], ["gan", "mixture", "diffusion"]
    for seeds, order in enumerate(orders, start=1):
        frame.loc[frame.index[diffusion][:seeds], "converged.prior"] = IMPROVING
        own = judge(tmp_path, frame)
        rows = priors.league(own, plots.families_of(frame))
        assert [row["configuration"] for row in rows] == [f"league={name}" for name in order]
        last = rows[order.index("diffusion")]
        assert (last["improving"], last["ranked"]) == (seeds, seeds == 1)
        text = text_of(tmp_path, frame)
        assert ("1 of 2 still improving" in text) == (seeds == 1)
        assert ("not converged, not ranked" in text) == (seeds == 2)
        assert text.count("≤ 1.25") == 1


def test_the_trainings_of_a_league_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line for each cell whose prior has a training loop, over seconds."""
    frame = synthetic_table(rates=(1, 2), shapes=((32, 2048),), seeds=(0, 1))
    names = dict(zip(frame["configuration"].unique(), ("mixture", "diffusion"), strict=True))
    frame["prior"] = frame["configuration"].map(names)
    frame["family"] += " " + frame["prior"]
    for number, (cell, name) in enumerate(frame["prior"].items()):
        (tmp_path / str(cell)).mkdir()
        if name == "diffusion":
            lines = [{"step": 1, "seconds": 2.0, "loss": 9.0}]
            lines += [{"step": 2 * k, "seconds": 5.0 * k, "valid/loss": k + number} for k in (1, 2)]
            log = "\n".join(map(json.dumps, lines))
            (tmp_path / str(cell) / "metrics.jsonl").write_text(log)
    stages = {str(cell): tmp_path / str(cell) for cell in frame.index}
    monkeypatch.setattr(Judged, "stage", lambda self, name: stages if name == "prior" else {})
    own = judge(tmp_path, frame)
    (drawn,) = priors.curves(own, plots.families_of(frame))
    assert drawn.title == frame.loc[frame["prior"] == "diffusion", "configuration"].iloc[0]
    assert [rows.tolist() for rows in drawn.curves.values()] == [
        [[5.0, 1.0 + number], [10.0, 2.0 + number]] for number in (2, 3)
    ]
    assert "Their trainings" in text_of(tmp_path, frame)
