"""NT-Xent: seconds forward, backward and full, peak memory, and the share of the machine's own multiply-add rate."""

from dataclasses import dataclass

import pytest
import torch

from benchmarks.harness import Absent, compare, installed, require
from benchmarks.limits import bytes_per_second, half_products, multiply_add_gauge
from benchmarks.memory import peak_bytes
from benchmarks.ntxent_contestants import CLIP_LOSSES, MODULES, NAMES, check_ntxent, contestant, memory_probe, views
from simclr_fast.backends import BACKENDS, why_not

GIB = 2**30
# Memory that a contestant may take on a host, by scale; a quarter of it on a GPU.
MOST_BYTES = {"smoke": GIB, "quick": GIB, "full": 4 * GIB}


@dataclass(frozen=True)
class Case:
    """One problem: N pairs of D-dimensional embeddings."""

    n: int
    d: int = 128
    dtype: str = "float32"
    temperature: float = 0.1

    def __str__(self) -> str:
        return f"N={self.n},D={self.d},{self.dtype},t={self.temperature:g}"

    @property
    def in_main_series(self) -> bool:
        """Whether only N differs from the other cases of the main series, over which time and memory are plotted."""
        return self == Case(self.n)


SIZES = (128, 256, 512, 1024, 2048, 4096, 8192)
CASES = {
    "smoke": [Case(16, 8), Case(16), Case(24), Case(16, 8, "bfloat16")],
    "quick": [
        *(Case(n) for n in SIZES),
        *(Case(1024, d) for d in (64, 512)),
        Case(1024, dtype="bfloat16"),
        Case(1024, temperature=0.01),
    ],
    "full": [
        *(Case(n) for n in (*SIZES, 16384, 32768, 65536)),
        *(Case(n, d) for n in (1024, 4096) for d in (64, 256, 512, 1024)),
        *(Case(n, dtype=dtype) for n in (1024, 4096) for dtype in ("float64", "float16", "bfloat16")),
        *(Case(1024, temperature=t) for t in (0.5, 0.05, 0.01)),
    ],
}
# Where only the memory of our kernels is of interest: plain PyTorch would need 64 GiB.
MEMORY_CASES = {"smoke": [Case(128, 8)], "quick": [Case(32768)], "full": [Case(32768), Case(65536)]}


def test_ntxent(benchmark, case: Case, scale: str, device: torch.device, budget: float) -> None:
    dtype = getattr(torch, case.dtype)
    on_gpu = device.type == "cuda"
    most = torch.cuda.get_device_properties(device).total_memory / 4 if on_gpu else MOST_BYTES[scale]
    field = [contestant(name, case.n, case.d, dtype, case.temperature, device, most) for name in NAMES]
    if scale == "smoke" or (scale == "quick" and not case.in_main_series):  # compiling takes long
        reason = "compiled in the main series and in bench-full only"
        field = [Absent(c.name, reason) if c.name == "plain compiled" else c for c in field]
    m = 2 * case.n
    found = compare(
        benchmark,
        field,
        check_ntxent(*views(case.n, case.d, dtype, device), case.temperature),
        device,
        budget,
        # Without AVX-512, a CPU takes a minute for a large product of bfloat16, which a smoke test need not wait for.
        {"multiply_adds_per_second": multiply_add_gauge(dtype, device, 256 if scale == "smoke" else None)},
        suite="ntxent",
        case=vars(case),
        multiply_adds={"least": 2 * m * m * case.d, "plain": 3 * m * m * case.d},
        least_bytes=6 * m * case.d * torch.finfo(dtype).bits // 8,
        half_products=half_products(dtype, device),
        bytes_per_second=bytes_per_second(device),
    )
    for name, figures in found.items():
        if "seconds" in figures and case.in_main_series:
            figures["peak_bytes"] = _peak(name, case, device)
    require(found, BACKENDS)


def test_ntxent_memory(benchmark, memory_case: Case, device: torch.device) -> None:
    """Peak memory of forward + backward at sizes where S itself would not fit."""
    found: dict[str, dict] = {}

    def probe_all() -> None:
        for name in BACKENDS:
            reason = "stores S" if name == "reference" else why_not(name, "ntxent_fwd", device)
            found[name] = {"absent": reason} if reason else {"peak_bytes": _peak(name, memory_case, device)}

    benchmark.pedantic(probe_all, rounds=1, iterations=1)
    benchmark.extra_info.update(suite="ntxent_memory", case=vars(memory_case), contestants=found)
    if not any("peak_bytes" in figures for figures in found.values()):
        pytest.fail(f"no kernel serves {device}: {found}")


def _peak(name: str, case: Case, device: torch.device) -> int:
    probe = {"name": name, **vars(case), "device": device.type}
    peers = tuple(m for name, m in MODULES.items() if name not in CLIP_LOSSES and installed(m))
    return peak_bytes(f"{memory_probe.__module__}:{memory_probe.__name__}", probe, peers)
