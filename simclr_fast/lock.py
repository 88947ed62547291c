"""Keeps a second process out of a folder that one writes to, as long as that process lives."""

import errno
import fcntl
import logging
import os
import socket
from pathlib import Path

from simclr_fast.errors import ConfigError

LOCK_FILE = ".lock"

log = logging.getLogger(__name__)


def claim(folder: Path, others: str) -> int:
    """Lock a folder for this process; the descriptor whose closing gives it up. others: "another run is writing".

    Where the file system knows no locks, that is only logged. Raises ConfigError where another process has the lock,
    OSError where the folder cannot be written.
    """
    lock = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        # Such a lock belongs to this process alone, and ends with it. NFS wants a descriptor that can be written.
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            holder = os.read(lock, 200).decode(errors="replace").strip()
            os.close(lock)
            raise ConfigError(
                f"--output {folder}: {others} there ({holder}); wait for its end, or pass another folder"
            ) from error
        log.warning("%s cannot be locked (%s): let no other process write there", folder, error.strerror)
    try:
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    except OSError:
        os.close(lock)
        raise
    return lock
