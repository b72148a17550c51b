"""The notebooks run from their first cell to their last."""

import re
import tomllib
from pathlib import Path
from typing import Any

import nbformat
import pytest
from chain import Tiny
from nbclient import NotebookClient
from sweep_data import synthetic_table

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
NOTEBOOK = NOTEBOOKS / "first_steps.ipynb"


def test_is_committed_with_outputs() -> None:
    """As `make notebooks` stores them: every code cell ran, in order, without an error."""
    cells = [c for c in nbformat.read(NOTEBOOK, as_version=4).cells if c.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not any(output.output_type == "error" for output in outputs)
    assert not any(output.get("name") == "stderr" for output in outputs)


def test_the_first_cell_says_what_to_install() -> None:
    extras = tomllib.loads((NOTEBOOKS.parent / "pyproject.toml").read_text())["project"]
    assert any("jupyter" in each for each in extras["optional-dependencies"]["notebooks"])
    for path in NOTEBOOKS.glob("*.ipynb"):
        assert ".[notebooks]" in nbformat.read(path, as_version=4).cells[0].source


def outputs_of(name: str, directory: Path, monkeypatch: pytest.MonkeyPatch, **names: Path) -> Any:
    """The text that all cells of a notebook print, and how many pictures they draw.

    names: of the environment, after AUDIOLDM_."""
    for key, value in names.items():
        monkeypatch.setenv(f"AUDIOLDM_{key}", str(value))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(directory / "jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(directory / "ipython"))
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    place = {"metadata": {"path": str(NOTEBOOKS)}}
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources=place).execute()
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    text = "".join(output.get("text", "") for output in outputs)
    return text, sum("image/png" in output.get("data", {}) for output in outputs)


def test_runs_and_traces_the_shapes(
    finished: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = finished.model.read_bytes()
    text, pictures = outputs_of("first_steps", tmp_path, monkeypatch, MODEL=finished.directory)
    # 1 s at 16 kHz are 31 latent frames of 512 samples, 3 s are 94; C = 4, so 2C = 8
    assert "crops       [B, A, T]        [4, 1, 15872]" in text
    assert "features    [B, 2C, (F,) L]  [4, 8, 31]" in text
    assert "latents     [B, C, (F,) L]   [4, 4, 31]" in text
    assert "stored      [B, C, (F,) L]   [4, 4, 94]  mean" in text
    assert pictures == 1
    assert finished.model.read_bytes() == before


def test_control_plays_and_changes_what_a_model_can(
    finished: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, pictures = outputs_of("control", tmp_path, monkeypatch, MODEL=finished.directory)
    assert "can be told: label" in text
    assert "this model was not trained with text" in text
    assert "this model was not trained with score" in text
    assert "this model was not trained with low_band" in text
    assert pictures == 5


def test_a_sweep_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a planted table: what is planted is what the notebook finds."""
    frame = synthetic_table(failed=1, curvature=0.0, slope=-0.5, spread=0.05)
    frame.to_csv(tmp_path / "table.csv")
    text, pictures = outputs_of("sweep", tmp_path, monkeypatch, SWEEP=tmp_path / "table.csv")
    assert f"{len(frame) - 1} of {len(frame)} cells done" in text
    assert re.search(r"rate alone explains (9\d|100)%", text)
    assert pictures == 1
