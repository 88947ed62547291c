"""Keeps a second writer out of a folder that one writes to: of another process, or another thread of this one."""

import contextlib
import errno
import fcntl
import logging
import os
import socket
import threading
from pathlib import Path

from simclr_fast.errors import ConfigError, naming

LOCK_FILE = ".lock"

log = logging.getLogger(__name__)

# What this process holds, by its number (a fork has another) and the lock file's device and inode. No process is kept
# out by its own locks, and it gives one up where it closes any descriptor of the file.
_held: dict[tuple[int, int, int], "Claim"] = {}
_guard = threading.Lock()


class Claim(contextlib.AbstractContextManager):
    """A folder that is locked until `release`, or the end of the context, or that of the process, however it ends."""

    def __init__(self, descriptor: int):
        self._descriptor: int | None = descriptor
        self._key = _key(descriptor)

    def release(self) -> None:
        """Give the folder up; a second time does nothing."""
        with _guard:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None
                del _held[self._key]

    def __exit__(self, *_: object) -> None:
        self.release()


def claim(folder: Path, others: str) -> Claim:
    """Lock a folder for whoever called. others: "another run is writing", for the message where one has the lock.

    Where the file system knows no locks, that is only logged, and only writers of this process are kept out. Raises
    ConfigError where the folder is locked, OSError where it cannot be written.
    """
    path = folder / LOCK_FILE
    with _guard:
        with contextlib.suppress(FileNotFoundError):
            if _key(path) in _held:
                raise _taken(folder, others, f"process {os.getpid()}, this one")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(descriptor, folder, others)
            with naming(path):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            found = Claim(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        _held[found._key] = found
        return found


def _lock(descriptor: int, folder: Path, others: str) -> None:
    try:
        # Such a lock belongs to this process alone, and ends with it. NFS wants a descriptor that can be written.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise _taken(folder, others, os.read(descriptor, 200).decode(errors="replace").strip()) from error
        log.warning("%s cannot be locked (%s): let no other process write there", folder, error.strerror)


def _taken(folder: Path, others: str, holder: str) -> ConfigError:
    return ConfigError(f"--output {folder}: {others} there ({holder}); wait for its end, or pass another folder")


def _key(file: int | Path) -> tuple[int, int, int]:
    found = os.stat(file)
    return os.getpid(), found.st_dev, found.st_ino
