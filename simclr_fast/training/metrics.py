"""What a run shows and records: the progress bar, the metrics of a step, and the summary at the end."""

import contextlib
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from rich.console import Console
from tqdm.auto import tqdm

from simclr_fast.config import Config, OptimizationOptions
from simclr_fast.data.loading import ReadingLoader
from simclr_fast.data.resident import ArrayLoader
from simclr_fast.run_files import METRICS_FILE, chance_level, read_metrics
from simclr_fast.training.profile import phase
from simclr_fast.training.sinks import open_sinks
from simclr_fast.training.step import StepResult
from simclr_fast.training.warnings import EarlyWarning

Item = TypeVar("Item")
# What the progress bar shows: metric -> (short name, format).
SHOWN = {
    "loss": ("loss", "{:.3f}"),
    "contrastive_accuracy": ("contrastive acc", "{:.1%}"),
    "images_per_second": ("images/s", "{:.0f}"),
    "knn": ("kNN", "{:.1%}"),
}


def log_interval_of(total_steps: int) -> int:
    """Steps between two lines of metrics where none are named: what draws a curve of a short run, too."""
    return min(10, max(1, total_steps // 20))


class MetricsLog:
    """Context that shows and records the metrics of the main process; elsewhere (enabled=False) it does nothing."""

    def __init__(self, config: Config, *, enabled: bool, step: int, total_steps: int):
        self.enabled = enabled
        self.last: dict[str, float] = {}
        self.files: list[str] = []  # of the run's folder that it writes
        if not enabled:
            return
        self.sinks = open_sinks(config, step)
        self.files += [name for sink in self.sinks for name in sink.files]
        self.bar = tqdm(total=total_steps, initial=step, unit="step", dynamic_ncols=True)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self.enabled:
            return
        ending = "failed" if kind is not None else "stopped" if self.bar.n < self.bar.total else "finished"
        self.bar.close()
        with contextlib.ExitStack() as stack:  # each is closed, whatever another one says
            for sink in self.sinks:
                stack.callback(sink.close, ending)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Record values (by name) at a step, and show the ones that the progress bar has room for."""
        self.last |= values
        if not self.enabled:
            return
        for sink in self.sinks:
            sink.write(step, values)
        shown = {short: form.format(self.last[name]) for name, (short, form) in SHOWN.items() if name in self.last}
        self.bar.set_postfix(shown, refresh=False)

    def warn(self, step: int, warning: EarlyWarning, console: Console) -> None:
        """Say in one line what is wrong after so many steps, and record it."""
        if not self.enabled:
            return
        with self.bar.external_write_mode(file=sys.stdout):  # the bar is drawn again below the line
            console.print(f"warning: {warning.text}", style="yellow", markup=False, highlight=False, soft_wrap=True)
        for sink in self.sinks:
            sink.warn(step, warning)

    def advance(self) -> None:
        """Move the progress bar by a step."""
        if self.enabled:
            self.bar.update()


class StepClock:
    """Measures, between two readings, the time of the steps and the share of it spent waiting for data."""

    def __init__(self) -> None:
        self.steps = 0
        self.waited = 0.0
        self.begin = time.perf_counter()

    def waiting_for(self, batches: Iterable[Item]) -> Iterator[Item]:
        """The batches, with the time until each arrives counted as waiting."""
        iterator = iter(batches)
        while True:
            begin = time.perf_counter()
            try:
                with phase("waiting"):
                    batch = next(iterator)
            except StopIteration:
                return
            finally:
                self.waited += time.perf_counter() - begin
            self.steps += 1
            yield batch

    def read(self) -> tuple[float, float]:
        """(seconds per step, share of it waiting for data) since the last reading."""
        now = time.perf_counter()
        elapsed, steps, waited = now - self.begin, max(1, self.steps), self.waited
        self.begin, self.steps, self.waited = now, 0, 0.0
        return elapsed / steps, waited / elapsed


def step_metrics(
    result: StepResult,
    options: OptimizationOptions,
    epochs: float,
    lr: float,
    clock: StepClock,
    loader: ArrayLoader | ReadingLoader,
    device: torch.device,
) -> dict[str, float]:
    """What a step that was asked for statistics made, after so many epochs, and how the steps since the last were.

    Waits for the step. docs/scale.md explains each by its name.
    """
    seconds, waiting = clock.read()
    return {
        "epoch": epochs,
        "loss": result.loss.item(),
        "chance": chance_level(options.batch_size),
        "contrastive_accuracy": result.statistics.accuracy.item(),
        "positive_logit": result.statistics.positive_logit.item(),
        "positive_probability": result.statistics.positive_probability.item(),
        "temperature": options.temperature,
        "lr": lr,
        "grad_norm": result.grad_norm.item(),
        "images_per_second": options.batch_size / seconds,
        "data_wait_share": waiting,
        "peak_memory_mib": peak_memory_mib(device),
        "unreadable_images": len(loader.bad),
        "gpu_decode_fallbacks": loader.gpu_decode_fallbacks,
    }


def peak_memory_mib(device: torch.device) -> float:
    """Highest memory use so far, MiB: allocated by torch on CUDA, of the whole process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def print_summary(config: Config, step: int, seconds: float, console: Console) -> None:
    """A run of so many steps and seconds in a few lines, by the last of its recorded metrics, if they are there."""
    images = step * config.optimization.batch_size
    trained = f"Trained {step} steps in {seconds:.0f} s ({images / seconds:.0f} images/s)."
    lines = [line for line in read_metrics(config.run.output / METRICS_FILE) if "loss" in line]
    if not lines:
        console.print(f"{trained} {METRICS_FILE} holds no metrics of them")
        return
    last = lines[-1]
    console.print(
        f"{trained} Loss {last['loss']:.3f} (chance {last['chance']:.3f}), contrastive accuracy "
        f"{last['contrastive_accuracy']:.1%}, peak memory {last['peak_memory_mib']:.0f} MiB"
    )
