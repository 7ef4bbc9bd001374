"""The notebook for newcomers, run from top to bottom."""

import os
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

from tests.devices import xla_flags
from tests.waiting import PATIENCE

NOTEBOOK = Path("docs/quickstart.ipynb")


def printed(notebook):
    """What the cells of a notebook have written, without results."""
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", ()))
    return "".join(output.text for output in outputs if output.output_type == "stream")


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    environment = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla_flags(1),
        "PYTHONPATH": os.getcwd(),
        "TMPDIR": str(tmp_path),
        # Where Jupyter finds kernels: that of this Python and no other.
        "JUPYTER_PATH": str(Path(sys.prefix) / "share/jupyter"),
        "JUPYTER_DATA_DIR": str(tmp_path / "jupyter"),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for name in ("GROUPVIT_CHECKPOINT", "GROUPVIT_PHOTO"):
        monkeypatch.delenv(name, raising=False)
    client = nbclient.NotebookClient(
        notebook, timeout=PATIENCE, resources={"metadata": {"path": "docs"}}
    )
    client.execute()  # raises at the first cell that fails
    assert "pixels right" in printed(notebook)
    assert "No published checkpoint given" in printed(notebook)
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 2


def test_the_notebook_is_kept_without_results():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert [cell for cell in notebook.cells if cell.get("outputs")] == []
