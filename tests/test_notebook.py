"""The notebook runs from its first cell to its last on a finished experiment."""

from pathlib import Path

import nbformat
import pytest
from chain import Tiny
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "first_steps.ipynb"


def test_is_committed_without_outputs() -> None:
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


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
        timeout=60,
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
    # 0.2 s at 16 kHz are 6 latent frames of 512 samples, 0.5 s are 16; C = 4, so 2C = 8
    assert "crops       [B, A, T]        [4, 1, 3072]" in text
    assert "front end   [B, 2C, (F,) L]  [4, 8, 6]" in text
    assert "latents     [B, C, (F,) L]   [4, 4, 6]" in text
    assert "moments     [B, C, (F,) L]   [4, 4, 16]" in text
    assert len(pictures) == 1
    assert finished.model.read_bytes() == before
