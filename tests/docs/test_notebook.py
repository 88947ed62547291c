"""The notebook runs from its first cell to its last, with its pictures, and is committed without what it shows."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs" / "tutorials" / "pretrain_and_look.ipynb"
# The demo on a tenth of its digits.
SMALL = """import dataclasses
import torch
from simclr_fast.data import datasets
whole = datasets.mnist5k()
part = lambda source: source.subset(torch.arange(0, len(source), 10))
small = dataclasses.replace(whole, train=part(whole.train), labelled=part(whole.labelled), test=part(whole.test))
datasets.mnist5k = lambda: small"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> NotebookNode:
    """The notebook with what its cells show."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    folder = tmp_path_factory.mktemp("notebook")
    notebook.cells.insert(0, nbformat.v4.new_code_cell(SMALL))
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


def test_every_cell_runs_and_the_pictures_are_shown(run: NotebookNode) -> None:
    outputs = [output for cell in run.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    shown = "".join(output.get("text", "") for output in outputs)
    assert "simclr " in shown
    assert "100%" in shown, "the progress bar"
    assert outputs[-1]["data"]["text/plain"] == "torch.Size([2, 128])"


def test_it_is_valid_and_holds_no_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not [cell for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count")]
