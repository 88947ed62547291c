"""A notebook as a page of the site: its text and code, and the pictures that its execution shows.

    python -m tools.docs.notebook      # executes the notebooks of docs/, and renews their pictures in docs/images/

A notebook is committed without outputs, which whoever runs it gets anew; its pictures lie in docs/images/, each under
the names of the notebook and of the cell.
"""

import base64
import os
import tempfile
from pathlib import Path

import nbformat

DOCS = Path(__file__).resolve().parents[2] / "docs"
IMAGES = DOCS / "images"


def page(path: Path) -> str:
    """Markdown of a notebook's cells with their pictures, and a link to the file."""
    cells = nbformat.read(path, as_version=4).cells
    first, *others = [_markdown(path, cell) for cell in cells]
    return "\n\n".join([first, f"[The notebook]({path.name}): download it, and run it cell by cell.", *others]) + "\n"


def picture_of(path: Path, cell: nbformat.NotebookNode) -> Path:
    """Where the picture that a cell shows is kept."""
    return IMAGES / f"{path.stem}-{cell.id}.png"


def renew_pictures(path: Path) -> list[Path]:
    """Execute a notebook in an empty folder, and keep the pictures that its cells show, and no earlier ones."""
    from nbclient import NotebookClient  # building the site executes nothing

    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=None, resources={"metadata": {"path": folder}}).execute()
    for old in IMAGES.glob(f"{path.stem}-*.png"):
        old.unlink()
    written = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                written.append(picture_of(path, cell))
                written[-1].write_bytes(base64.b64decode(output["data"]["image/png"]))
    return written


def _markdown(path: Path, cell: nbformat.NotebookNode) -> str:
    if cell.cell_type == "markdown":
        return cell.source
    code, picture = f"```python\n{cell.source}\n```", picture_of(path, cell)
    if not picture.exists():
        return code
    link = Path(os.path.relpath(picture, path.parent)).as_posix()
    return f"{code}\n\n![What this cell shows]({link})"


if __name__ == "__main__":
    for notebook in sorted(DOCS.rglob("*.ipynb")):
        for picture in renew_pictures(notebook):
            print(picture.relative_to(DOCS.parent))
