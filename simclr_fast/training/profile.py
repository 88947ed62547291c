"""--profile: where the time of a step goes, as a Chrome trace and a table of the step's named phases."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity

PHASES = ("data", "augment", "forward", "loss", "backward", "optimizer")
WARMUP_STEPS = 3
TRACE_FILE, TABLE_FILE = "profile.json", "profile.txt"
# Backward of the loss runs inside the backward phase; its kernels are told apart by their names.
LOSS_KERNELS = "simclr_fast::ntxent"

_draining = False


def phase(name: str) -> contextlib.AbstractContextManager:
    """A named range in the profiler's trace; nothing inside a compiled graph."""
    if torch.compiler.is_compiling():
        return contextlib.nullcontext()
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


@dataclasses.dataclass(frozen=True)
class Profile:
    """Milliseconds per step, in all and by phase; the loss's backward pass is counted as loss."""

    step_ms: float
    phase_ms: dict[str, float]

    def share(self, *phases: str) -> float:
        """Share of the step (fraction) that these phases take together."""
        return sum(self.phase_ms[name] for name in phases) / self.step_ms

    def table(self) -> str:
        """The phases, one per line."""
        lines = [f"{'phase':12s} {'ms/step':>9s} {'share':>7s}"]
        for name, ms in [*self.phase_ms.items(), ("step", self.step_ms)]:
            lines.append(f"{name:12s} {ms:9.2f} {ms / self.step_ms:7.1%}")
        together = self.share("augment", "loss")
        return "\n".join([*lines, f"loss + augmentation: {together:.1%} of the step"])


class StepProfiler:
    """Profiles `steps` steps after a few to warm up; call `step` after each, until it gives the result.

    On CUDA every phase waits for the work it queued, so phases do not overlap as they do in an unprofiled run.
    """

    def __init__(self, folder: Path, steps: int, device: torch.device):
        self.folder = folder
        self.steps = steps
        self.on_cuda = device.type == "cuda"
        self.seen = 0
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.on_cuda else [])]
        self.profiler = torch.profiler.profile(activities=activities)
        self.whole = torch.profiler.record_function("steps")

    def step(self) -> Profile | None:
        """Note that a step ended. After the last one: write the trace and the table, and give the profile."""
        self.seen += 1
        if self.seen == WARMUP_STEPS:
            drain_phases(self.on_cuda)
            self.profiler.start()
            self.whole.__enter__()
        if self.seen < WARMUP_STEPS + self.steps:
            return None
        self.whole.__exit__(None, None, None)
        self.profiler.stop()
        drain_phases(False)
        profile = self._measure()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.profiler.export_chrome_trace(str(self.folder / TRACE_FILE))
        by_op = self.profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=30)
        (self.folder / TABLE_FILE).write_text(f"{profile.table()}\n\n{by_op}\n")
        return profile

    def _measure(self) -> Profile:
        total = dict.fromkeys(PHASES, 0.0)
        step_us = 0.0
        for event in self.profiler.events():
            if event.device_type != DeviceType.CPU:
                continue
            if event.name == "steps":
                step_us = event.cpu_time_total
            elif event.name in total:
                total[event.name] += event.cpu_time_total
            elif event.name.startswith(LOSS_KERNELS) and not _inside(event, "loss"):
                kernels_us = event.device_time_total if self.on_cuda else event.cpu_time_total
                total["loss"] += kernels_us
                total["backward"] -= kernels_us
        return Profile(
            step_ms=step_us / 1000 / self.steps,
            phase_ms={name: us / 1000 / self.steps for name, us in total.items()},
        )


def _inside(event: FunctionEvent, name: str) -> bool:
    """Whether the event is, or runs within, another kernel of the loss or the phase `name`."""
    parent = event.cpu_parent
    while parent is not None and parent.name != name and not parent.name.startswith(LOSS_KERNELS):
        parent = parent.cpu_parent
    return parent is not None
