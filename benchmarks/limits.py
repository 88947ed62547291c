"""What this machine can do at best, measured in the same run: the rate of a large torch.mm, the bandwidth of a copy."""

import statistics

import torch

from benchmarks.harness import Laps


def _median_seconds(call, device: torch.device, rounds: int) -> float:
    call()
    times = []
    for _ in range(rounds):
        lap = Laps(device)
        call()
        lap("call")
        times.append(lap.seconds()["call"])
    return statistics.median(times)


def multiply_adds_per_second(dtype: torch.dtype, device: torch.device, size: int | None = None) -> float:
    """Rate of a square torch.mm of this dtype."""
    size = size or (8192 if device.type == "cuda" else 2048)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return size**3 / _median_seconds(lambda: a @ b, device, 7)


def bytes_per_second(device: torch.device, megabytes: int = 256) -> float:
    """Bytes read plus bytes written per second by a large device-to-device copy."""
    source = torch.ones(megabytes << 18, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _median_seconds(lambda: target.copy_(source), device, 7)
