"""Committed tables: one row on each line, whoever writes them."""

import json
from pathlib import Path

import pytest

from tools.tables import LONGEST_ROW, table_text, write_table

TABLES = sorted((Path(__file__).parent.parent / "docs/tables").glob("*.json"))


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.name)
def test_committed_tables_are_as_they_are_written(path: Path) -> None:
    assert path.read_text() == table_text(json.loads(path.read_text()))


def test_a_row_is_a_line(tmp_path: Path) -> None:
    rows = [{"kernel": f"k{i}", "counts": {"FFMA": i}, "why": "x" * 100} for i in range(5)]
    table = {"nvcc": "13.0", "kernels": rows, "none": [], "long": "y" * LONGEST_ROW}
    write_table(tmp_path / "tables" / "a.json", table, "for people")
    text = (tmp_path / "tables" / "a.json").read_text()
    assert json.loads(text) == table
    assert [line for line in text.splitlines() if "kernel" in line][1:] == [
        f"  {json.dumps(row)}" + ("," if row is not rows[-1] else "") for row in rows
    ]
    assert (tmp_path / "tables" / "a.md").read_text() == "for people"
