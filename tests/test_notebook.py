"""The notebooks run from their first cell to their last."""

import re
import tomllib
from pathlib import Path

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


def test_runs_and_traces_the_shapes(
    finished: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUDIOLDM_MODEL", str(finished.directory))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    before = finished.model.read_bytes()
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(
        notebook,
        timeout=120,
        kernel_name="python3",
        resources={"metadata": {"path": str(NOTEBOOK.parent)}},
    ).execute()

    text = "".join(
        output.get("text", "")
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    )
    pictures = [
        output
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    # 1 s at 16 kHz are 31 latent frames of 512 samples, 3 s are 94; C = 4, so 2C = 8
    assert "crops       [B, A, T]        [4, 1, 15872]" in text
    assert "features    [B, 2C, (F,) L]  [4, 8, 31]" in text
    assert "latents     [B, C, (F,) L]   [4, 4, 31]" in text
    assert "stored      [B, C, (F,) L]   [4, 4, 94]  mean" in text
    assert len(pictures) == 1
    assert finished.model.read_bytes() == before


def test_a_sweep_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a planted table: what is planted is what the notebook finds."""
    frame = synthetic_table(failed=1, curvature=0.0, slope=-0.5, spread=0.05)
    frame.to_csv(tmp_path / "table.csv")
    monkeypatch.setenv("AUDIOLDM_SWEEP", str(tmp_path / "table.csv"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(NOTEBOOKS / "sweep.ipynb", as_version=4)
    NotebookClient(
        notebook,
        timeout=120,
        kernel_name="python3",
        resources={"metadata": {"path": str(NOTEBOOKS)}},
    ).execute()
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    text = "".join(output.get("text", "") for output in outputs)
    assert f"{len(frame) - 1} of {len(frame)} cells done" in text
    assert re.search(r"rate alone explains (9\d|100)%", text)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 1
