"""Interleaved timing of contestants whose results agree with the reference; a wrong one is reported, not timed."""

import importlib.util
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

FEWEST_ROUNDS, MOST_ROUNDS = 5, 60
# Short calls are repeated within a turn, as a training loop repeats them: the turn's figure is the median of its calls.
TURN_SECONDS, MOST_CALLS = 0.02, 16


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


Check = Callable[[object], tuple[float, float]]


@dataclass(frozen=True)
class Contestant:
    """One way to do the job. `run(lap)` does it once, marks its phases, and returns what `check` looks at.

    `check(result)` gives (error, tolerance); None takes that of the comparison. `note` says in what it differs from the
    others although its results agree.
    """

    name: str
    run: Callable[[Laps], object]
    check: Check | None = None
    note: str = ""


@dataclass(frozen=True)
class Absent:
    """A contestant that is not measured, and why ("not installed", "needs 17 GiB")."""

    name: str
    reason: str


def in_a_line(error: Exception) -> str:
    """Its type and the first line of its message."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def installed(module: str) -> bool:
    """Whether a peer's module can be imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that holds it
        return False


def summary(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    q1, median, q3 = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return {"median": median, "q1": q1, "q3": q3, "rounds": len(values)}


def time_call(contestant: Contestant, device: torch.device, calls: int = 1) -> dict[str, float]:
    """Seconds of every phase: the median over this many calls in a row."""
    taken: dict[str, list[float]] = {}
    for _ in range(calls):
        lap = Laps(device)
        contestant.run(lap)
        for phase, value in lap.seconds().items():
            taken.setdefault(phase, []).append(value)
    return {phase: statistics.median(values) for phase, values in taken.items()}


def _admit(contestant: Contestant | Absent, check: Check | None, device: torch.device) -> tuple[dict, float | None]:
    """What is known of a contestant before timing ("absent", "failed", or "error" and "tolerance"); seconds of a call,
    None where it is not to be timed.

    A peer that raises (out of memory, another version's API) is a finding, as one that is wrong is; that ours must
    neither raise nor be wrong is for `require` to say.
    """
    if isinstance(contestant, Absent):
        return {"absent": contestant.reason}, None
    try:
        contestant.run(Laps(device))  # first call: lazy initialisation, compilation
        lap = Laps(device)
        result = contestant.run(lap)
        once = lap.seconds()["full"]
    except Exception as error:
        return {"failed": in_a_line(error)}, None
    error, tolerance = (contestant.check or check)(result)
    figures = {"error": error, "tolerance": tolerance, **({"note": contestant.note} if contestant.note else {})}
    return figures, once if error <= tolerance else None


def _plan(once: dict[str, float], gauging: float, budget: float) -> tuple[int, dict[str, int]]:
    """Number of rounds, and every contestant's calls in a turn, for about `budget` seconds."""
    calls = {name: min(MOST_CALLS, max(1, int(TURN_SECONDS / max(seconds, 1e-9)))) for name, seconds in once.items()}
    turn = {name: calls[name] * seconds for name, seconds in once.items()}
    # The slow take part in the fewest rounds only, so that they do not cost the quick their many.
    quick = [seconds for seconds in turn.values() if not _is_slow(seconds, budget)]
    left = max(budget / 2, budget - FEWEST_ROUNDS * (sum(turn.values()) - sum(quick)))
    rounds = int(left / max(sum(quick) + gauging, 1e-9)) if quick else FEWEST_ROUNDS
    return min(MOST_ROUNDS, max(FEWEST_ROUNDS, rounds)), calls


def _is_slow(turn_seconds: float, budget: float) -> bool:
    return turn_seconds > budget / (4 * FEWEST_ROUNDS)


def compare(
    benchmark,
    contestants: list[Contestant | Absent],
    check: Check | None,
    device: torch.device,
    budget: float,
    gauges: dict[str, Callable[[], float]] | None = None,
    **about: object,
) -> dict[str, dict]:
    """Checks every contestant, then times those that agree, in rounds of rotating order, for about `budget` seconds.

    `check(result)` gives (error, tolerance). The figures go into the benchmark's extra_info: for each contestant either
    seconds per phase (median, quartiles) with its error, or "error" above "tolerance", or "failed" with the exception,
    or "absent" with the reason. `gauges` are read once a round and their medians stored as "limits": what the machine
    can do, under the same conditions. `about` (the case, operation and byte counts) is stored beside them.
    """
    found: dict[str, dict] = {}
    runners: list[Contestant] = []
    once: dict[str, float] = {}
    for contestant in contestants:
        found[contestant.name], seconds = _admit(contestant, check, device)
        if seconds is not None:
            runners.append(contestant)
            once[contestant.name] = seconds

    start = time.perf_counter()
    for gauge in (gauges or {}).values():
        gauge()
    rounds, calls = _plan(once, time.perf_counter() - start, budget)
    for_the_slow = {round(i * (rounds - 1) / (FEWEST_ROUNDS - 1)) for i in range(FEWEST_ROUNDS)}
    taken: dict[str, dict[str, list[float]]] = {contestant.name: {} for contestant in runners}
    read: dict[str, list[float]] = {name: [] for name in gauges or {}}
    turn = 0

    def one_round() -> None:
        nonlocal turn
        first = turn % len(runners)
        for contestant in runners[first:] + runners[:first]:
            name = contestant.name
            if turn not in for_the_slow and _is_slow(calls[name] * once[name], budget):
                continue
            for phase, value in time_call(contestant, device, calls[name]).items():
                taken[name].setdefault(phase, []).append(value)
        for name, gauge in (gauges or {}).items():
            read[name].append(gauge())
        turn += 1

    if runners:
        benchmark.pedantic(one_round, rounds=rounds, iterations=1)
    else:
        benchmark.pedantic(lambda: None, rounds=1, iterations=1)  # the figures below still go into the file
    for name, phases in taken.items():
        found[name]["seconds"] = {phase: summary(values) for phase, values in phases.items()}
    limits = {"limits": {name: statistics.median(values) for name, values in read.items() if values}} if gauges else {}
    benchmark.extra_info.update(about, contestants=found, **limits)
    return found


def require(found: dict[str, dict], ours: tuple[str, ...]) -> None:
    """Raises AssertionError where one of ours raised or disagrees, or where nobody could be timed."""
    bad = {name: found[name] for name in ours if name in found and not {"seconds", "absent"} & set(found[name])}
    assert not bad, f"disagrees with the reference, or fails: {bad}"
    assert any("seconds" in figures for figures in found.values()), f"nobody could be timed: {found}"
