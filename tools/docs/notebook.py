"""A notebook as a page of the site: its text and code, without outputs, which whoever runs it gets anew."""

from pathlib import Path

import nbformat


def page(path: Path) -> str:
    """Markdown of a notebook's cells, with a link to the file."""
    cells = nbformat.read(path, as_version=4).cells
    text = [cell.source if cell.cell_type == "markdown" else f"```python\n{cell.source}\n```" for cell in cells]
    return (
        "\n\n".join([text[0], f"[The notebook]({path.name}): download it, and run it cell by cell.", *text[1:]]) + "\n"
    )
