"""Work on a side stream and in a CUDA graph, with the waits that PyTorch's notes on CUDA semantics ask for."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

BUSY_CYCLES = 50_000_000  # about 30 ms of a GPU, far longer than a host takes to launch what follows


@contextmanager
def side_stream() -> Iterator[torch.cuda.Stream]:
    """A new current stream that waits for the work before it, and that the work after it waits for."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        yield side
    torch.cuda.current_stream().wait_stream(side)


def keep_busy() -> None:
    """Delay the current stream: what is wrongly launched on another stream overtakes what follows on this one."""
    torch.cuda._sleep(BUSY_CYCLES)


def captured(work: Callable[[], object]) -> tuple[torch.cuda.CUDAGraph, object]:
    """A graph of `work`, and the tensors that each replay fills.

    Nothing may be compiled, loaded or initialised during a capture, hence the runs before it. They take place on a
    side stream, since a capture does too, and autograd's nodes remember the stream that they were made on.
    """
    with side_stream():
        for _ in range(3):
            work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = work()
    return graph, outputs
