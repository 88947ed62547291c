"""How the programs end: an error that their user can mend is one line and an exit status, not a traceback."""

import errno
import sys
from collections.abc import Callable

from simclr_fast.checkpoint import CheckpointError
from simclr_fast.config import ConfigError
from simclr_fast.data.decode import data_error
from simclr_fast.training.finite import NonFiniteLossError
from simclr_fast.training.process import stop_process

# What goes wrong with a disk, not with a program.
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}


def exit_status(program: str, work: Callable[[], int]) -> int:
    """Do a program's work, leave the process group that it joined, and return the exit status.

    That is what `work` returns; 2 for an option or a checkpoint that cannot work; 1 for data, a loss or a disk that
    went wrong. Any other exception is a defect and passes through.
    """
    try:
        return work()
    except (ConfigError, CheckpointError) as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return 2
    except NonFiniteLossError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        name = "" if error.filename is None else f"{error.filename}: "
        print(f"{program}: error: {name}{error.strerror}; make room, then go on from the files there", file=sys.stderr)
        return 1
    except RuntimeError as error:
        of_data = data_error(error)
        if of_data is None:
            raise
        print(f"{program}: error: {of_data}", file=sys.stderr)
        return 1
    finally:
        stop_process()
