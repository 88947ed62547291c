"""Time and memory on the device that is measured: events, CUDA graphs and a flushed L2, or a clock on a CPU."""

import dataclasses
import gc
import statistics
import time
from collections.abc import Callable, Sequence

import torch

from benchmarks.memory import cuda_peak

MIB = 2**20
FLUSHED_BYTES = 256 * MIB  # several times the L2 of any GPU
HEAD_START_CYCLES = 1_000_000  # about 0.6 ms, in which the host queues what is timed
LONG_MS = 5.0  # from here on, launches and the L2's contents no longer matter, but the memory that a graph keeps does

Call = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Timing:
    """Milliseconds of one call: median and quartiles; `how` is "graph" (replayed), "events" (called) or "clock"."""

    ms: float
    low: float
    high: float
    rounds: int
    how: str

    @classmethod
    def of(cls, taken: list[float], how: str) -> "Timing":
        """Of the single times."""
        low, median, high = statistics.quantiles(taken, n=4) if len(taken) > 1 else taken * 3
        return cls(median, low, high, len(taken), how)


class Device:
    """A CUDA device."""

    def __init__(self) -> None:
        self.torch = torch.device("cuda", torch.cuda.current_device())
        self._scratch = torch.empty(FLUSHED_BYTES // 4, dtype=torch.int32, device=self.torch)

    def synchronize(self) -> None:
        """Wait for all work."""
        torch.cuda.synchronize()

    def clean(self) -> None:
        """Give all unused memory back."""
        gc.collect()
        torch.cuda.empty_cache()

    def marked(self, *calls: Call) -> list[torch.cuda.Event]:
        """Queues the calls, after a flush of the L2 and with the host ahead: events before, between and behind them."""
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(len(calls) + 1)]
        self._scratch.zero_()
        torch.cuda._sleep(HEAD_START_CYCLES)
        marks[0].record()
        for call, mark in zip(calls, marks[1:]):
            call()
            mark.record()
        return marks

    def event_times(self, call: Call, rounds: int) -> list[float]:
        """Milliseconds of the device for each call."""
        pairs = [self.marked(call) for _ in range(rounds)]
        self.synchronize()
        return [start.elapsed_time(end) for start, end in pairs]

    def called(self, call: Call, seconds: float = 0.05, most: int = 30) -> Timing:
        """The call as it is, launched by the host."""
        self.event_times(call, 1)
        pilot = self.event_times(call, 1)[0]
        return Timing.of(self.event_times(call, _rounds(pilot, seconds, most)), "events")

    def replayed(self, call: Call, seconds: float = 0.05, most: int = 30) -> Timing:
        """The call captured in a CUDA graph: no host time is in it. It must have run before."""
        self.warm(call)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = call()  # its memory is what replays write into
        timing = self.called(graph.replay, seconds, most)
        del graph, kept
        return dataclasses.replace(timing, how="graph")

    def timed(self, call: Call, seconds: float = 0.05, most: int = 30) -> Timing:
        """`replayed`; for a call of more than LONG_MS, `called`."""
        call()
        pilot = self.event_times(call, 1)[0]
        return (self.called if pilot > LONG_MS else self.replayed)(call, seconds, most)

    def warm(self, call: Call) -> None:
        """Calls on a side stream, as capture asks for: lazy initialisation and compilation happen outside of it."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)

    def capture_both(self, forward: Call, backward: Callable[[object], object]) -> tuple[Call, Call, object]:
        """Replays of forward() and of backward(its result), captured apart, and what both returned.

        As torch.cuda.make_graphed_callables has it: one pool of memory, and one stream, on which autograd runs the
        backward pass because the forward pass ran there.
        """
        self.warm(lambda: backward(forward()))
        first, second = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(first):
            made = forward()
        with torch.cuda.graph(second, pool=first.pool()):
            kept = backward(made)
        return first.replay, second.replay, (made, kept)

    def forward_and_backward(
        self, forward: Call, backward: Callable[[object], object], graph: bool = True
    ) -> dict[str, Timing]:
        """{"forward": ..., "backward": ..., "both": ...}: "both" is measured as one.

        graph: whether short ones are replayed from CUDA graphs; a call that waits for the device cannot be captured.
        """

        def both() -> object:
            return backward(forward())

        both()
        pilot = self.event_times(both, 1)[0]
        if pilot > LONG_MS or not graph:
            made: list[object] = []
            calls = (lambda: made.append(forward()), lambda: backward(made[0]))
            found = self._split(calls, _rounds(pilot, 0.1, 10), "events", made.clear)
        else:
            together = self.replayed(both)
            self.clean()
            *replays, kept = self.capture_both(forward, backward)
            found = self._split(replays, _rounds(pilot, 0.05, 30), "graph") | {"both": together}
            del replays, kept
        self.clean()
        return found

    def _split(self, calls: Sequence[Call], rounds: int, how: str, after: Call = lambda: None) -> dict[str, Timing]:
        """Of the two calls in a row, and both: the second finds in the L2 what the first left there."""
        parts: dict[str, list[float]] = {"forward": [], "backward": [], "both": []}
        for _ in range(rounds):
            marks = self.marked(*calls)
            after()
            self.synchronize()
            for name, start, end in (("forward", 0, 1), ("backward", 1, 2), ("both", 0, 2)):
                parts[name].append(marks[start].elapsed_time(marks[end]))
        return {name: Timing.of(taken, how) for name, taken in parts.items()}

    def host_us(self, call: Call, calls: int = 20) -> float:
        """Median microseconds until the call returns, on an idle device."""
        taken = [self._host_ms(call) for _ in range(calls)]
        self.synchronize()
        return statistics.median(taken) * 1e3

    def _host_ms(self, call: Call) -> float:
        self.synchronize()
        begin = time.perf_counter()
        call()
        return (time.perf_counter() - begin) * 1e3

    def peak_bytes(self, call: Call) -> int:
        """What the call allocates at most, beyond what is held before it."""
        return cuda_peak(call, self.torch)

    def free_bytes(self) -> int:
        """Memory that can still be allocated."""
        return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()


class DryDevice(Device):
    """The CPU in the place of a GPU: the same calls in the same order, and figures that mean nothing."""

    def __init__(self) -> None:
        self.torch = torch.device("cpu")

    def synchronize(self) -> None: ...

    def clean(self) -> None: ...

    def event_times(self, call: Call, rounds: int) -> list[float]:
        return [self._host_ms(call) for _ in range(rounds)]

    def called(self, call: Call, seconds: float = 0.05, most: int = 30) -> Timing:
        return Timing.of(self.event_times(call, 2), "clock")

    replayed = timed = called

    def forward_and_backward(
        self, forward: Call, backward: Callable[[object], object], graph: bool = True
    ) -> dict[str, Timing]:
        made = forward()
        timings = {"forward": self.called(forward), "both": self.called(lambda: backward(forward()))}
        return timings | {"backward": Timing.of(self.event_times(lambda: backward(made), 1), "clock")}

    def host_us(self, call: Call, calls: int = 20) -> float:
        return super().host_us(call, 2)

    def peak_bytes(self, call: Call) -> int:
        call()
        return 0

    def free_bytes(self) -> int:
        return 2**33


def _rounds(pilot_ms: float, seconds: float, most: int) -> int:
    return max(5, min(most, int(seconds * 1e3 / max(pilot_ms, 1e-3))))
