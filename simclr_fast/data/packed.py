"""The manifest of a packed data set: what its folder holds, whether that is whole, and how it is recognised."""

import contextlib
import dataclasses
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from simclr_fast.config import DataOptions, SourceOptions
from simclr_fast.errors import ConfigError, DataError

MANIFEST = "packed.json"  # written last, when all else is there and verified
JOURNAL = "packing.json"  # lies there while the set is made, and says how far it is
VERSION = 1
Options = TypeVar("Options", bound=SourceOptions)
REMEDY = "copy that file again, or pack the data set again into an empty folder"


def is_packed(options: SourceOptions) -> bool:
    """Whether --data-dir holds a packed set, whole or half made; its manifest counts, whatever --dataset says."""
    return any((options.data_dir / name).exists() for name in (MANIFEST, JOURNAL))


def named(options: Options) -> Options:
    """The options of a --dataset that the user named, where a packed set cannot be meant.

    Raises ConfigError where --data-dir holds one all the same. mnist5k needs no folder, so the default one serves where
    that holds none.
    """
    if options.dataset == "mnist5k" and is_packed(options):
        options = dataclasses.replace(options, data_dir=DataOptions().data_dir)
    if is_packed(options):
        raise ConfigError(
            f"--dataset {options.dataset}: --data-dir {options.data_dir} holds a packed set; pass another --data-dir, "
            "or leave --dataset out"
        )
    return options


def read_manifest(root: Path) -> dict[str, Any]:
    """The manifest of the packed set in a folder.

    Raises ConfigError for a set that is not whole or is of another version, DataError for damage, with the place.
    """
    path = root / MANIFEST
    if not path.exists() and (root / JOURNAL).exists():
        raise ConfigError(
            f"--data-dir {root}: its packing has not ended; run the same `python -m simclr_fast.data pack` again, "
            "which goes on where it stopped"
        )
    content = read_checked(path)
    if content["version"] != VERSION:
        raise ConfigError(
            f"{path}: a packed set of version {content['version']}, and this program reads version {VERSION}; pack the "
            "data set again"
        )
    check_files(root, content)
    return content


def check_files(root: Path, manifest: dict[str, Any]) -> None:
    """Look at the size of every file and at the checksums of the small ones. Raises DataError for damage."""
    for split in manifest["splits"].values():
        for name, known in split["files"].items():
            _check_file(root / name, known)


def _check_file(path: Path, known: dict[str, int | None]) -> None:
    """Size, and of small files the checksum. Images have checksums of their own, looked at when they are read."""
    try:
        size = path.stat().st_size
        if size != known["bytes"]:
            raise DataError(f"{path}: {size} bytes long, in the manifest {known['bytes']}; {REMEDY}")
        if known["crc32"] is not None and zlib.crc32(path.read_bytes()) != known["crc32"]:
            raise DataError(f"{path}: damaged, its checksum is not that of the manifest; {REMEDY}")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}, but the packed set has it; {REMEDY}") from error


def file_entry(path: Path, checked: bool) -> dict[str, int | None]:
    """What the manifest says of a file: its size, and its checksum where that is looked at whenever a set is read."""
    return {"bytes": path.stat().st_size, "crc32": zlib.crc32(path.read_bytes()) if checked else None}


def read_checked(path: Path) -> dict[str, Any]:
    """What `write_checked` wrote. Raises DataError for damage."""
    try:
        content = json.loads(path.read_text())
        checksum = content.pop("crc32")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged ({error}); {REMEDY}") from error
    if checksum != _checksum(content):
        raise DataError(f"{path}: damaged, its checksum is another; {REMEDY}")
    return content


def write_checked(path: Path, content: dict[str, Any]) -> None:
    """JSON with a checksum of its own; a failed write leaves what was at `path`. Raises OSError with the path."""
    temporary = path.with_suffix(".partial")
    with naming(path):
        with temporary.open("w") as file:
            json.dump(content | {"crc32": _checksum(content)}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        replace(temporary, path)


def replace(temporary: Path, path: Path) -> None:
    """Give a whole file its name, so that it keeps it through a power failure."""
    temporary.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # the rename itself
    finally:
        os.close(directory)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the path into an OSError that has none, as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _checksum(content: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())
