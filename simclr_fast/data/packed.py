"""The manifest of a packed data set: what its folder holds, whether that is whole, and how it is recognised."""

import json
import os
import zlib
from pathlib import Path
from typing import Any

from simclr_fast.data.packed_shape import IMAGES, check_shape
from simclr_fast.errors import ConfigError, DataError, naming
from simclr_fast.tensor_file import sync_folder

MANIFEST = "packed.json"  # written last, when all else is there and verified
JOURNAL = "packing.json"  # lies there while the set is made, and says how far it is
VERSION = 2
PIECE = 1 << 20  # bytes of a file in memory while its checksum is taken
FileEntries = dict[str, dict[str, int]]  # by name: size and checksum
REMEDY = "copy that file again, or pack the data set again into an empty folder"


def is_packed(root: Path) -> bool:
    """Whether a folder holds a packed set, whole or half made."""
    return any((root / name).exists() for name in (MANIFEST, JOURNAL))


def read_manifest(root: Path) -> dict[str, Any]:
    """The manifest of the packed set in a folder.

    Raises ConfigError for a set that is not whole or is of another version, DataError for damage, with the place.
    """
    path = root / MANIFEST
    if not path.exists() and (root / JOURNAL).exists():
        raise ConfigError(
            f"--data {root}: its packing has not ended; run the same `simclr-fast pack` again, "
            "which goes on where it stopped"
        )
    if not path.exists():
        raise ConfigError(f"--data {root}: no packed set (no {MANIFEST} in it); `simclr-fast pack` writes one")
    content = read_checked(path)
    check_shape(path, content)
    for files in files_of(content):
        check_files(root, files)
    return content


def files_of(manifest: dict[str, Any]) -> list[FileEntries]:
    """What the manifest says of its files: those of the set, then those of each split."""
    return [manifest["files"], *(split["files"] for split in manifest["splits"].values())]


def is_large(name: str) -> bool:
    """Whether a file holds images: only `verify` reads all of it, whoever opens the set looks at its size."""
    return name.endswith((".arrow", IMAGES))


def check_files(root: Path, files: FileEntries) -> None:
    """Look at the size of every file and at the checksums of the small ones. Raises DataError for damage."""
    for name, known in files.items():
        require_size(root / name, known["bytes"])
        if not is_large(name):
            check_file(root / name, known["crc32"])


def require_size(path: Path, wanted: int, at_least: bool = False) -> None:
    """Raises DataError where a file is missing or has another size."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}, but the packed set has it; {REMEDY}") from error
    if size < wanted or (size > wanted and not at_least):
        raise DataError(f"{path}: {size} bytes long, in the manifest {wanted}; {REMEDY}")


def check_file(path: Path, checksum: int) -> None:
    """Read a whole file. Raises DataError where its checksum is another."""
    if checksum_of(path) != checksum:
        raise DataError(f"{path}: damaged, its checksum is not that of the manifest; {REMEDY}")


def file_entry(path: Path) -> dict[str, int]:
    """What the manifest says of a file: its size and its checksum; of images.npy, which may be huge and whose header
    and rows are looked at one by one, the size alone. Raises DataError where it cannot be read."""
    checksum = {} if path.name == IMAGES else {"crc32": checksum_of(path)}
    return {"bytes": path.stat().st_size, **checksum}


def checksum_of(path: Path, first: int = 0) -> int:
    """CRC-32 of a file's bytes from `first` on. Raises DataError where it cannot be read."""
    checksum = 0
    try:
        with path.open("rb") as file:
            file.seek(first)
            while piece := file.read(PIECE):
                checksum = zlib.crc32(piece, checksum)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}, but the packed set has it; {REMEDY}") from error
    return checksum


def read_checked(path: Path, what: str = "packed set", version: int = VERSION, remedy: str = REMEDY) -> dict[str, Any]:
    """What `write_checked` wrote. Raises DataError for damage, ConfigError for what another version wrote."""
    try:
        content = json.loads(path.read_text())
        checksum = content.pop("crc32")
        is_whole = checksum == _checksum(content)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: damaged ({error}); {remedy}") from error
    if not is_whole:
        raise DataError(f"{path}: damaged, its checksum is another; {remedy}")
    if content.get("version") != version:
        raise ConfigError(
            f"{path}: a {what} of version {content.get('version')}, and this program reads version {version}; make it "
            "again, in an empty folder"
        )
    return content


def write_checked(path: Path, content: dict[str, Any]) -> None:
    """JSON with a checksum of its own; a failed write leaves what was at `path`. Raises OSError with the path."""
    temporary = unfinished(path)
    with naming(path):
        with temporary.open("w") as file:
            json.dump(content | {"crc32": _checksum(content)}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        replace(temporary, path)


def unfinished(path: Path) -> Path:
    """What `write_checked` calls a file until it is whole."""
    return path.with_suffix(".partial")


def replace(temporary: Path, path: Path) -> None:
    """Give a whole file its name, so that it keeps it through a power failure."""
    temporary.replace(path)
    sync_folder(path.parent)


def _checksum(content: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())
