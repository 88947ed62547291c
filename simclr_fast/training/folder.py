"""The folder of a run: written by one run at a time, and never over what another run left there."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

from simclr_fast.checkpoint import checkpoints, set_aside, set_later_aside
from simclr_fast.config import Config
from simclr_fast.errors import ConfigError
from simclr_fast.lock import Claim, claim
from simclr_fast.process import Process
from simclr_fast.run_files import METRICS_FILE

log = logging.getLogger(__name__)


class RunFolder:
    """Context in which no other run may write to --output; the main process holds it, the others wait in `prepare`.

    The lock ends with the process, however that ends. Raises ConfigError where another run holds it, and where the
    folder cannot be made or written.
    """

    def __init__(self, config: Config, process: Process):
        self.run = config.run
        self.process = process
        self.path = config.run.output
        self._lock: Claim | None = None

    def __enter__(self) -> "RunFolder":
        if self.process.is_main and self.path.is_dir():
            self._written(self._claim)
        return self

    def __exit__(self, *_: object) -> None:
        self._release()

    def prepare(self, resumed: Path | None, step: int) -> None:
        """Make the folder ready for a run that goes on from the checkpoint `resumed`, of `step`, or that begins (None).

        Every process calls it once it has read what it starts from. A folder that holds another run is renamed, and
        so are checkpoints of later steps, which this run does again: nothing is lost.
        """
        self.process.barrier()
        if self.process.is_main:
            self._written(lambda: self._prepare(resumed, step))
        self.process.barrier()

    def _prepare(self, resumed: Path | None, step: int) -> None:
        goes_on_here = resumed is not None and resumed.resolve().parent == self.path.resolve()
        # Without any checkpoint, --resume auto begins again what was stopped before its first one.
        begun = (self.path / METRICS_FILE).exists() and self.run.resume != "auto"
        if (begun or checkpoints(self.path)) and not goes_on_here and self.run.profile == 0:
            self._set_aside()
        self.path.mkdir(parents=True, exist_ok=True)
        self._claim()
        for torn in self.path.glob("*.partial"):  # of a process that was killed while it wrote
            torn.unlink()
        if goes_on_here and self.run.profile == 0:
            for kept in set_later_aside(self.path, step):
                log.warning("going on from step %d: a later checkpoint is now %s", step, kept)

    def _set_aside(self) -> None:
        folder = self.path if self.path.name not in ("", "..") else self.path.resolve()
        if Path.cwd().is_relative_to(folder.resolve()) or os.path.ismount(folder):
            where = "a mount point" if os.path.ismount(folder) else "or holds the current folder"
            raise ConfigError(
                f"--output {self.path}: it holds another run and cannot be renamed, since it is {where}; pass "
                f"--resume auto to go on with that run, or another folder such as {self.path / 'run-2'}"
            )
        kept = set_aside(folder)
        self._release()
        log.warning("%s held another run; it is now %s (--resume auto goes on with what is there)", self.path, kept)

    def _claim(self) -> None:
        if self._lock is None:
            self._lock = claim(self.path, "another run is writing")

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _written(self, work: Callable[[], None]) -> None:
        """Do it, with an error of the file system as one of --output."""
        try:
            work()
        except OSError as error:
            raise ConfigError(
                f"--output {self.path}: {error.strerror} ({error.filename}); pass a folder that can be written"
            ) from error
