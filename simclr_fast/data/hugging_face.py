"""Hugging Face data sets on disk: saved ones, and folders of parquet, arrow, image or WebDataset files."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simclr_fast.config import SourceOptions
from simclr_fast.data.classes import Split, assemble, say
from simclr_fast.data.sources import Dataset, EncodedImages, TableColumn
from simclr_fast.data.unreadable import BadImages
from simclr_fast.errors import ConfigError

HELD_OUT = ("test", "validation", "valid", "val")  # names of held-out splits; the first with labels serves


def hugging_face(options: SourceOptions) -> Dataset:
    """A folder written by `save_to_disk`, or a downloaded repository. Raises ConfigError where it is neither."""
    splits = _loaded(options)
    if "train" not in splits:
        raise ConfigError(f"--data {options.data}: no split 'train', only {', '.join(splits)}")
    parts = [part for part in HELD_OUT if part in splits]
    if not parts:
        say(f"{options.data}: none of the splits {', '.join(HELD_OUT)}, so that no test images are evaluated on")
    return assemble(_split("train", splits["train"], options), (_split(part, splits[part], options) for part in parts))


def _loaded(options: SourceOptions) -> Mapping[str, Any]:
    try:
        import datasets
    except ImportError as error:
        raise ConfigError("--dataset huggingface: the package 'datasets' is missing; pip install datasets") from error
    root = options.data
    is_saved = (root / "dataset_dict.json").exists() or (root / "state.json").exists()
    try:
        loaded = datasets.load_from_disk(str(root)) if is_saved else datasets.load_dataset(str(root))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:  # pyarrow's errors are ValueErrors
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"--data {root}: not a Hugging Face data set ({reason})") from error
    return loaded if isinstance(loaded, dict) else {"train": loaded}


def _split(name: str, table: Any, options: SourceOptions) -> Split:
    import datasets

    column = options.image_column
    if column not in table.column_names:
        raise ConfigError(f"--image-column {column}: the data set has the columns {', '.join(table.column_names)}")
    codes, classes, reason = _labels(table, options.label_column)
    # The image column alone: what another column holds, an image of its own say, must not be decoded with it.
    images = table.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    reader = TableColumn(images, column, f"split {name!r}, ")
    bad = BadImages(options.max_bad_images * len(table))
    source = EncodedImages(len(table), reader.read, reader.name, bad=bad, identity=reader.identity)
    return Split(f"split {name!r}", source, codes, classes, reason)


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
    is_there = np.array([value is not None and value != -1 for value in values])
    if not is_there.any():
        return nothing, [], f"the column {column!r} holds only -1 or nothing"
    distinct, numbers = np.unique([value for value in values if value is not None and value != -1], return_inverse=True)
    codes = nothing.clone()
    codes[torch.from_numpy(is_there)] = torch.from_numpy(numbers)
    named = feature.int2str if isinstance(feature, datasets.ClassLabel) else str
    return codes, [named(value) for value in distinct.tolist()], "some rows hold -1 or nothing"
