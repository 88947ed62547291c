"""Row L2-normalisation: C++ on the CPU and the reference against float64, autograd, compile, bad input."""

import subprocess
import sys

import pytest
import torch

from simclr_fast.ops.l2_normalize import l2_normalize
from tests.helpers import moved, non_contiguous, relative_error, within
from tests.ops.l2_normalize.rows import EPS, SHAPES, gradient_error, rows, truth

TOLERANCE = {torch.float64: 1e-15, torch.float32: 3e-7, torch.bfloat16: 4e-3, torch.float16: 5e-4}

# The instruction sets this processor can run.
ISAS = ["portable", "avx2", "avx512"][: {"DEFAULT": 1, "AVX2": 2, "AVX512": 3}[torch.backends.cpu.get_cpu_capability()]]


def check(backend: str, n: int, d: int, dtype: torch.dtype, device: str = "cpu", strided: bool = False) -> None:
    x = rows(n, d, dtype)
    if dtype == torch.float16 and n >= 5:
        x[3] = 60000.0  # the largest that fits, where float32 has 1e30
    x = moved(non_contiguous(x) if strided else x, device).requires_grad_()
    du = torch.randn(n, d, dtype=dtype)
    u_true, dx_true = truth(x.cpu(), du)
    u = l2_normalize(x, EPS, backend=backend)
    u.backward(du.to(device))
    assert u.dtype == x.grad.dtype == dtype
    for row in range(n):  # row by row: gradients of rows of length 0 and 1e30 lie 38 orders of magnitude apart
        assert within("u", relative_error(u[row], u_true[row]), TOLERANCE[dtype]), f"row {row}"
        error = gradient_error(x.grad[row], dx_true[row], x[row], du[row])
        assert within("dx", error, 4 * TOLERANCE[dtype]), f"row {row}"


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_matches_float64(backend: str, shape: tuple[int, int], dtype: torch.dtype, strided: bool) -> None:
    check(backend, *shape, dtype, strided=strided)


@pytest.mark.gpu
@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", ["cpp", "triton", "reference"])
def test_matches_float64_on_a_gpu(backend: str, shape: tuple[int, int], dtype: torch.dtype, strided: bool) -> None:
    check(backend, *shape, dtype, device="cuda", strided=strided)


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set(isa: str) -> None:
    program = (
        "import torch; from simclr_fast._extension import build_info;"
        "from tests.ops.l2_normalize.test_l2_normalize import check;"
        f"assert build_info()['cpu_isa'] == {isa!r}, build_info();"
        "[check('cpp', n, d, t) for n, d in ((5, 123), (33, 1030)) for t in (torch.float32, torch.float64)]"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], env={"SIMCLR_FAST_ISA": isa}, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


def test_unknown_instruction_set_is_refused() -> None:
    program = "from simclr_fast._extension import build_info; build_info()"
    run = subprocess.run(
        [sys.executable, "-c", program], env={"SIMCLR_FAST_ISA": "sse9"}, capture_output=True, text=True, check=False
    )
    assert run.returncode != 0
    assert "SIMCLR_FAST_ISA=sse9: choose portable, avx2 or avx512" in run.stderr


def test_registration() -> None:
    x = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: l2_normalize(x, backend="cpp"), x)
    torch.library.opcheck(torch.ops.simclr_fast.l2_normalize.default, (x, EPS))
    u, inv_norm = torch.ops.simclr_fast.l2_normalize(x.detach(), EPS)
    torch.library.opcheck(
        torch.ops.simclr_fast.l2_normalize_backward.default, (torch.randn(5, 7).double(), u, inv_norm, EPS)
    )


def test_compiles_without_a_graph_break() -> None:
    x = torch.randn(6, 10, requires_grad=True)
    compiled = torch.compile(lambda x: l2_normalize(x).square().sum(0), fullgraph=True, backend="aot_eager")
    expected = l2_normalize(x).square().sum(0)
    assert torch.equal(compiled(x), expected)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1.0, 2.0],), TypeError, "x must be a floating-point tensor, got list"),
        ((torch.ones(2, 2, dtype=torch.int32),), TypeError, r"got torch.int32; convert it with x.float\(\)"),
        ((torch.ones(2),), ValueError, r"x must be \[N, D\], got shape \(2,\)"),
        ((torch.ones(2, 2), 0.0), ValueError, "eps must be > 0, got 0.0"),
        ((torch.ones(2, 2), float("nan")), ValueError, "eps must be > 0, got nan"),
    ],
)
def test_bad_input(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        l2_normalize(*arguments)
