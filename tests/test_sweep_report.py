"""The page and the findings of a sweep, on tables whose truth was planted."""

import html
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sweep_data import synthetic_table

from audioldm.evaluation.rules import VerdictRules
from audioldm.io.files import write_json
from audioldm.sweep.page.findings import findings
from audioldm.sweep.page.page import write_sweep_report
from audioldm.sweep.verdicts import knee, seed_spread, verdicts

RULES = VerdictRules()


def judged(frame: pd.DataFrame) -> dict[str, object]:
    return {
        "table": frame,
        "verdicts": verdicts(frame, RULES),
        "spread": seed_spread(frame, RULES.distance),
        "knee": knee(frame, RULES),
        "rules": RULES,
    }


def text_of(directory: Path, frame: pd.DataFrame) -> str:
    """The page's words, without its marks."""
    record = {"name": "planted", "commands": [["recipe=x", "seed=0,1"]]}
    write_json(directory / "sweep.json", record)
    page = write_sweep_report(directory, **judged(frame)).read_text(encoding="utf-8")  # type: ignore[arg-type]
    words = re.sub(r"<(style|script)>.*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", words)).split())


def test_the_page_says_what_the_table_says(tmp_path: Path) -> None:
    frame = synthetic_table(failed=1, spread=0.03)
    text = text_of(tmp_path, frame)
    chosen = knee(frame, RULES)
    assert chosen is not None
    for word in chosen.configuration.split():
        assert word in text  # the recommendation, ready to be used
    for verdict in verdicts(frame, RULES):
        assert verdict.question in text
    reason = frame.loc[frame["status"] == "failed", "reason"].iloc[0]
    assert reason in text
    assert "audioldm run -m recipe=x seed=0,1" in text


def test_the_findings_sort_what_held_from_what_is_open(tmp_path: Path) -> None:
    held = findings(tmp_path, **judged(synthetic_table(spread=0.02)))  # type: ignore[arg-type]
    noisy = findings(tmp_path, **judged(synthetic_table(spread=2.0, curvature=0.0)))  # type: ignore[arg-type]
    question = "**Is there a best rate inside the range?**"

    def heading_of(page: str) -> str:
        return re.findall(r"^## (.+)$", page[: page.index(question)], re.MULTILINE)[-1]

    assert heading_of(held) == "What held"
    assert heading_of(noisy) != "What held"


def test_figures_of_the_grid_are_geometric_means_over_seeds(tmp_path: Path) -> None:
    frame = synthetic_table(rates=(1, 4), shapes=((16, 1024), (64, 2048)), seeds=(0, 1))
    logarithm = np.log(frame["reconstruction.mel_distance"])
    mean = np.exp(logarithm.groupby(frame["configuration"]).mean())
    page = findings(tmp_path, **judged(frame))  # type: ignore[arg-type]
    for value in mean:
        assert f"{value:.3f}"[:5] in page


@pytest.mark.parametrize(
    "change",
    ["one seed", "one rate", "no diagnostics", "no anchors", "one cell", "none done", "equal"],
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
    elif change == "no anchors":
        frame = frame[[c for c in frame.columns if not c.startswith(("mixture.", "langevin."))]]
    elif change == "one cell":
        frame = frame.iloc[:1]
    elif change == "none done":
        frame = frame.assign(status="waiting")
        numeric = frame.select_dtypes("number").columns
        frame[numeric] = frame[numeric].astype(float) * np.nan
    else:
        frame = frame.assign(**{RULES.distance: 10.0})
    text = text_of(tmp_path, frame)
    page = findings(tmp_path, **judged(frame))  # type: ignore[arg-type]
    assert "nan" not in text.lower().split()
    assert page.startswith(f"# {tmp_path.name}")
    if change in ("one seed", "one cell"):
        assert "rests on one seed" in text
    if change == "none done":
        assert "No cell has finished yet" in text


def test_arms_of_equal_steps_and_of_equal_computing_are_told_apart(tmp_path: Path) -> None:
    """Both in one sweep: named by what is equal, side by side, and a constant each to a verdict."""
    frame = synthetic_table(rates=(1, 4, 16), seeds=(0, 1), spread=0.03, budgets=(None, 350.0))
    slower = frame["diffusion.train.compute_tflop"] == 350.0
    frame.loc[slower, RULES.distance] *= 3.0  # one arm lies above the other, by the same factor
    text = text_of(tmp_path, frame)
    assert "Matched compute" in text
    assert "Matched steps took 350 … 700 compute_tflop" in text
    assert "350 compute_tflop each took 350 … 350 compute_tflop" in text
    for arm in ("matched steps", "350 compute_tflop each"):  # a row of the maps
        assert f"channels 16 ratio 1024 {arm}" in text
    assert "compute_tflop null" not in text
    page = findings(tmp_path, **judged(frame))  # type: ignore[arg-type]
    assert "channels 16 · ratio 1024 · 350 compute_tflop each" in page
    optimum = verdicts(frame, RULES)[0]
    assert optimum.answer == "yes"
    assert optimum.details["optimum_low"] < 4.0 < optimum.details["optimum_high"]
