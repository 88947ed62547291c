"""Which tables lie in a folder, which of their columns name images, classes and parts, and how they name them."""

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path

from simclr_fast.config import SourceOptions
from simclr_fast.data.folders import HELD_OUT, TRAIN
from simclr_fast.data.image_files import images_below, is_file, is_image_name
from simclr_fast.data.messages import Ignored, on_one_line
from simclr_fast.data.named_files import NamedFiles, Way
from simclr_fast.data.table_files import SUFFIXES, Column, NoTableError, Table, holds_images
from simclr_fast.errors import ConfigError

# What people call columns, the likeliest first; compared in lower case and without signs.
IMAGE_NAMES = ("path", "imagepath", "filepath", "filepaths", "file", "filename", "image", "imagefile", "imagename")
IMAGE_NAMES += ("img", "imgpath", "imgname", "imageid", "imageindex", "name", "id")
LABEL_NAMES = ("label", "labels", "class", "classname", "classes", "category", "categoryname", "target", "y")
LABEL_NAMES += ("species", "breed", "diagnosis", "dx", "findinglabels", "classid", "categoryid", "labelid")
SPLIT_NAMES = ("split", "subset", "partition", "dataset", "set", "phase", "part")


@dataclasses.dataclass(frozen=True)
class Columns:
    """What was found out about a table: the columns that are read, and how its paths name files."""

    table: Table
    image: str
    way: Way
    label: str | None
    split: str | None

    @property
    def role(self) -> str:
        """The part of the data set that the table is by its name, if it is one: that of labels of Train_labels.csv."""
        return re.split(r"[^a-z]", self.table.path.stem.lower())[0]

    def __str__(self) -> str:
        of_classes = f", classes by {self.label!r}" if self.label is not None else ""
        of_parts = f", parts by {self.split!r}" if self.split is not None else ""
        return f"{self.table.path.name}: images by its column {self.image!r}{self.way}{of_classes}{of_parts}"


class TableFolder:
    """The tables in a folder, or the one that --data names, and the images that they name.

    train, held_out: what is trained on, and others in the order in which they serve; beside: what was found in the
    folder that is no image, if it was looked through. Raises NoTableError where no table names images, ConfigError
    where several might be meant.
    """

    def __init__(self, options: SourceOptions):
        self.options, path = options, options.data
        self.root = path if path.is_dir() else path.parent
        self.beside: list[Ignored] = []
        self.files = NamedFiles(str(self.root), lambda: list(images_below(str(self.root), self.beside)))
        self.train, self.held_out = self._chosen(tables_in(path) if path.is_dir() else [path])

    def folders(self) -> set[str]:
        """The folders of some of the images that are trained on, by their paths from the table's folder."""
        values = [value for value in self.train.table.head[self.train.image] if value is not None]
        names = (self.files.first(value, self.train.way) for value in values)
        return {os.path.dirname(name) for name in names if name is not None}

    def _chosen(self, paths: list[Path]) -> tuple[Columns, list[Columns]]:
        found, reasons = [], []
        for path in paths:
            try:
                found.append(self._columns(Table(path)))
            except NoTableError as error:
                reasons.append(error)
        trains = [columns for columns in found if columns.role in TRAIN]
        if len(trains) == 1:
            return trains[0], [columns for part in HELD_OUT for columns in found if columns.role == part]
        if len(found) == 1:
            return found[0], []
        if found:
            raise ConfigError(
                f"--data {self.options.data}: several tables name images "
                f"({', '.join(columns.table.path.name for columns in trains or found)}); pass one of them, such as "
                f"--data {(trains or found)[0].table.path}"
            )
        if len(reasons) == 1:
            raise reasons[0]
        names = f"{', '.join(path.name for path in paths)}: none has paths of images" if paths else "no table"
        raise NoTableError(f"--data {self.options.data}: {names} in it ({', '.join(SUFFIXES)}); pass the table itself")

    def _columns(self, table: Table) -> Columns:
        """What the table's columns are. Raises NoTableError where none names images."""
        if header := next((name for name in table.columns if is_image_name(name)), None):
            reason = f"its first row must name the columns, and holds an image ({header})"
            raise NoTableError(f"--data {table.path}: {reason}")
        split = _by_name(table.columns, SPLIT_NAMES)
        if split is not None and not any((value or "").strip().lower() in TRAIN for value in table.head.get(split, [])):
            split = None
        label = self.options.label_column
        if label is None:
            label = _by_name([name for name in table.head if name != split], LABEL_NAMES)
        image, way = self._image_column(table, (label, split))
        if label is None:
            others = [name for name in table.head if name not in (image, split)]
            label = others[0] if len(others) == 1 and _repeats(table.head[others[0]]) else None
        return Columns(table, image, way, label if label in table.columns else None, split)

    def _image_column(self, table: Table, taken: tuple[str | None, ...]) -> tuple[str, Way]:
        """The column that names images, and how. taken: columns of another meaning. Raises NoTableError."""
        wanted = self.options.image_column
        if wanted is not None and wanted not in table.columns:
            raise NoTableError(f"--image-column {wanted}: {table.path} has the columns {', '.join(table.columns)}")
        candidates = [wanted] if wanted is not None else [name for name in table.head if name not in taken]
        expected = lambda name: wanted is not None or _by_name([name], IMAGE_NAMES) is not None
        ways = {name: self.files.way(table.head.get(name, []), expected(name)) for name in candidates}
        found = {name: way for name, way in ways.items() if way is not None}
        if any(way.parts == 0 for way in found.values()):  # what is there by its path is no accident
            found = {name: way for name, way in found.items() if way.parts == 0}
        if not found:
            raise NoTableError(self._no_image(table, candidates))
        chosen = next(iter(found)) if len(found) == 1 else _by_name(list(found), IMAGE_NAMES)
        if chosen is None:
            raise ConfigError(f"--data {table.path}: {', '.join(found)} all name images; pass one by --image-column")
        return chosen, found[chosen]

    def _no_image(self, table: Table, candidates: list[str]) -> str:
        """What to do about a table whose columns name no image that is there."""
        column = _by_name(candidates, IMAGE_NAMES) or (candidates[0] if candidates else "")
        first = next((value for value in table.head.get(column, []) if value), "nothing")
        return (
            f"--data {table.path}: its columns ({', '.join(table.columns)}) name no image that is there, counted from "
            f"{self.root} (the first {column}: {on_one_line(first)}); pass another column by --image-column"
        )


def tables_in(folder: Path) -> list[Path]:
    """The tables in a folder that may name images."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and is_file(entry))
    paths = [folder / name for name in names if name.lower().endswith(SUFFIXES) and "submission" not in name.lower()]
    return [path for path in paths if path.suffix.lower() != ".parquet" or not holds_images(path)]


def _by_name(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """The first of the columns that people call so."""
    plain = {re.sub(r"[^a-z0-9]", "", column.lower()): column for column in reversed(columns)}
    return next((plain[name] for name in names if name in plain), None)


def _repeats(column: Column) -> bool:
    """Whether the values of a column may be those of classes, each of which has two images or more."""
    given = [value for value in column if value]
    return 2 * len(set(given)) <= len(given)
