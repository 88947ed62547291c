"""`--dataset auto`: looks at what --data names, and says in one line which kind of data set that is, and why.

It reads names and the first rows of tables, never a whole data set: a few folders, and the first image of some.
"""

import contextlib
import dataclasses
import itertools
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from simclr_fast.config import SourceOptions
from simclr_fast.data.array_sets import KINDS, OF_IDX_FILES, holds_idx_files
from simclr_fast.data.folders import HELD_OUT, TRAIN, parts_in
from simclr_fast.data.hugging_face import SHARDS
from simclr_fast.data.hugging_face_files import is_saved
from simclr_fast.data.image_files import SUFFIXES, images_below, is_file, is_folder, is_image_name
from simclr_fast.data.messages import REASONS, Ignored
from simclr_fast.data.own_files import mark_among
from simclr_fast.data.packed import is_packed
from simclr_fast.data.sources import Dataset
from simclr_fast.data.table_columns import NoTableError, TableFolder, tables_in
from simclr_fast.data.table_files import SUFFIXES as TABLES
from simclr_fast.data.table_files import holds_images
from simclr_fast.errors import ConfigError

LOOKED_INTO = 50  # folders in --data, and entries of each, that are looked at for shards
ARCHIVES = (".zip", ".7z", ".rar", ".gz", ".tgz", ".bz2", ".xz")
Options = TypeVar("Options", bound=SourceOptions)


class Found(NamedTuple):
    """A kind of data set, by its name as --dataset, and what speaks for it."""

    dataset: str
    why: str


def found_in(options: Options) -> tuple[Options, str | None]:
    """The options with the data set that --data holds in the place of "auto", and what speaks for it.

    Other options as they are, and None. Raises ConfigError where --data holds none or several.
    """
    if options.dataset != "auto":
        return options, None
    if options.download:
        raise ConfigError(f"--download: say which data set, by --dataset and one of {', '.join(KINDS)}")
    try:
        found = _look(options)
    except OSError as error:
        raise ConfigError(f"--data {options.data}: {error}") from error
    return dataclasses.replace(options, dataset=found.dataset), found.why


@contextlib.contextmanager
def or_images(root: Path | None) -> Iterator[None]:
    """Context in which a ConfigError of a table that was found, not named, says that one may do without the table.

    root: the folder of images around the table; None where there are none.
    """
    try:
        yield
    except NoTableError:
        raise
    except ConfigError as error:
        if root is None or not root.is_dir():
            raise
        raise ConfigError(f"{error}; or pass --dataset imagefolder, for the images below {root} as they lie") from error


def about(options: SourceOptions, dataset: Dataset, why: str) -> str:
    """The line that says what was found."""
    held_out = f" and {len(dataset.test)} held-out ones" if dataset.test is not None else ""
    classes = f" of {len(dataset.classes)} classes" if dataset.classes else ""
    return f"{options.data}: {len(dataset.train)} images{held_out}{classes} {why} (--dataset {options.dataset})"


def _look(options: SourceOptions) -> Found:
    root = options.data
    if not root.exists():
        raise ConfigError(f"--data {root}: there is no such folder or file; pass the folder of your images by --data")
    if not root.is_dir():
        return _file(root)
    if is_packed(root):
        return Found("packed", "in a packed set")
    if is_saved(root):
        return Found("huggingface", "saved by the package 'datasets'")
    if holds_idx_files(root):
        raise ConfigError(
            f"--data {root}: its four files may be any of several sets; add --dataset {' or '.join(OF_IDX_FILES)}"
        )
    _require_outermost(root)
    arrays = [Found(name, f"in {place}") for name, (_, place) in KINDS.items() if _any(root / place)]
    found = [*arrays, *_shards(root), *_images_or_table(root, options)]
    if not found:
        raise ConfigError(f"--data {root}: no data set is in it ({_what_is_there(root)})")
    if len(found) > 1:
        what = "; ".join(f"images {kind.why} (--dataset {kind.dataset})" for kind in found)
        raise ConfigError(f"--data {root}: it holds several data sets; pass the --dataset that is meant: {what}")
    return found[0]


