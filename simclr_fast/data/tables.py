"""Tables of paths and labels, CSV, TSV or Parquet: one table for each part of the data set, or a column of parts."""

import dataclasses
import functools
import os

from simclr_fast.config import SourceOptions
from simclr_fast.data.classes import Split, assemble
from simclr_fast.data.folders import HELD_OUT, TRAIN
from simclr_fast.data.image_files import is_folder, why_no_image
from simclr_fast.data.labels import classes_of
from simclr_fast.data.messages import Ignored, on_one_line, say, say_ignored
from simclr_fast.data.named_files import AmbiguousNameError
from simclr_fast.data.sources import Dataset, Files
from simclr_fast.data.table_columns import Columns, TableFolder
from simclr_fast.data.table_files import Column
from simclr_fast.errors import ConfigError


@dataclasses.dataclass
class Rows:
    """The rows of one part: paths from the table's folder, and the text of the labels."""

    names: list[str] = dataclasses.field(default_factory=list)
    labels: Column = dataclasses.field(default_factory=list)


def table_set(options: SourceOptions) -> Dataset:
    """The data set of the table, or of the tables in the folder, that --data names. Raises ConfigError."""
    folder = TableFolder(options)
    say(f"{folder.root}: {'; '.join(map(str, (folder.train, *folder.held_out)))}")
    if options.label_column is not None and folder.train.label is None:
        raise ConfigError(
            f"--label-column {options.label_column}: {folder.train.table.path} has the columns "
            f"{', '.join(folder.train.table.columns)}"
        )
    ignored: list[Ignored] = []
    parts = _parts_of(folder, folder.train, ignored)
    train = parts.pop("train", None)
    if train is None or not train.names:
        raise ConfigError(f"--data {folder.train.table.path}: none of its rows is an image to train on")
    held_out = {f"{folder.train.table.path}, {part}": rows for part, rows in parts.items()}
    for columns in folder.held_out:
        for rows in _parts_of(folder, columns, ignored, as_part="held out").values():
            held_out[str(columns.table.path)] = rows
    _say_shared(train, held_out)
    ignored += _unnamed(folder, [train, *held_out.values()])
    say_ignored(str(folder.root), ignored)
    splits = [(name, functools.partial(_split, name, folder, rows)) for name, rows in held_out.items() if rows.names]
    return assemble(_split(str(folder.train.table.path), folder, train), splits, ignored)


def _parts_of(folder: TableFolder, columns: Columns, ignored: list[Ignored], as_part: str = "train") -> dict[str, Rows]:
    """The rows of a table by the part that they belong to, in the order in which held-out ones serve.

    Without a column of parts, and in a table that is held out as a whole, all are `as_part`. What names no image, or
    one that a row before it named, goes to `ignored`.
    """
    wanted = [name for name in (columns.image, columns.label, columns.split) if name is not None]
    content = columns.table.read(dict.fromkeys(wanted))
    labels = content.get(columns.label) if columns.label is not None else None
    splits = content.get(columns.split) if columns.split is not None and as_part == "train" else None
    parts: dict[str, Rows] = {part: Rows() for part in ("train", *HELD_OUT, as_part)}
    seen: dict[tuple[str, str], int] = {}
    for row, value in enumerate(content[columns.image] or []):
        part = as_part if splits is None else (splits[row] or "").strip().lower()
        part = "train" if part in TRAIN else part
        name = None if value is None else _found(folder, columns, value)
        label = None if labels is None else labels[row]
        shown = f"{columns.table.path}, row {row + 1}" + ("" if value is None else f", {value}")
        if value is None:
            ignored.append((shown, "without a path"))
        elif part not in parts:
            ignored.append((shown, f"of part {part!r}, which is neither trained nor evaluated on"))
        elif name is None:
            ignored.append((shown, "of a file that is missing"))
        elif os.path.splitext(name)[1] and (reason := why_no_image(name)) is not None:
            ignored.append((shown, reason))
        elif (first := seen.setdefault((part, name), len(parts[part].names))) < len(parts[part].names):
            ignored.append((shown, "of an image that a row before it names"))
            if parts[part].labels[first] != label:
                parts[part].labels[first] = None  # which of them is true, nobody knows
        else:
            parts[part].names.append(name)
            parts[part].labels.append(label)
    return {part: rows for part, rows in parts.items() if rows.names}


def _found(folder: TableFolder, columns: Columns, value: str) -> str | None:
    try:
        return folder.files.find(value, columns.way, columns.role)
    except AmbiguousNameError as error:
        raise ConfigError(
            f"--data {columns.table.path}: {error}, below {folder.root}; write paths from that folder"
        ) from error


def _say_shared(train: Rows, held_out: dict[str, Rows]) -> None:
    trained = set(train.names)
    for name, rows in held_out.items():
        if shared := trained.intersection(rows.names):
            say(f"{name}: {len(shared)} of its images are trained on, too ({on_one_line(min(shared))} is one)")


def _unnamed(folder: TableFolder, parts: list[Rows]) -> list[Ignored]:
    """What no row names: all else below the folder where that was looked through, else what lies beside the images."""
    place = lambda name: os.path.normpath(os.path.join(folder.root, name))
    tables = {place(columns.table.path.name) for columns in (folder.train, *folder.held_out)}
    named = {place(name) for rows in parts for name in rows.names} | tables
    if folder.train.way.parts > 0:
        below = [(place(name), "named by no row") for name in folder.files.below()]
        return [(name, reason) for name, reason in (*folder.beside, *below) if name not in named]
    beside: list[Ignored] = []
    for around in sorted({os.path.dirname(name) for name in named - tables}):
        with os.scandir(around) as entries:
            inside = sorted((entry for entry in entries if not is_folder(entry)), key=lambda entry: entry.name)
        for entry in inside:
            if entry.path not in named:
                reason = "hidden" if entry.name.startswith(".") else why_no_image(entry.name) or "named by no row"
                beside.append((entry.path, reason))
    return beside


def _split(name: str, folder: TableFolder, rows: Rows) -> Split:
    codes, classes, reason = classes_of(rows.labels)
    source = Files(folder.root, rows.names).images(folder.options.max_bad_images)
    return Split(name, source, codes, classes, reason)
