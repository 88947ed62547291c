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


def half_products(dtype: torch.dtype, device: torch.device) -> int:
    """How many products in float16 make one of this dtype, as the compiled CUDA kernels of NT-Xent make it.

    For float32 on CUDA three, or one where torch.set_float32_matmul_precision allows TF32; 0 where its own type serves.
    """
    if device.type != "cuda" or dtype != torch.float32:
        return 0
    return 3 if torch.get_float32_matmul_precision() == "highest" else 1


def multiply_add_gauge(dtype: torch.dtype, device: torch.device, size: int | None = None) -> Callable[[], float]:
    """A function that multiplies two square matrices of this dtype and returns the multiply-adds per second.

    Where `half_products` of them make one, it is their rate: torch.mm itself would run on far slower units.
    """
    size = size or (8192 if device.type == "cuda" else 2048)
    products = half_products(dtype, device)
    a, b = (torch.randn(size, size, device=device).to(torch.float16 if products else dtype) for _ in range(2))

    def gauge() -> float:
        return size**3 / max(products, 1) / _seconds(lambda: a @ b, device)

    gauge()  # lazy initialisation
    return gauge


@cache
def bytes_per_second(device: torch.device, megabytes: int = 256, rounds: int = 7) -> float:
    """Bytes read plus bytes written per second by a large device-to-device copy."""
    source = torch.ones(megabytes << 18, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * source.nbytes / statistics.median(_seconds(lambda: target.copy_(source), device) for _ in range(rounds))