def _file(path: Path) -> Found:
    suffix = path.suffix.lower()
    if suffix in SHARDS and (suffix != ".parquet" or holds_images(path)):
        return Found("huggingface", f"in a {suffix[1:]} file")
    if suffix in TABLES:
        return Found("table", "named by its rows")
    what = "one image" if is_image_name(path.name) else "an archive" if suffix in ARCHIVES else "a file"
    remedy = (
        "unpack it, and pass its folder" if what == "an archive" else f"pass a folder, or a table ({', '.join(TABLES)})"
    )
    raise ConfigError(f"--data {path}: {what}; {remedy}")


def _require_outermost(root: Path) -> None:
    """Raises ConfigError where torchvision's files lie in the folder, and it wants one above."""
    for name, (_, place) in KINDS.items():
        inner, here = Path(place).parts, root.resolve()
        for depth in range(1, len(inner) + 1):
            above = here.parents[depth - 1]
            if here.parts[-depth:] == inner[:depth] and _any(above / place):
                raise ConfigError(
                    f"--data {root}: the files of {name} are in it; pass the folder above, --data {above}"
                )


def _any(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _shards(root: Path) -> Iterator[Found]:
    """Files of Hugging Face's in the folder or in one in it."""
    with os.scandir(root) as entries:
        inside = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    folders = [entry.path for entry in inside if is_folder(entry)][:LOOKED_INTO]
    folders = [folder for folder in folders if mark_among(folder, sorted(os.listdir(folder))) is None]
    for folder in (str(root), *folders):
        with os.scandir(folder) as entries:
            for entry in entries if folder == str(root) else itertools.islice(entries, LOOKED_INTO):
                path = Path(entry.path)
                suffix = path.suffix.lower()
                if suffix in SHARDS and (suffix != ".parquet" or holds_images(path)) and is_file(entry):
                    yield Found("huggingface", f"in {suffix[1:]} files such as {path.relative_to(root)}")
                    return


def _images_or_table(root: Path, options: SourceOptions) -> Iterator[Found]:
    """Image files, or the table that names them, or both where both have classes."""
    has_images = next(images_below(str(root), []), None) is not None
    tables = None
    if tables_in(root):
        with contextlib.suppress(NoTableError), or_images(root if has_images else None):
            tables = TableFolder(options)
    # Folders that are no parts of the data set are those of classes.
    class_folders = (
        set() if tables is None else {name for name in tables.folders() if name.lower() not in TRAIN + HELD_OUT}
    )
    if has_images and (tables is None or len(class_folders) > 1):
        yield Found("imagefolder", _layout(root))
    if tables is not None and (tables.train.label is not None or not has_images or len(class_folders) < 2):
        yield Found("table", f"named by {tables.train.table.path.name}")


def _layout(root: Path) -> str:
    train, held_out = parts_in(root)
    places = [train or root, *held_out]
    has_classes = any(os.sep in name for name in images_below(str(places[0]), []))
    of = "" if train is None else f" of {' and '.join(place.name for place in places)}"
    return f"in class folders{of}" if has_classes else f"without class folders{of and f' in{of[3:]}'}"


def _what_is_there(root: Path) -> str:
    """Kinds of files with their numbers, for the message that nothing can be trained on."""
    ignored: list[Ignored] = []
    next(images_below(str(root), ignored), None)
    if not ignored:
        return "it is empty; pass the folder of your images by --data"
    counts = Counter(reason for _, reason in ignored).most_common(REASONS)
    kinds = ", ".join(f"{count} {reason}" for reason, count in counts)
    archive = next((name for name, _ in ignored if name.lower().endswith(ARCHIVES)), None)
    unpack = "" if archive is None else f"unpack {archive}, or "
    return f"{kinds}; {unpack}pass a folder of images ({', '.join(SUFFIXES)}), or a table of their paths"
