"""The notebook runs from its first cell to its last, with its pictures, and is committed without what it shows."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

from tools.docs import notebook

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
    content = nbformat.read(NOTEBOOK, as_version=4)
    folder = tmp_path_factory.mktemp("notebook")
    content.cells.insert(0, nbformat.v4.new_code_cell(SMALL))
    NotebookClient(content, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    return content


def test_every_cell_runs_and_the_pictures_are_shown(run: NotebookNode) -> None:
    outputs = [output for cell in run.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    shown = "".join(output.get("text", "") for output in outputs)
    assert "simclr " in shown
    assert "100%" in shown, "the progress bar"
    assert outputs[-1]["data"]["text/plain"] == "torch.Size([2, 128])"


def test_the_page_shows_a_picture_under_each_cell_that_shows_one() -> None:
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    showing = [cell for cell in cells if re.search(r"^Image\(", cell.source, re.M)]
    shown = re.findall(r"```\n\n!\[[^]]+\]\((.+?)\)", notebook.page(NOTEBOOK))
    assert [(NOTEBOOK.parent / link).resolve() for link in shown] == [notebook.picture_of(NOTEBOOK, c) for c in showing]
    assert len(shown) == len([*notebook.IMAGES.glob(f"{NOTEBOOK.stem}-*")]) == 3


def test_pictures_are_those_of_the_cells_that_were_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, images = tmp_path / "small.ipynb", tmp_path / "images"
    images.mkdir()
    (images / "small-gone.png").write_bytes(b"of a cell that is no more")
    monkeypatch.setattr(notebook, "IMAGES", images)
    source = "from IPython.display import Image\nopen('here', 'w').close()\nImage(data=b'pixels', format='png')"
    cells = [nbformat.v4.new_markdown_cell("# Small"), nbformat.v4.new_code_cell(source, id="a")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    assert "![" not in notebook.page(path)
    assert notebook.renew_pictures(path) == [*images.iterdir()] == [images / "small-a.png"]
    assert (images / "small-a.png").read_bytes() == b"pixels"
    assert notebook.page(path).endswith("![What this cell shows](images/small-a.png)\n")
    assert not (tmp_path / "here").exists()


def test_it_is_valid_and_holds_no_outputs() -> None:
    content = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(content)
    assert not [cell for cell in content.cells if cell.get("outputs") or cell.get("execution_count")]
