"""Interleaved timing of contestants whose results agree with the reference; a wrong one is reported, not timed."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

FEWEST_ROUNDS, MOST_ROUNDS = 5, 60


class Laps:
    """Marks the ends of phases: `lap("forward")` closes the phase since the last mark. Events on CUDA, clock on CPU."""

    def __init__(self, device: torch.device):
        self.device = device
        self.marks: list[tuple[str, object]] = []
        self("start")

    def __call__(self, phase: str) -> None:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append((phase, event))
        else:
            self.marks.append((phase, time.perf_counter()))

    def seconds(self) -> dict[str, float]:
        """Seconds of every phase, and of all of them under "full"."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        found = {}
        for (_, before), (phase, after) in zip(self.marks, self.marks[1:]):
            gap = before.elapsed_time(after) / 1e3 if self.device.type == "cuda" else after - before
            found[phase] = found.get(phase, 0.0) + gap
        return {**found, "full": sum(found.values())}


@dataclass(frozen=True)
class Contestant:
    """One way to do the job. `run(lap)` does it once, marks its phases, and returns what `check` looks at."""

    name: str
    run: Callable[[Laps], object]


@dataclass(frozen=True)
class Absent:
    """A contestant that is not measured, and why ("not installed", "needs 17 GiB")."""

    name: str
    reason: str


def summary(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    q1, median, q3 = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return {"median": median, "q1": q1, "q3": q3, "rounds": len(values)}


def compare(
    benchmark,
    contestants: list[Contestant | Absent],
    check: Callable[[object], tuple[float, float]],
    device: torch.device,
    budget: float,
    **about: object,
) -> dict[str, dict]:
    """Checks every contestant, then times those that agree, in rounds of rotating order, for about `budget` seconds.

    `check(result)` gives (error, tolerance). The figures go into the benchmark's extra_info: for each contestant either
    seconds per phase (median, quartiles) with its error, or "error" above "tolerance", or "absent" with the reason.
    `about` (the case, operation and byte counts) is stored beside them.
    """
    found: dict[str, dict] = {}
    runners: list[Contestant] = []
    once = 0.0
    for contestant in contestants:
        if isinstance(contestant, Absent):
            found[contestant.name] = {"absent": contestant.reason}
            continue
        contestant.run(Laps(device))  # first call: lazy initialisation, compilation
        lap = Laps(device)
        error, tolerance = check(contestant.run(lap))
        found[contestant.name] = {"error": error, "tolerance": tolerance}
        if error <= tolerance:  # false for NaN
            runners.append(contestant)
            once += lap.seconds()["full"]

    seconds: dict[str, dict[str, list[float]]] = {contestant.name: {} for contestant in runners}
    turn = 0

    def one_round() -> None:
        nonlocal turn
        for contestant in runners[turn % len(runners) :] + runners[: turn % len(runners)]:
            lap = Laps(device)
            contestant.run(lap)
            for phase, value in lap.seconds().items():
                seconds[contestant.name].setdefault(phase, []).append(value)
        turn += 1

    rounds = min(MOST_ROUNDS, max(FEWEST_ROUNDS, int(budget / max(once, 1e-9))))
    benchmark.pedantic(one_round, rounds=rounds, iterations=1)
    for name, phases in seconds.items():
        found[name]["seconds"] = {phase: summary(values) for phase, values in phases.items()}
    benchmark.extra_info.update(about, contestants=found)
    return found
