"""Signals for worker processes: those that ask a whole group of processes to stop are the main process's to answer.

`timeout`, torchrun, schedulers and a terminal's Ctrl-C signal a training process and its workers at once. The main
process then finishes its step and writes a checkpoint, for which it needs its workers; it stops them itself.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator

STOP = {signal.SIGTERM, signal.SIGINT}


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Hold stop signals back while workers are started, so that none meets a worker that does not heed them yet."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def heed_only_the_parent(worker: int) -> None:
    """worker_init_fn of a DataLoader: ignore SIGINT, and SIGTERM unless the process that started this one sent it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    parent = multiprocessing.parent_process().pid
    threading.Thread(target=_wait_for_the_parent, args=(parent,), daemon=True).start()


def _wait_for_the_parent(parent: int) -> None:
    while True:
        received = signal.sigwaitinfo(STOP)
        if received.si_signo == signal.SIGTERM and received.si_pid == parent:
            os._exit(0)  # as torch's own handler does, since the main thread may wait for an image
