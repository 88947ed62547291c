"""NT-Xent: seconds forward, backward and full, peak memory, and the share of the machine's own multiply-add rate."""

from dataclasses import dataclass
from functools import cache

import torch

from benchmarks.harness import compare
from benchmarks.limits import bytes_per_second, multiply_adds_per_second
from benchmarks.memory import peak_bytes
from benchmarks.ntxent_contestants import NAMES, contestant, memory_probe, views
from benchmarks.ntxent_truth import loss_and_sampled_gradients

GIB = 2**30


@dataclass(frozen=True)
class Case:
    """One problem: N pairs of D-dimensional embeddings."""

    n: int
    d: int = 128
    dtype: str = "float32"
    temperature: float = 0.1

    def __str__(self) -> str:
        return f"N={self.n},D={self.d},{self.dtype},t={self.temperature:g}"


SIZES = (128, 256, 512, 1024, 2048, 4096)
CASES = {
    "smoke": [Case(16, 8), Case(16, 8, "bfloat16")],
    "quick": [
        *(Case(n) for n in (*SIZES, 8192)),
        *(Case(1024, d) for d in (64, 512)),
        Case(1024, dtype="bfloat16"),
        Case(1024, temperature=0.01),
    ],
    "full": [
        *(Case(n) for n in (*SIZES, 8192, 16384, 32768, 65536)),
        *(Case(1024, d) for d in (64, 256, 512, 1024)),
        *(Case(n, dtype=dtype) for n in (1024, 4096) for dtype in ("float64", "float16", "bfloat16")),
        *(Case(1024, temperature=t) for t in (0.5, 0.05, 0.01)),
    ],
}
# Loss and gradient, relative to float64 of the same inputs: a contestant above this computed something else.
TOLERANCE = {"float64": 1e-9, "float32": 1e-3, "float16": 3e-2, "bfloat16": 3e-2}


@cache
def limits(dtype: str, device: torch.device) -> dict[str, float]:
    return {
        "multiply_adds_per_second": multiply_adds_per_second(getattr(torch, dtype), device),
        "bytes_per_second": bytes_per_second(device),
    }


def most_bytes(device: torch.device) -> float:
    """Memory a contestant may take: a quarter of a GPU, 4 GiB of a host."""
    return torch.cuda.get_device_properties(device).total_memory / 4 if device.type == "cuda" else 4 * GIB


def test_ntxent(benchmark, case: Case, device: torch.device, budget: float) -> None:
    dtype = getattr(torch, case.dtype)
    arguments = (case.n, case.d, dtype, case.temperature, device)
    field = [contestant(name, *arguments, most_bytes(device)) for name in NAMES]
    loss, rows, gradients = loss_and_sampled_gradients(*views(case.n, case.d, dtype, device), case.temperature)

    def check(result: tuple[torch.Tensor, ...]) -> tuple[float, float]:
        off = (result[0].double() - loss).abs() / loss
        difference = torch.cat(result[1:])[rows].double() - gradients
        return max(off.item(), (difference.norm() / gradients.norm()).item()), TOLERANCE[case.dtype]

    m = 2 * case.n
    found = compare(
        benchmark,
        field,
        check,
        device,
        budget,
        suite="ntxent",
        case=vars(case),
        multiply_adds={"least": 2 * m * m * case.d, "plain": 3 * m * m * case.d},
        least_bytes=6 * m * case.d * torch.finfo(dtype).bits // 8,
        limits=limits(case.dtype, device),
    )
    for name, figures in found.items():
        # Below N = 128 everybody fits a cache: there one probe shows that measuring works.
        if "seconds" in figures and (case.n >= 128 or (name == "cpp" and case.dtype == "float32")):
            probe = {"name": name, **vars(case), "device": device.type}
            figures["peak_bytes"] = peak_bytes(f"{memory_probe.__module__}:{memory_probe.__name__}", probe)
    assert any("seconds" in figures for figures in found.values()), f"nobody agrees with the reference: {found}"
