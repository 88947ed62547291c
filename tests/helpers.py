"""What tests compare with: errors relative to a float64 truth, NaN-aware; and which CPU kernels can run here."""

import mmap
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

_ISAS = {"portable": "DEFAULT", "avx2": "AVX2", "avx512": "AVX512"}  # by their names and torch's, least first
_CAPABILITY = torch.backends.cpu.get_cpu_capability()
_RUNNABLE = list(_ISAS.values()).index(_CAPABILITY) if _CAPABILITY in _ISAS.values() else 0
# Of the CPU kernels; what this processor lacks is skipped in sight (proofs run its source with all widths of vectors).
INSTRUCTION_SETS = [
    pytest.param(isa, marks=pytest.mark.skipif(k > _RUNNABLE, reason=f"this processor has no {isa}"))
    for k, isa in enumerate(_ISAS)
]

# Told of every (what, error, bound) that `within` compares; tools/gpu_check.py collects the margins of a run by it.
on_margin: Callable[[str, float, float], None] | None = None


def within(what: str, error: float | Tensor, bound: float | Tensor) -> bool:
    """Whether error <= bound, which no NaN is. what: names the quantity in the report on a device's margins."""
    error, bound = float(error), float(bound)
    if on_margin is not None:
        on_margin(what, error, bound)
    return error <= bound


def peak_mib(program: str, *arguments: object) -> float:
    """What a program, in a fresh process, prints of its peak memory."""
    # All large memory is to go back to the system when it is freed. glibc keeps some of it, more or less from run to
    # run, once it has seen such a size freed: up to a third of a peak.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 0, run.stderr
    return float(run.stdout)


def relative_error(actual: Tensor, truth: Tensor) -> float:
    """Largest |actual - truth| over largest |truth|; NaN must stand where the truth has NaN, else inf."""
    actual, truth = actual.detach().double().cpu(), truth.detach().double().cpu()
    if actual.shape != truth.shape or not torch.equal(actual.isnan(), truth.isnan()):
        return float("inf")
    if truth.numel() == 0:
        return 0.0
    scale = truth.nan_to_num(0).abs().max().item()
    difference = (actual - truth).nan_to_num(0).abs().max().item()
    return difference / scale if scale > 0 else difference


def non_contiguous(x: Tensor) -> Tensor:
    """The same values with a row stride and a column stride that no kernel may assume away."""
    wide = torch.full((x.shape[0], 2 * x.shape[1] + 3), float("nan"), dtype=x.dtype, device=x.device)
    view = wide[:, 1 : 2 * x.shape[1] + 1 : 2]
    return view.copy_(x)


def moved(x: Tensor, device: str | torch.device) -> Tensor:
    """x on the device at the same strides; Tensor.to would close the gaps between elements that are not dense."""
    elements = x.untyped_storage().nbytes() // x.element_size()
    return x.as_strided((elements,), (1,), 0).to(device).as_strided(x.shape, x.stride(), x.storage_offset())


_MAP_NORESERVE = 0x4000  # Linux; Python names it from 3.13 on
# Of images [2, 3, 20, 24]: between images, channels, rows and pixels.
IMAGE_STRIDES = (
    (2**32 + 16, 480, 24, 1),
    (2**34, 2**31 + 16, 24, 1),
    (60 * 2**28, 20 * 2**28, 2**28, 1),
    (24 * 2**28, 1, 3, 2**28),
)
VIEW_STRIDES = ((2**31 + 16, 1), (2**28, 1), (1, 2**30))  # of views [20, 9]


def sparse(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Zeros that take no memory until they are written."""
    elements = torch.Size(shape).numel()
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    return torch.frombuffer(mmap.mmap(-1, elements * dtype.itemsize, flags=flags), dtype=dtype).reshape(shape)


def spread(x: Tensor, strides: tuple[int, ...]) -> Tensor:
    """x at these strides."""
    last = sum((size - 1) * stride for size, stride in zip(x.shape, strides))
    return sparse(last + 1, dtype=x.dtype).as_strided(x.shape, strides).copy_(x)
