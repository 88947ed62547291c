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


def tf32_products(dtype: torch.dtype, device: torch.device) -> int:
    """How many products in TF32 make one of this dtype with all of its accuracy, as CUDA kernels of NT-Xent make it.

    0 where they need none: on a CPU, for other types, and where torch.set_float32_matmul_precision allows TF32.
    """
    exact = torch.get_float32_matmul_precision() == "highest"
    return 3 if device.type == "cuda" and dtype == torch.float32 and exact else 0


def multiply_add_gauge(dtype: torch.dtype, device: torch.device, size: int | None = None) -> Callable[[], float]:
    """A function that multiplies two square matrices of this dtype and returns the multiply-adds per second.

    Where `tf32_products` of them make one, it is their rate: torch.mm itself would run on the far slower FMA units.
    """
    size = size or (8192 if device.type == "cuda" else 2048)
    products = tf32_products(dtype, device)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))

    def gauge() -> float:
        allowed = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = allowed or products > 0
        try:
            return size**3 / max(products, 1) / _seconds(lambda: a @ b, device)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = allowed

    gauge()  # lazy initialisation
    return gauge


@cache
def bytes_per_second(device: torch.device, megabytes: int = 256, rounds: int = 7) -> float:
    """Bytes read plus bytes written per second by a large device-to-device copy."""
    source = torch.ones(megabytes << 18, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * source.nbytes / statistics.median(_seconds(lambda: target.copy_(source), device) for _ in range(rounds))
