"""Committed tables: JSON with one row of the table on each line, so that a changed figure is a changed line.

docs/tables holds them; the proofs and the GPU check write them, json.loads reads them.
"""

import json
from pathlib import Path
from typing import Any

# A row has up to 15 figures and is shorter; what is longer holds rows.
LONGEST_ROW = 400


def table_text(table: Any) -> str:
    """`table` as JSON: every dict and list of up to LONGEST_ROW characters on one line, others opened."""
    return _lines(json.loads(json.dumps(table)), 0) + "\n"


def _lines(value: Any, depth: int) -> str:
    flat = json.dumps(value)
    if not value or not isinstance(value, dict | list) or len(flat) <= LONGEST_ROW:
        return flat
    if isinstance(value, dict):
        brackets, parts = "{}", [f"{json.dumps(key)}: {_lines(part, depth + 1)}" for key, part in value.items()]
    else:
        brackets, parts = "[]", [_lines(part, depth + 1) for part in value]
    inner = ",\n".join(" " * (depth + 1) + part for part in parts)
    return f"{brackets[0]}\n{inner}\n{' ' * depth}{brackets[1]}"


def write_table(path: Path, table: dict[str, Any], markdown: str) -> None:
    """Writes the table to `path`, NAME.json, and for people `markdown` beside it, to NAME.md."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(table_text(table))
    path.with_suffix(".md").write_text(markdown)
