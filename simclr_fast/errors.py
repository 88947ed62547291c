"""Every error that the user of a program can mend, and the exit status with which the program ends on it."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path


class ConfigError(ValueError):
    """An option has a value that cannot work; the message names the option and the remedy."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be used; the message says why."""


class DataError(RuntimeError):
    """The data cannot be trained on or evaluated with; the message says why."""


class NonFiniteLossError(RuntimeError):
    """The loss, or the norm of its gradient, is infinite or not a number."""


# 2: the command line is to be changed. 1: what the command met on its way. The parser ends with 2 as well (an unknown
# option, a word for a number), and a run that a signal stopped with 128 + the signal's number.
EXIT_STATUS: dict[type[Exception], int] = {
    ConfigError: 2,
    CheckpointError: 2,
    DataError: 1,
    NonFiniteLossError: 1,
    OSError: 1,  # of a disk alone: see DISK_ERRORS
}
# What goes wrong with a disk, not with a program.
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}


def status_and_message(error: Exception) -> tuple[int, str] | None:
    """The exit status for an error, and the one line for the user; None for any other error, which is a defect."""
    if isinstance(error, OSError) and error.errno not in DISK_ERRORS:
        return None
    for kind, status in EXIT_STATUS.items():
        if isinstance(error, kind):
            return status, in_utf8(_disk_message(error) if isinstance(error, OSError) else str(error))
    return None


def _disk_message(error: OSError) -> str:
    of_no_file = f"{error.strerror} (of no file by name: perhaps where the program prints to)"
    what = of_no_file if error.filename is None else f"{error.filename}: {error.strerror}"
    return f"{what}; make room, then go on from the files there"


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def in_utf8(text: str) -> str:
    """Text that every file, terminal and column takes: bytes of file names that are not UTF-8 are written as \\xff.

    For messages; `data.messages.on_one_line` keeps names that differ different.
    """
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the path into an OSError that has none, as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
