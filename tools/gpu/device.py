"""Time and memory on the device that is measured: events, CUDA graphs and a flushed L2, or a clock on a CPU."""

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

MIB = 2**20
FLUSHED_BYTES = 256 * MIB  # several times the L2 of any GPU
HEAD_START_CYCLES = 1_000_000  # about 0.6 ms, in which the host queues what is timed
LONG_MS = 5.0  # from here on, launches and the L2's contents no longer matter, but the memory that a graph keeps does

Call = Callable[[], object]


@dataclass(frozen=True)
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

    dry = False

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

    def event_times(self, call: Call, rounds: int) -> list[float]:
        """Milliseconds of the device for each call, after a flush of the L2 and with the host ahead."""
        pairs = []
        for _ in range(rounds):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self._scratch.zero_()
            torch.cuda._sleep(HEAD_START_CYCLES)
            start.record()
            call()
            end.record()
            pairs.append((start, end))
        self.synchronize()
        return [start.elapsed_time(end) for start, end in pairs]

    def called(self, call: Call, seconds: float = 0.05, most: int = 30) -> Timing:
        """The call as it is, launched by the host."""
        self.event_times(call, 1)
        pilot = self.event_times(call, 1)[0]
        return Timing.of(self.event_times(call, _rounds(pilot, seconds, most)), "events")

    def replayed(self, call: Call, seconds: float = 0.05, most: int = 30) -> Timing:
        """The call captured in a CUDA graph: no host time is in it. It must have run before."""
        graph, kept = self.capture(call)
        timing = self.called(graph.replay, seconds, most)
        del graph, kept
        return Timing(timing.ms, timing.low, timing.high, timing.rounds, "graph")

    def timed(self, call: Call, seconds: float = 0.05, most: int = 30) -> Timing:
        """`replayed`; for a call of more than LONG_MS, `called`."""
        call()
        pilot = self.event_times(call, 1)[0]
        if pilot > LONG_MS:
            return self.called(call, seconds, most)
        return self.replayed(call, seconds, most)

    def capture(self, call: Call) -> tuple[torch.cuda.CUDAGraph, object]:
        """A graph of the call, and what the captured call returned: its memory is what replays write into."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):  # as capture asks for: lazy initialisation and compilation happen outside of it
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = call()
        return graph, kept

    def capture_both(self, forward: Call, backward: Callable[[object], object]) -> tuple[Call, Call, object]:
        """Replays of forward() and of backward(its result), captured apart, and what backward returned.

        As torch.cuda.make_graphed_callables has it: one pool of memory, and one stream, on which autograd runs the
        backward pass because the forward pass ran there.
        """
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                backward(forward())
        torch.cuda.current_stream().wait_stream(side)
        first, second = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(first):
            made = forward()
        with torch.cuda.graph(second, pool=first.pool()):
            kept = backward(made)

        def replay_forward(held: object = made) -> None:  # holds the memory that the second graph reads
            first.replay()

        return replay_forward, second.replay, kept

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
            found = self._split_by_events(forward, backward, _rounds(pilot, 0.1, 10))
        else:
            found = {"both": self.replayed(both)}
            self.clean()
            replay_forward, replay_backward, kept = self.capture_both(forward, backward)
            parts: tuple[list[float], list[float]] = ([], [])
            for _ in range(_rounds(pilot, 0.05, 30)):
                # The backward pass finds in the L2 what the forward pass left there.
                marks = [torch.cuda.Event(enable_timing=True) for _ in range(3)]
                self._scratch.zero_()
                torch.cuda._sleep(HEAD_START_CYCLES)
                marks[0].record()
                replay_forward()
                marks[1].record()
                replay_backward()
                marks[2].record()
                self.synchronize()
                for part, start, end in zip(parts, marks, marks[1:]):
                    part.append(start.elapsed_time(end))
            found |= {name: Timing.of(taken, "graph") for name, taken in zip(("forward", "backward"), parts)}
            del replay_forward, replay_backward, kept
        self.clean()
        return found

    def _split_by_events(self, forward: Call, backward: Callable[[object], object], rounds: int) -> dict[str, Timing]:
        parts: dict[str, list[float]] = {"forward": [], "backward": [], "both": []}
        for _ in range(rounds):
            marks = [torch.cuda.Event(enable_timing=True) for _ in range(3)]
            self._scratch.zero_()
            torch.cuda._sleep(HEAD_START_CYCLES)
            marks[0].record()
            made = forward()
            marks[1].record()
            backward(made)
            marks[2].record()
            del made
            self.synchronize()
            for name, start, end in (("forward", 0, 1), ("backward", 1, 2), ("both", 0, 2)):
                parts[name].append(marks[start].elapsed_time(marks[end]))
        return {name: Timing.of(taken, "events") for name, taken in parts.items()}

    def host_us(self, call: Call, calls: int = 20) -> float:
        """Median microseconds until the call returns, on an idle device."""
        taken = []
        for _ in range(calls):
            self.synchronize()
            begin = time.perf_counter()
            call()
            taken.append(time.perf_counter() - begin)
        self.synchronize()
        return statistics.median(taken) * 1e6

    def peak_bytes(self, call: Call) -> int:
        """What the call allocates at most, beyond what is held before it."""
        self.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        result = call()
        self.synchronize()
        del result
        return torch.cuda.max_memory_allocated() - before

    def free_bytes(self) -> int:
        """Memory that can still be allocated."""
        return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()


class DryDevice(Device):
    """The CPU in the place of a GPU: the same calls in the same order, and figures that mean nothing."""

    dry = True

    def __init__(self) -> None:
        self.torch = torch.device("cpu")

    def synchronize(self) -> None: ...

    def clean(self) -> None:
        gc.collect()

    def event_times(self, call: Call, rounds: int) -> list[float]:
        taken = []
        for _ in range(rounds):
            begin = time.perf_counter()
            call()
            taken.append((time.perf_counter() - begin) * 1e3)
        return taken

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
