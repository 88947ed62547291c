"""Hugging Face data sets on disk: saved ones, and folders of parquet, arrow, image or WebDataset files."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simclr_fast.config import SourceOptions
from simclr_fast.data.classes import Split, assemble
from simclr_fast.data.hugging_face_files import folders_of, is_saved, require_inside, require_inside_saved
from simclr_fast.data.labels import classes_of
from simclr_fast.data.messages import Ignored, say
from simclr_fast.data.sources import Dataset, EncodedImages, TableColumn
from simclr_fast.data.unreadable import BadImages, allowance
from simclr_fast.errors import ConfigError, first_line

HELD_OUT = ("test", "validation", "valid", "val")  # names of held-out splits; the first with labels serves
SHARDS = (".parquet", ".arrow", ".tar")  # suffixes of files that hold images
# Columns by convention, the likeliest first; of WebDataset shards, they are the suffixes of what belongs to one image.
IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp")
LABEL_COLUMNS = ("label", "labels", "cls", "class", "fine_label", "category", "target")


def hugging_face(options: SourceOptions) -> Dataset:
    """A folder written by `save_to_disk`, a downloaded repository, or one file of it. Raises ConfigError for others."""
    splits = _loaded(options)
    if "train" not in splits:
        raise ConfigError(f"--data {options.data}: no split 'train', only {', '.join(splits)}")
    parts = [part for part in HELD_OUT if part in splits]
    if not parts:
        say(f"{options.data}: none of the splits {', '.join(HELD_OUT)}, so that no test images are evaluated on")
    others = [name for name in splits if name not in ("train", *HELD_OUT)]
    ignored: list[Ignored] = [(f"split {name!r}", "neither train nor held out") for name in others]
    if others:
        say(f"{options.data}: the splits {', '.join(others)} are neither trained nor evaluated on")
    label = _label_column(splits["train"], options)
    read = lambda name: _split(name, splits[name], label, options)
    return assemble(read("train"), [(f"split {part!r}", functools.partial(read, part)) for part in parts], ignored)


def _loaded(options: SourceOptions) -> Mapping[str, Any]:
    try:
        import datasets
    except ImportError as error:
        raise ConfigError("--dataset huggingface: the package 'datasets' is missing; pip install datasets") from error
    root = options.data
    try:
        if root.is_file():
            kind = {".tar": "webdataset"}.get(root.suffix.lower(), root.suffix.lower()[1:])
            loaded = datasets.load_dataset(kind, data_files=str(root))
        elif is_saved(root):
            require_inside_saved(root)
            loaded = datasets.load_from_disk(str(root))
        else:
            require_inside(root)
            loaded = datasets.load_dataset(str(root))
    except ConfigError:
        raise
    except Exception as error:  # of every kind: of libraries for YAML, JSON, Parquet and archives
        raise ConfigError(f"--data {root}: not a Hugging Face data set ({first_line(error)})") from error
    return loaded if isinstance(loaded, dict) else {"train": loaded}


def _split(name: str, table: Any, label: str, options: SourceOptions) -> Split:
    import datasets

    column = _image_column(table, options)
    codes, classes, reason = _labels(table, label)
    # The image column alone: what another column holds, an image of its own say, must not be decoded with it.
    images = table.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    reader = TableColumn(images, column, folders_of(options.data), f"split {name!r}, ")
    bad = BadImages(allowance(options.max_bad_images, len(table)))
    source = EncodedImages(len(table), reader.read, reader.name, bad=bad, identity=reader.identity, file=reader.file)
    return Split(f"split {name!r}", source, codes, classes, reason)


def _of_option(option: str, wanted: str, there: list[str]) -> str:
    """The column that an option names. Raises ConfigError where the data set has none of that name."""
    if wanted not in there:
        raise ConfigError(f"{option} {wanted}: the data set has the columns {', '.join(there)}")
    return wanted


def _image_column(table: Any, options: SourceOptions) -> str:
    """--image-column, or the one that is called so by convention, or the only one with images. Raises ConfigError."""
    import datasets

    there = table.column_names
    if options.image_column is not None:
        return _of_option("--image-column", options.image_column, there)
    images = [name for name in there if isinstance(table.features[name], datasets.Image)]
    named = [name for name in IMAGE_COLUMNS if name in images] or [name for name in IMAGE_COLUMNS if name in there]
    if not named and len(images) != 1:
        found = (
            f"the columns {', '.join(images)} all hold images" if images else f"none of {', '.join(there)} holds images"
        )
        raise ConfigError(f"--data {options.data}: {found}; pass the one that is meant by --image-column")
    return (named or images)[0]


def _label_column(table: Any, options: SourceOptions) -> str:
    """--label-column, or the one that is called so by convention, or the only one with classes. Raises ConfigError."""
    import datasets

    there = table.column_names
    if options.label_column is not None:
        return _of_option("--label-column", options.label_column, there)
    named = [name for name in LABEL_COLUMNS if name in there]
    classes = [name for name in there if isinstance(table.features[name], datasets.ClassLabel)]
    return (named or (classes if len(classes) == 1 else [LABEL_COLUMNS[0]]))[0]


def _labels(table: Any, column: str) -> tuple[Tensor, list[str], str]:
    """Number of each image's class, int64 [N], -1 where it has none; names of the classes; why images have none."""
    import datasets

    nothing = torch.full((len(table),), -1)
    if column not in table.column_names:
        return nothing, [], f"no column {column!r} among {', '.join(table.column_names)}; --label-column names another"
    feature = table.features[column]
    kind = "int64" if isinstance(feature, datasets.ClassLabel) else getattr(feature, "dtype", "")
    if kind not in ("bool", "string", "large_string") and not kind.startswith(("int", "uint")):
        return nothing, [], f"the column {column!r} holds {feature}, neither numbers of classes nor names"
    values = table[column][:]
    if "string" in kind:
        codes, classes, _ = classes_of(values)
    else:
        is_there = np.array([value is not None and value != -1 for value in values])
        distinct, numbers = np.unique([value for value, there in zip(values, is_there) if there], return_inverse=True)
        codes = nothing.clone()
        codes[torch.from_numpy(is_there)] = torch.from_numpy(numbers)
        named = feature.int2str if isinstance(feature, datasets.ClassLabel) else str
        classes = [named(value) for value in distinct.tolist()]
    if not classes:
        return nothing, [], f"the column {column!r} holds only -1 or nothing"
    return codes, classes, "some rows hold -1 or nothing"
