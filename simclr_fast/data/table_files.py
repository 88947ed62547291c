"""Tables on disk, CSV, TSV and Parquet, as columns of text."""

import functools
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simclr_fast.errors import ConfigError, first_line

SUFFIXES = (".csv", ".tsv", ".parquet")
SEPARATORS = ",;\t|"  # of CSV; what European spreadsheets write has semicolons
HEAD = 1000  # rows that are looked at to find out what the columns hold
UTF_16 = (b"\xff\xfe", b"\xfe\xff")

Column = list[str | None]  # None: nothing is there


class NoTableError(ConfigError):
    """What was taken for a table of images is none."""


class Table:
    """A table with a row of names above its columns. Raises NoTableError for what is none."""

    def __init__(self, path: Path):
        self.path = path
        self.columns = tuple(self._read(rows=0))

    @functools.cached_property
    def head(self) -> dict[str, Column]:
        """The first rows of every column that holds text or numbers."""
        return {name: column for name, column in self._read(rows=HEAD).items() if column is not None}

    def read(self, columns: Sequence[str]) -> dict[str, Column | None]:
        """These columns in whole; None for one that holds neither text nor numbers."""
        return self._read(names=list(columns))

    def _read(self, names: list[str] | None = None, rows: int | None = None) -> dict[str, Column | None]:
        read = _parquet if self.path.suffix.lower() == ".parquet" else _text
        try:
            return read(self.path, names, rows)
        except Exception as error:  # of every kind: of two columns of one name, pyarrow raises a KeyError
            raise NoTableError(f"--data {self.path}: it cannot be read as a table ({first_line(error)})") from error


def holds_images(path: Path) -> bool:
    """Whether a Parquet file has a column of images themselves, as Hugging Face's data sets do."""
    import pyarrow
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(path)
    except (OSError, ValueError, pyarrow.ArrowException):
        return False  # whoever reads it says why
    kinds = [field.type for field in schema]
    fields = [{inner.name for inner in kind} if pyarrow.types.is_struct(kind) else set() for kind in kinds]
    return any(
        "bytes" in names or pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)
        for kind, names in zip(kinds, fields)
    )


def _text(path: Path, names: list[str] | None, rows: int | None) -> dict[str, Column | None]:
    """A CSV or TSV. Text stays as it is: "NA" is a name, and 007 no number. Bytes that are not UTF-8 are kept."""
    import pandas

    with path.open("rb") as file:
        begin = file.read(1 << 16)
    encoding = "utf-16" if begin.startswith(UTF_16) else "utf-8-sig"
    first = begin.decode(encoding, errors="ignore").partition("\n")[0]
    separator = "\t" if path.suffix.lower() == ".tsv" else max(SEPARATORS, key=first.count)
    with warnings.catch_warnings():
        warnings.simplefilter("error", pandas.errors.ParserWarning)  # of rows that are longer than the first
        table = pandas.read_csv(
            path,
            sep=separator,
            dtype=object,
            keep_default_na=False,
            index_col=False,
            nrows=rows,
            encoding=encoding,
            encoding_errors="surrogateescape",
        )
    table.columns = [str(name).strip() for name in table.columns]
    if not table.columns.is_unique:
        raise ValueError(f"two columns are called {table.columns[table.columns.duplicated()][0]}")
    chosen = list(table.columns) if names is None else names
    return {name: [value or None for value in table[name].tolist()] for name in chosen}


def _parquet(path: Path, names: list[str] | None, rows: int | None) -> dict[str, Column | None]:
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(path)
    if rows is None:
        table = file.read(columns=names)
    else:
        batch = next(file.iter_batches(batch_size=max(1, rows), columns=names), None) if rows else None
        table = file.schema_arrow.empty_table() if batch is None else batch
    return {name: _as_text(table.column(name)) for name in table.schema.names}


def _as_text(column: Any) -> Column | None:
    """A column of pyarrow's as text; None where it holds something else than text and numbers."""
    import pyarrow.types as kinds

    kind = column.type.value_type if kinds.is_dictionary(column.type) else column.type
    values = column.to_pylist()
    if kinds.is_binary(kind) or kinds.is_large_binary(kind):
        return [None if value is None else os.fsdecode(value) for value in values]
    if kinds.is_floating(kind):  # whole numbers become such where some are missing
        return [None if value is None or value != value else f"{value:.17g}" for value in values]
    if kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_integer(kind) or kinds.is_boolean(kind):
        return [None if value is None or value == "" else str(value) for value in values]
    return [None] * len(values) if kinds.is_null(kind) else None
