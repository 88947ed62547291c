"""What this machine can do at best, measured in the same run: the rate of a large torch.mm, the bandwidth of a copy."""

import statistics
from collections.abc import Callable
from functools import cache

import torch

from benchmarks.harness import Laps


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    lap = Laps(device)
    call()
    lap("call")
    return lap.seconds()["full"]


def multiply_add_gauge(dtype: torch.dtype, device: torch.device, size: int | None = None) -> Callable[[], float]:
    """A function that multiplies two square matrices of this dtype and returns the multiply-adds per second."""
    size = size or (8192 if device.type == "cuda" else 2048)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    a @ b  # lazy initialisation
    return lambda: size**3 / _seconds(lambda: a @ b, device)


@cache
def bytes_per_second(device: torch.device, megabytes: int = 256, rounds: int = 7) -> float:
    """Bytes read plus bytes written per second by a large device-to-device copy."""
    source = torch.ones(megabytes << 18, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * source.nbytes / statistics.median(_seconds(lambda: target.copy_(source), device) for _ in range(rounds))
