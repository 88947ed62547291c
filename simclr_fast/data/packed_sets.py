"""Reads a packed data set: JPEG bytes from Arrow files, or pixels of one size from an .npy file."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from simclr_fast.config import SourceOptions
from simclr_fast.data.classes import Split, assemble
from simclr_fast.data.packed import read_manifest
from simclr_fast.data.sources import Dataset, EncodedImages, Source
from simclr_fast.data.stored import Records, StoredImages
from simclr_fast.data.unreadable import BadImages
from simclr_fast.errors import DataError

HEADER = 128  # bytes before the rows of an .npy file that `pack` writes
LABELS, CHECKSUMS, PLACES, IMAGES = "labels.npy", "checksums.npy", "places.npy", "images.npy"


def packed_set(options: SourceOptions) -> Dataset:
    """The packed set in --data-dir.

    Raises ConfigError for one that is half made or of another version, DataError, with the place, for damage that sizes
    and the checksums of all but the images show; those of the images are looked at when they are first read.
    """
    return dataset_of(options.data_dir, read_manifest(options.data_dir), options.max_bad_images)


def dataset_of(root: Path, manifest: dict[str, Any], max_bad_images: float = 0.0) -> Dataset:
    """The data set of a manifest, as that which was packed. Raises DataError for damage."""
    classes = list(manifest["classes"] or [])
    splits = {}
    for name, entry in manifest["splits"].items():
        codes = _column(root / name / LABELS, entry["images"])
        source = source_of(root, name, manifest, max_bad_images)
        splits[name] = Split(f"{root}, {name}", source, torch.from_numpy(codes), classes, "it was packed without")
    labelled = splits.get("labelled")
    if labelled is None:
        return assemble(splits["train"], [splits[name] for name in ("test",) if name in splits])
    # Labels are those of other images, as in STL-10.
    judged = assemble(labelled, [splits[name] for name in ("test",) if name in splits])
    return Dataset(splits["train"].source, judged.labelled, judged.test, judged.classes)


def source_of(root: Path, name: str, manifest: dict[str, Any], max_bad_images: float = 0.0) -> Source:
    """The images of one split, without labels. Raises DataError for damage."""
    entry, folder = manifest["splits"][name], root / name
    count = entry["images"]
    checksums = _column(folder / CHECKSUMS, count)
    if manifest["format"] == "raw":
        height, width, channels = manifest["image"]
        size = height * width * channels
        records = _opened([folder / IMAGES], [0], HEADER + size * np.arange(count), np.full(count, size), checksums)
        return StoredImages(records, (height, width, channels), torch.arange(count))
    places = _column(folder / PLACES, count)
    counts = [shard["images"] for shard in entry["shards"]]
    firsts = np.cumsum([0, *counts[:-1]]).tolist()
    paths = [folder / shard_name(number, len(counts)) for number in range(len(counts))]
    records = _opened(paths, firsts, places[:, 0], places[:, 1], checksums)
    return EncodedImages(count, records.read, records.name, bad=BadImages(max_bad_images * count))


def shard_name(number: int, count: int) -> str:
    """What `datasets` calls the Arrow files of a split."""
    return f"data-{number:05d}-of-{count:05d}.arrow"


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
