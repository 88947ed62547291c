"""Row L2-normalisation in Triton, executed by Triton's interpreter."""

import pytest
import torch

from simclr_fast.ops.l2_normalize import triton_kernels
from tests.helpers import relative_error
from tests.ops.l2_normalize.rows import EPS, SHAPES, gradient_error, rows, truth

pytestmark = pytest.mark.interpret


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_float64(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x, du = rows(*shape, dtype), torch.randn(*shape, dtype=dtype)
    u_true, dx_true = truth(x, du)
    u, inv_norm = triton_kernels.l2_normalize(x, EPS)
    dx = triton_kernels.l2_normalize_backward(du, u, inv_norm, EPS)
    tolerance = 3e-7 if dtype == torch.float32 else 1e-15
    for row in range(shape[0]):
        assert relative_error(u[row], u_true[row]) <= tolerance
        assert gradient_error(dx[row], dx_true[row], x[row], du[row]) <= 4 * tolerance
