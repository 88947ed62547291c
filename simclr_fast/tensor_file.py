"""Files of torch.save that appear whole or not at all, end in a checksum, and load without running code.

The checksum is a line of text after torch's zip archive, which torch.load and zip programs pass over:
    simclr_fast sha256 <64 hexadecimal digits of the archive's SHA-256>
"""

import hashlib
import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from simclr_fast.errors import CheckpointError

_SEAL = b"simclr_fast sha256 "
_SEAL_BYTES = len(_SEAL) + 64 + 1
_BLOCK = 1 << 20
_ZIP_BEGIN, _ZIP_END, _ZIP_END_BYTES = b"PK\x03\x04", b"PK\x05\x06", 22


class _Sealing:
    """A file for torch.save that remembers the digest of what was written, and the first error while writing."""

    def __init__(self, file: io.BufferedWriter):
        self.file = file
        self.digest = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            written = self.file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise
        self.digest.update(data)
        return written

    def flush(self) -> None:
        self.file.flush()


def write_atomically(path: Path, content: dict[str, Any]) -> None:
    """torch.save and a checksum to a temporary file, fsync, rename. A failed write leaves what was at `path`.

    Raises OSError with the path in it, for example where the disk is full.
    """
    temporary = path.with_suffix(".partial")
    try:
        with temporary.open("wb") as file:
            sealing = _Sealing(file)
            try:
                torch.save(content, sealing)
            except RuntimeError as error:
                # torch closes its archive after a failed write, and fails again, with less to say.
                raise (sealing.error or error) from None
            file.write(_SEAL + sealing.digest.hexdigest().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Let the renames in a folder last through a power failure."""
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def read(path: Path) -> Any:
    """What torch.save wrote, on the CPU. Raises CheckpointError, and nothing else, for a missing or damaged file.

    A file without this module's checksum, which torch.save alone wrote, is checked by the CRCs of its archive.
    """
    if not path.is_file():
        raise CheckpointError(
            f"{path}: there is no such checkpoint; pass the folder of a run, or a checkpoint-*.pt in it"
        )
    try:
        _verify(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message advises to unpickle anyway, which would run whatever code the file holds.
        reason = "truncated, not written by torch.save, or with objects that only running code could rebuild"
        raise CheckpointError(f"{path}: damaged or no checkpoint ({reason})") from error
    except Exception as error:  # arbitrary bytes make zipfile and torch's unpickler fail in every way there is
        first = (str(error).splitlines() or [""])[0].split(". ")[0]
        reason = first if isinstance(error, _DamageError) else f"{type(error).__name__}: {first}"
        raise CheckpointError(f"{path}: damaged or no checkpoint ({reason})") from error


class _DamageError(ValueError):
    """The file is not what was written; the message says how that shows."""


def _verify(path: Path) -> None:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _SEAL_BYTES))
        end = file.read()
        sealed = end.startswith(_SEAL)
        if sealed and end != _SEAL + _digest(file, size - _SEAL_BYTES).encode() + b"\n":
            raise _DamageError("its content does not match its checksum")
        file.seek(0)
        if file.read(len(_ZIP_BEGIN)) != _ZIP_BEGIN:
            return  # torch's format before 2020, which has no checksums; torch.load sees whether it is that
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            # What torch.save writes is not compressed: little on disk that fills the memory is a trap.
            if sum(entry.file_size for entry in entries) > size:
                raise _DamageError("its entries claim more bytes than the file has")
            if not sealed:
                if end[-_ZIP_END_BYTES:][: len(_ZIP_END)] != _ZIP_END:
                    raise _DamageError("something follows its archive")
                broken = archive.testzip()
                if broken is not None:
                    raise _DamageError(f"{broken} does not match its checksum")


def _digest(file: io.BufferedReader, length: int) -> str:
    digest = hashlib.sha256()
    file.seek(0)
    while length > 0 and (block := file.read(min(_BLOCK, length))):
        digest.update(block)
        length -= len(block)
    return digest.hexdigest()
