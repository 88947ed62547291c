"""Reads a packed data set: JPEG bytes from Arrow files, or pixels of one size from an .npy file."""

import bisect
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simclr_fast.config import SourceOptions
from simclr_fast.data.classes import Split, assemble
from simclr_fast.data.packed import read_manifest
from simclr_fast.data.packed_shape import CHECKSUMS, HEADER, IMAGES, LABELS, PLACES, shard_name
from simclr_fast.data.sources import Dataset, EncodedImages, Source
from simclr_fast.data.stored import Records, StoredImages
from simclr_fast.data.unreadable import BadImages, allowance
from simclr_fast.errors import DataError


def packed_set(options: SourceOptions) -> Dataset:
    """The packed set in --data.

    Raises ConfigError for one that is half made or of another version, DataError, with the place, for damage that sizes
    and the checksums of all but the images show; those of the images are looked at when they are first read.
    """
    return dataset_of(options.data, read_manifest(options.data), options.max_bad_images)


def dataset_of(root: Path, manifest: dict[str, Any], max_bad_images: float = 0.0) -> Dataset:
    """The data set of a manifest, as that which was packed. Raises DataError for damage."""
    classes = list(manifest["classes"] or [])
    splits = {}
    for name in manifest["splits"]:
        codes = codes_of(root, name, manifest)
        source = source_of(root, name, manifest, max_bad_images)
        splits[name] = Split(f"{root}, {name}", source, codes, classes, "it was packed without")
    held_out = [(split.name, lambda split=split: split) for name, split in splits.items() if name == "test"]
    labelled = splits.get("labelled")
    if labelled is None:
        return assemble(splits["train"], held_out)
    # Labels are those of other images, as in STL-10.
    judged = assemble(labelled, held_out)
    return Dataset(splits["train"].source, judged.labelled, judged.test, judged.classes)


def codes_of(root: Path, name: str, manifest: dict[str, Any]) -> Tensor:
    """The class of each image of one split, int64 [N], -1 where it has none. Raises DataError for damage."""
    path, known = root / name / LABELS, len(manifest["classes"] or [])
    codes = _column(path, manifest["splits"][name]["images"])
    if codes.min() < -1 or codes.max() >= known:
        raise DataError(f"{path}: labels {codes.min()} to {codes.max()} for {known} classes")
    return torch.from_numpy(codes)


def source_of(root: Path, name: str, manifest: dict[str, Any], max_bad_images: float = 0.0) -> Source:
    """The images of one split, without labels. Raises DataError for damage."""
    count = manifest["splits"][name]["images"]
    records = records_of(root, name, manifest)
    if manifest["format"] == "raw":
        return StoredImages(records, tuple(manifest["image"]), torch.arange(count))
    bad = BadImages(allowance(max_bad_images, count))
    names = PackedNames(root / name, manifest["splits"][name])
    return EncodedImages(count, records.read, records.name, bad=bad, identity=records.identity, file=names)


def records_of(root: Path, name: str, manifest: dict[str, Any]) -> Records:
    """Where the images of one split lie. Raises DataError for damage."""
    entry, folder = manifest["splits"][name], root / name
    count = entry["images"]
    checksums = _column(folder / CHECKSUMS, count)
    if manifest["format"] == "raw":
        shape = tuple(manifest["image"])
        size = shape[0] * shape[1] * shape[2]
        records = _opened([folder / IMAGES], [0], HEADER + size * np.arange(count), np.full(count, size), checksums)
        if os.pread(records.files[0], HEADER, 0) != npy_header("|u1", (count, *shape)):
            raise DataError(f"{folder / IMAGES}: damaged, its header is not that of {count} images of {shape}")
        return records
    places = _column(folder / PLACES, count)
    counts = [shard["images"] for shard in entry["shards"]]
    firsts = np.cumsum([0, *counts[:-1]]).tolist()
    paths = [folder / shard_name(number, len(counts)) for number in range(len(counts))]
    return _opened(paths, firsts, places[:, 0], places[:, 1], checksums)


def npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """The HEADER bytes before the rows of an array: numpy's format 1.0, of one length however many rows there are."""
    about = {"descr": dtype, "fortran_order": False, "shape": shape}
    start = np.lib.format.magic(1, 0) + (HEADER - 10).to_bytes(2, "little")
    return start + repr(about).encode().ljust(HEADER - 11) + b"\n"


def _opened(paths: list[Path], *about: Any) -> Records:
    try:
        return Records(paths, *about)
    except OSError as error:
        raise DataError(f"{error.filename}: {error.strerror}, but the packed set has it") from error


def _column(path: Path, count: int) -> np.ndarray:
    """One entry per image. Raises DataError where there are others."""
    try:
        column = np.load(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {error}") from error
    if len(column) != count:
        raise DataError(f"{path}: {len(column)} entries for {count} images")
    return column


class PackedNames:
    """The paths that images had when they were packed, from the Arrow files of a split. entry: its manifest's."""

    def __init__(self, folder: Path, entry: dict[str, Any]):
        counts = [shard["images"] for shard in entry["shards"]]
        self.paths = [folder / shard_name(number, len(counts)) for number in range(len(counts))]
        self.ends = torch.tensor(counts).cumsum(0).tolist()
        self.held: tuple[int, Any] = (-1, None)  # the shard that was asked last, and its names

    def __call__(self, index: int) -> str:
        shard = bisect.bisect_right(self.ends, index)
        number, names = self.held
        if number != shard:
            names = self._names(self.paths[shard])
            self.held = (shard, names)
        return names[index - (self.ends[shard - 1] if shard else 0)].as_py()

    @staticmethod
    def _names(path: Path) -> Any:
        import pyarrow

        with pyarrow.memory_map(str(path)) as file:
            batches = list(pyarrow.ipc.open_stream(file))
            # A copy, so that the file need not stay open for the names alone.
            return pyarrow.concat_arrays(
                [pyarrow.array(batch.column(0).field("path").to_pylist()) for batch in batches]
            )
