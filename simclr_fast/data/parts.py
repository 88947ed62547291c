"""A data set as one row of images after the other: its parts, what each image is called, and what tells it from others.

For what goes through all images of a data set once, as packing and embedding do.
"""

import bisect
import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from simclr_fast.data.chunks import CHUNK, work_ahead
from simclr_fast.data.messages import on_one_line
from simclr_fast.data.packed import MANIFEST, read_manifest
from simclr_fast.data.packed_sets import PackedNames
from simclr_fast.data.sources import Dataset, EncodedImages, Source
from simclr_fast.data.threads import Place
from simclr_fast.errors import DataError

WHAT_TELLS_IMAGES = "names, order, sizes, times of change, labels"  # `digest_of` compares them
SILENT_SECONDS = 5.0  # that looking at the source may take before it shows


class Part(NamedTuple):
    """Images with their classes: codes int64 [N], -1 where an image has none."""

    source: Source
    codes: Tensor


def parts_of(dataset: Dataset) -> dict[str, Part]:
    """The splits: train, test unless it is empty, and where labels are those of other images than train's, labelled.

    Raises DataError without training images.
    """
    codes = dataset.codes if dataset.codes is not None else dataset.train.labels
    if len(dataset.train) == 0:
        raise DataError("the split train has no image")
    parts = {"train": (dataset.train, codes)}
    if codes is None and dataset.labelled is not None:
        parts["labelled"] = (dataset.labelled, dataset.labelled.labels)
    if dataset.test is not None and len(dataset.test) > 0:
        parts["test"] = (dataset.test, dataset.test.labels)
    return {
        name: Part(source, torch.full((len(source),), -1) if codes is None else codes.long())
        for name, (source, codes) in parts.items()
    }


def digest_of(source: Source, codes: Tensor, threads: int) -> str:
    """Tells a source from one with other images, another order or other labels, without reading image files.

    Of a file, its path, size and time of change count.
    """
    identify = source.identity or source.name

    def identities(indices: range, place: Place) -> bytes:
        lines = [f"{identify(place.enter(index))}, class {int(codes[index])}\n" for index in indices]
        return "".join(lines).encode(errors="surrogateescape")

    digest = hashlib.sha256()
    pieces = (range(first, min(first + CHUNK, len(source))) for first in range(0, len(source), CHUNK))
    with contextlib.closing(work_ahead(identities, pieces, threads, source.name)) as identified:
        for lines in tqdm(identified, desc="look at the source", unit=" chunks", delay=SILENT_SECONDS):
            digest.update(lines)
    return digest.hexdigest()


def pieces_of(first: int, end: int, shard: int, piece: int) -> Iterator[list[int]]:
    """Numbers of images, piece by piece; none reaches over the end of a shard."""
    for begin in range(first, end, shard):
        last = min(begin + shard, end)
        yield from (list(range(at, min(at + piece, last))) for at in range(begin, last, piece))


class AllImages:
    """The images of all parts, numbered through. root: the folder (or the table in it) that the parts were found in.

    Threads may read side by side.
    """

    def __init__(self, parts: dict[str, Part], root: Path):
        self.parts = parts
        self.ends = torch.tensor([len(part.source) for part in parts.values()]).cumsum(0).tolist()
        folder = root if root.is_dir() else root.parent
        self.prefix = f"{folder}{os.sep}"
        self.packed_names: dict[str, Callable[[int], str]] = {}
        if (folder / MANIFEST).exists():
            manifest = read_manifest(folder)
            for name, part in parts.items():
                entry = manifest["splits"][name]
                is_whole = len(part.source) == entry["images"]  # else the numbers in the files are others
                has_names = is_whole and manifest["format"] == "jpeg"
                self.packed_names[name] = (
                    PackedNames(folder / name, entry) if has_names else lambda i, n=name: f"{n}/{i}"
                )

    def __len__(self) -> int:
        return self.ends[-1]

    def place(self, number: int) -> tuple[str, int]:
        """The part of an image, and its index there."""
        which = bisect.bisect_right(self.ends, number)
        return list(self.parts)[which], number - (self.ends[which - 1] if which else 0)

    def code(self, number: int) -> int:
        """The class of an image, -1 for none."""
        part, index = self.place(number)
        return int(self.parts[part].codes[index])

    def path(self, number: int) -> Path | None:
        """The file of an image that has one to itself."""
        part, index = self.place(number)
        source = self.parts[part].source
        if self.packed_names or not isinstance(source, EncodedImages):
            return None
        name = source.name(index)
        return Path(name) if name.startswith(self.prefix) or os.path.isabs(name) else None

    def name(self, number: int) -> str:
        """The path of an image below the root, as the one of an image that was packed then; else PART/INDEX.

        Text in one line that any file takes: bytes that are not UTF-8 and line breaks are spelled out, and
        names that differ stay different.
        """
        part, index = self.place(number)
        if part in self.packed_names:
            return self.packed_names[part](index)  # it was spelled out when it was packed
        path = self.path(number)
        name = f"{part}/{index}" if path is None else self.parts[part].source.name(index)
        return on_one_line(name.removeprefix(self.prefix))

    def message_name(self, number: int) -> str:
        """What messages call an image."""
        part, index = self.place(number)
        return self.parts[part].source.name(index)

    def load(self, number: int) -> Tensor:
        """An image as it is, uint8 [C, H, W]. Raises BadImageError for an unreadable one: no other takes its place."""
        part, index = self.place(number)
        return self.parts[part].source.decode(index)

    def read(self, number: int) -> bytes:
        """The bytes of an image as they are stored."""
        part, index = self.place(number)
        return bytes(self.parts[part].source.read(index))
