"""Reads a packed data set back from end to end: every file, every image, and what `datasets` makes of it."""

import contextlib
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from simclr_fast.data.chunks import CHUNK, work_ahead
from simclr_fast.data.packed import check_file, files_of
from simclr_fast.data.packed_sets import codes_of, records_of, source_of
from simclr_fast.data.sources import EncodedImages
from simclr_fast.data.stored import Records
from simclr_fast.data.threads import Place
from simclr_fast.data.unreadable import BadImageError
from simclr_fast.errors import DataError

SAMPLE = 32  # images of each split that are decoded


def verify(root: Path, manifest: dict[str, Any], threads: int) -> None:
    """Look at the checksum of every file and of every image, count the images, and decode some of them.

    manifest: its shape and the sizes of the files were looked at (`read_manifest`). Raises DataError with the place of
    the damage.
    """
    for name in manifest["splits"]:
        codes_of(root, name, manifest)
        _verify_records(name, records_of(root, name, manifest), threads)
    # After the images, whose checksums tell which one is damaged.
    _verify_files(root, manifest, threads)
    if manifest["format"] == "jpeg":
        for name, entry in manifest["splits"].items():
            _decode_some(source_of(root, name, manifest))
            _check_rows(root / name, entry["images"])


def _verify_records(name: str, records: Records, threads: int) -> None:
    def read(numbers: range, place: Place) -> int:
        for number in numbers:
            records.read(place.enter(number))
        return len(numbers)

    count = len(records)
    pieces = (range(first, min(first + CHUNK, count)) for first in range(0, count, CHUNK))
    with (
        tqdm(total=count, desc=f"verify {name}", unit=" images") as progress,
        contextlib.closing(work_ahead(read, pieces, threads, records.name)) as counts,
    ):
        for done in counts:
            progress.update(done)


def _verify_files(root: Path, manifest: dict[str, Any], threads: int) -> None:
    entries = [item for files in files_of(manifest) for item in files.items()]
    known = [(root / name, entry["crc32"]) for name, entry in entries if "crc32" in entry]

    def read(number: int, place: Place) -> None:
        check_file(*known[place.enter(number)])

    name = lambda number: str(known[number][0])
    with contextlib.closing(work_ahead(read, range(len(known)), threads, name)) as files:
        for _ in tqdm(files, total=len(known), desc="verify", unit=" files"):
            pass


def _decode_some(source: EncodedImages) -> None:
    for index in torch.linspace(0, len(source) - 1, min(SAMPLE, len(source))).long().tolist():
        try:
            source.decode(index)
        except BadImageError as error:
            raise DataError(str(error)) from error


def _check_rows(folder: Path, count: int) -> None:
    """Whether `datasets` finds as many rows."""
    import datasets

    rows = len(datasets.load_from_disk(str(folder)))
    if rows != count:
        raise DataError(f"{folder}: {rows} rows for {count} images")
