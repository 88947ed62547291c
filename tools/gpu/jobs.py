"""Processes side by side, each with a limit, and then some alone: what a check does, as a list of jobs."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

POLL_SECONDS = 0.1
GRACE_SECONDS = 4.0  # between being asked to end and being killed


@dataclass(frozen=True)
class Job:
    """A command, begun when the jobs `after` have ended, whatever became of them, and `needs` have passed.

    limit: seconds it may take. until: seconds since the check's beginning at which it must have ended. alone: nothing
    else runs meanwhile. missing: why it cannot be run here, if it cannot. In the command {seconds} stands for what is
    left of its time.
    """

    name: str
    command: list[str]
    limit: float = float("inf")
    until: float = float("inf")
    after: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    alone: bool = False
    environment: dict[str, str] = field(default_factory=dict)
    missing: str = ""


@dataclass
class Outcome:
    """status: "passed", "failed", "cut off" (at its limit or the check's end), "not run" or "running"."""

    status: str
    seconds: float = 0.0
    began: float = 0.0
    reason: str = ""


class Runner:
    """Runs jobs; `outcomes` says what has become of them so far."""

    def __init__(self, folder: Path, logs: Path, environment: dict[str, str], seconds: float):
        self.folder, self.logs, self.environment = folder, logs, environment
        self.begin = time.monotonic()
        self.end = self.begin + seconds
        self.outcomes: dict[str, Outcome] = {}
        # Of those that run: (process, when it began, seconds that it has, whether alone).
        self._processes: dict[str, tuple[subprocess.Popen, float, float, bool]] = {}

    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.begin

    def left(self) -> float:
        """Seconds to the end."""
        return self.end - time.monotonic()

    def log(self, name: str) -> Path:
        """Where a job's output goes."""
        return self.logs / f"{name}.log"

    def run(self, jobs: list[Job], on_change: Callable[[], None], every: float = 10.0) -> bool:
        """Runs all jobs in their order, and returns whether the time was enough for it.

        Calls on_change whenever a job begins or ends, and every so many seconds.
        """
        waiting = list(jobs)
        told = time.monotonic()
        while waiting or self._processes:
            ended = self._reap()
            started = self._start_ready(waiting)
            if ended or started or time.monotonic() - told > every:
                on_change()
                told = time.monotonic()
            if self.left() <= 0:
                self.stop("the check's time was up", waiting)
                return False
            time.sleep(POLL_SECONDS)
        return True

    def stop(self, reason: str, waiting: list[Job] | None = None) -> None:
        """Ends what runs, and notes what was never begun."""
        for job in waiting or []:
            self.outcomes.setdefault(job.name, Outcome("not run", reason=reason))
        for name, (process, *_) in self._processes.items():
            _signal(process, signal.SIGTERM)
            self.outcomes[name].reason = reason
        until = time.monotonic() + GRACE_SECONDS
        while self._processes and time.monotonic() < until:
            self._reap(cut_off=True)
            time.sleep(POLL_SECONDS)
        for process, *_ in self._processes.values():
            _signal(process, signal.SIGKILL)
            process.wait()
        self._reap(cut_off=True)

    def _start_ready(self, waiting: list[Job]) -> bool:
        started = False
        for job in list(waiting):
            before = {*job.after, *job.needs}
            ahead = {other.name for other in waiting[: waiting.index(job)]}
            busy = {*self._processes}
            if any(alone for *_, alone in self._processes.values()) or ((ahead | busy) & before):
                continue
            if job.alone and (ahead or busy):
                continue
            waiting.remove(job)
            started = True
            failed = [name for name in job.needs if self.outcomes.get(name, Outcome("passed")).status != "passed"]
            if job.missing or failed or job.until - self.elapsed() < GRACE_SECONDS:
                why = job.missing or (f"{failed[0]} did not pass" if failed else "its time was up before it began")
                self.outcomes[job.name] = Outcome("not run", reason=why)
            else:
                self._start(job)
        return started

    def _start(self, job: Job) -> None:
        limit = min(job.limit, job.until - self.elapsed(), self.left())
        seconds = f"{max(1.0, limit - GRACE_SECONDS):.0f}"
        command = [word.replace("{seconds}", seconds) for word in job.command]
        with self.log(job.name).open("wb") as log:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environment | job.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=os.setpgrp,  # a group of its own, so that its children end with it
            )
        self._processes[job.name] = (process, time.monotonic(), limit, job.alone)
        self.outcomes[job.name] = Outcome("running", began=round(self.elapsed(), 1))

    def _reap(self, cut_off: bool = False) -> bool:
        ended = False
        for name, (process, began, limit, _) in list(self._processes.items()):
            outcome = self.outcomes[name]
            outcome.seconds = round(time.monotonic() - began, 1)
            if process.poll() is None:
                over = outcome.seconds - limit
                if over > 0 and not outcome.reason:
                    outcome.reason = f"it took more than the {limit:.0f} s that it had"
                    _signal(process, signal.SIGTERM)
                elif over > GRACE_SECONDS:
                    _signal(process, signal.SIGKILL)
                continue
            _signal(process, signal.SIGKILL)  # children that it left behind
            del self._processes[name]
            ended = True
            if process.returncode == 0:
                outcome.status, outcome.reason = "passed", ""
            elif outcome.reason or cut_off:
                outcome.status = "cut off"
            else:
                outcome.status, outcome.reason = "failed", f"exit status {process.returncode}"
        return ended


def _signal(process: subprocess.Popen, number: int) -> None:
    """To the process and its children; those that have ended are no error."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return
