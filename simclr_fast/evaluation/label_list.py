"""A file that names the labelled images: which images of a data set are meant, as by ImageNet's published 1% and 10%.

google-research/simclr, imagenet_subsets/1percent.txt and 10percent.txt: a file name per line, n01440764_10026.JPEG.
"""

import collections
import dataclasses
import os
from pathlib import Path

import torch
from torch import Tensor

from simclr_fast.data import Dataset, EncodedImages, Source
from simclr_fast.data.messages import on_one_line
from simclr_fast.errors import ConfigError

SHOWN = 3  # names in a message
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def with_labels_of(data: Dataset, path: Path | None) -> Dataset:
    """The data set whose labelled training images are those that the list names; None names all. Raises ConfigError."""
    if path is None:
        return data
    return dataclasses.replace(data, labelled=data.labelled.subset(listed(data.labelled, path)))


def listed(source: Source, path: Path) -> Tensor:
    """Indices int64 [n] of the images that the lines of a file name, ascending.

    A line is a file name, or a path that ends as the image's own does. Raises ConfigError where a line names no image,
    or several, or one that another line names, and for images without names.
    """
    entries = read_list(path)
    files = source.file if isinstance(source, EncodedImages) else None
    named: dict[str, list[tuple[str, int]]] = {os.path.basename(entry): [] for entry in entries}  # by file name
    example = None
    for index in range(len(source) if files is not None else 0):
        file = files(index)
        if file is not None:
            example = example or file
            if (same := named.get(os.path.basename(file))) is not None:
                same.append((file, index))
    if example is None:
        raise ConfigError(
            f"--label-list {path}: the images of this data set have no file names; pass the folder of files as --data"
        )
    found = [[index for file, index in named[os.path.basename(entry)] if _ends_with(file, entry)] for entry in entries]
    missing = [entry for entry, places in zip(entries, found) if not places]
    remedy = f"one of them is {on_one_line(os.path.basename(example))}; pass their --data, or take those lines out"
    if any("\\" in entry or os.path.isabs(entry) for entry in missing):
        remedy = f"write paths with / and without the folders above the data set's, as in cat/1.jpg; {remedy}"
    _require_none(path, "no labelled training image", missing, remedy)
    several = [entry for entry, places in zip(entries, found) if len(places) > 1]
    _require_none(path, "more than one image", several, "write the folder before the name, as in cat/1.jpg")
    indices = [places[0] for places in found]
    count = collections.Counter(indices)
    doubled = [entry for entry, index in zip(entries, indices) if count[index] > 1]
    _require_none(path, "an image that another line names", doubled, "name every image once")
    return torch.tensor(sorted(indices))


def read_list(path: Path) -> list[str]:
    """The lines of a list, without blanks around them and without empty ones. Raises ConfigError without any."""
    try:
        content = path.read_bytes().removeprefix(BYTE_ORDER_MARK)
    except OSError as error:
        raise ConfigError(f"--label-list {path}: {error.strerror}; pass a file that names an image a line") from error
    if b"\0" in content:
        raise ConfigError(f"--label-list {path}: it holds no lines of UTF-8; pass a file that names an image a line")
    entries = [os.fsdecode(entry) for line in content.split(b"\n") if (entry := line.strip())]
    if not entries:
        raise ConfigError(f"--label-list {path}: it is empty; pass a file that names an image a line")
    return [entry.removeprefix("./") for entry in entries]


def _ends_with(file: str, entry: str) -> bool:
    """Whether the path of an image, whose file name is that of the entry, ends with all of the entry."""
    return os.sep not in entry or file == entry or file.endswith(f"{os.sep}{entry}")


def _require_none(path: Path, what: str, entries: list[str], remedy: str) -> None:
    if entries:
        entries = list(dict.fromkeys(entries))  # a line may be there twice
        shown = ", ".join(map(on_one_line, entries[:SHOWN])) + (", ..." if len(entries) > SHOWN else "")
        raise ConfigError(f"--label-list {path}: {len(entries)} of its names name {what} ({shown}); {remedy}")
