"""The CUDA row L2-normalisation, executed on the CPU, against float64."""

import ctypes

import pytest
import torch

from proof.simt.library import SCHEDULES, Kernels, Schedule, unwritten
from tests.helpers import relative_error
from tests.ops.l2_normalize.rows import EPS, SHAPES, gradient_error, rows, truth

SOURCES = ("csrc/cuda/l2_normalize.cu", "proof/simt/kernels/l2_normalize_entry.cpp")


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return Kernels(SOURCES)


@pytest.mark.parametrize("schedule", SCHEDULES[::2], ids=str)  # it copies nothing asynchronously
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [s for s in SHAPES if s[0] > 0], ids=str)
def test_matches_float64(kernels: Kernels, shape: tuple[int, int], dtype: torch.dtype, schedule: Schedule) -> None:
    x, du = rows(*shape, dtype), torch.randn(*shape, dtype=dtype)
    u_true, dx_true = truth(x, du)
    suffix, tolerance = ("float", 3e-7) if dtype == torch.float32 else ("double", 1e-15)
    u, inv_norm, dx = (unwritten(*s, dtype=dtype) for s in (shape, shape[:1], shape))
    sizes = (*shape, ctypes.c_double(EPS))
    kernels.call(f"l2_normalize_{suffix}", x, u, inv_norm, *sizes, schedule=schedule)
    kernels.call(f"l2_normalize_backward_{suffix}", du, u, inv_norm, dx, *sizes, schedule=schedule)
    for row in range(shape[0]):
        assert relative_error(u[row], u_true[row]) <= tolerance
        assert gradient_error(dx[row], dx_true[row], x[row], du[row]) <= 4 * tolerance
