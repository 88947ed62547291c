"""--profile: where the time of a step goes, as a Chrome trace, a table, and a sentence that says what bounds the run.

Phases that wait for the device at their end do not overlap as they do in a run. So some steps are measured as they are,
for their time, the waiting for data and the idle device; and as many after them phase by phase.
"""

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity

from simclr_fast.config import Config
from simclr_fast.data.chunks import AHEAD, CHUNK
from simclr_fast.data.threads import Work, work_done
from simclr_fast.errors import ConfigError, naming
from simclr_fast.training.profiled import PHASES, Loading, Profile, form_of

WARMUP_STEPS = 3
TRACE_FILE, TABLE_FILE = "profile.json", "profile.txt"
# Backward of the loss runs inside the backward phase; its kernels are told apart by their names.
LOSS_KERNELS = "simclr_fast::ntxent"
COPIES = "Memcpy HtoD"  # how CUDA's profiler names copies from the host to the device

_draining = False


def phase(name: str) -> contextlib.AbstractContextManager:
    """A named range in the profiler's trace; not for code that is compiled, where it would leave none."""
    return _drained(name) if _draining else torch.profiler.record_function(name)


def drain_phases(on: bool) -> None:
    """Whether phases wait for the GPU at their end, so that their times are those of the work they queued."""
    global _draining
    _draining = on


@contextlib.contextmanager
def _drained(name: str) -> Iterator[None]:
    with torch.profiler.record_function(name):
        yield
        torch.cuda.synchronize()


class StepProfiler:
    """Profiles `--profile` steps as they are and as many by phase; call `step` after each, until it gives the result.

    Those before are to warm up, and to use up the images that the threads read ahead before the first step. Raises
    ConfigError where so many steps are not left.
    """

    def __init__(self, config: Config, device: torch.device, images: int, steps_left: int):
        """images: of a step of this process; steps_left: of the run."""
        self.steps = config.run.profile
        self.threads = config.data.workers
        self.decodes = form_of(config.data) != "raw"
        self.on_cuda = device.type == "cuda"
        self.warmup = WARMUP_STEPS + math.ceil(AHEAD * self.threads * min(CHUNK, images) / images)
        needed = self.warmup + 2 * self.steps
        if needed > steps_left:
            raise ConfigError(
                f"--profile {self.steps}: it takes {needed} steps, and the run has {steps_left}; pass fewer, or "
                "more --epochs"
            )
        if not self.on_cuda:
            # Of the levels of its log (https://github.com/pytorch/kineto), errors are the highest. On the CPU it has
            # none but that there is no GPU.
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        self.seen = 0
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.on_cuda else [])]
        self.profiler = torch.profiler.profile(activities=activities)
        # It watches kernels alone, so that the host is hardly slowed.
        self.kernels = torch.profiler.profile(activities=[ProfilerActivity.CUDA]) if self.on_cuda else None
        self.begin: _Reading | None = None
        self.end: _Reading | None = None

    def step(self, waited: float) -> Profile | None:
        """Note that a step ended; `waited` seconds of the run so far went by waiting for data. The profile at last."""
        self.seen += 1
        if self.seen == self.warmup:
            if self.kernels is not None:
                self.kernels.start()
            self.begin = self._read(waited)
        if self.seen == self.warmup + self.steps:
            self.end = self._read(waited)
            if self.kernels is not None:
                self.kernels.stop()
            drain_phases(self.on_cuda)
            self.profiler.start()
        if self.seen < self.warmup + 2 * self.steps:
            return None
        self.profiler.stop()
        drain_phases(False)
        return self._measure()

    def write(self, folder: Path, text: str) -> None:
        """Write the trace, and the text with the table of operators, to a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        self.profiler.export_chrome_trace(str(folder / TRACE_FILE))
        by_op = self.profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=30)
        with naming(folder / TABLE_FILE):
            (folder / TABLE_FILE).write_text(f"{text}\n\n{by_op}\n")

    def _read(self, waited: float) -> "_Reading":
        if self.on_cuda:
            torch.cuda.synchronize()
        return _Reading(time.perf_counter(), waited, work_done())

    def _measure(self) -> Profile:
        seconds = self.end.time - self.begin.time
        idle = None
        if self.kernels is not None:
            busy_us = covered((e.time_range.start, e.time_range.end) for e in self.kernels.events() if _on_device(e))
            idle = max(0.0, 1000 * seconds - busy_us / 1000) / self.steps
        return Profile(
            step_ms=1000 * seconds / self.steps,
            waiting_ms=1000 * (self.end.waited - self.begin.waited) / self.steps,
            phase_ms={name: us / 1000 / self.steps for name, us in self._phases_us().items()},
            idle_ms=idle,
            loading=loading(self.begin.work, self.end.work, self.threads, seconds, self.decodes),
        )

    def _phases_us(self) -> dict[str, float]:
        total = dict.fromkeys(PHASES if self.on_cuda else PHASES[1:], 0.0)  # without a device there is no copy to it
        for event in self.profiler.events():
            if event.device_type != DeviceType.CPU:
                if event.name.startswith(COPIES):
                    total["copy"] += event.time_range.elapsed_us()
            elif event.name in total:
                total[event.name] += event.cpu_time_total
            elif event.name.startswith(LOSS_KERNELS) and not _inside(event, "loss"):
                kernels_us = event.device_time_total if self.on_cuda else event.cpu_time_total
                total["loss"] += kernels_us
                total["backward"] -= kernels_us
        return total


@dataclasses.dataclass(frozen=True)
class _Reading:
    """What the clocks showed between two steps; seconds."""

    time: float
    waited: float
    work: Work


def loading(before: Work, after: Work, threads: int, seconds: float, decodes: bool = True) -> Loading | None:
    """What so many threads did in these seconds; None where no image was read."""
    images, busy = after.images - before.images, after.busy - before.busy
    if images == 0:
        return None
    # An image that was begun before counts as a whole.
    busy_share = min(1.0, busy / (max(1, threads) * seconds))
    cpu_share = min(1.0, (after.cpu - before.cpu) / busy) if busy > 0 else 1.0
    return Loading(threads, busy_share, cpu_share, 1000 * busy / images, decodes)


def covered(ranges: Iterable[tuple[float, float]]) -> float:
    """The length that ranges (begin, end) cover together; what several cover counts once."""
    total, reached = 0.0, -math.inf
    for begin, end in sorted(ranges):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def _on_device(event: FunctionEvent) -> bool:
    """Whether the event is work of the device, and no range that the host named."""
    return event.device_type != DeviceType.CPU and not event.is_user_annotation


def _inside(event: FunctionEvent, name: str) -> bool:
    """Whether the event is, or runs within, another kernel of the loss or the phase `name`."""
    parent = event.cpu_parent
    while parent is not None and parent.name != name and not parent.name.startswith(LOSS_KERNELS):
        parent = parent.cpu_parent
    return parent is not None
