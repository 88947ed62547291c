"""The rows' normalisation, the smallest op of the loss: every backend against float64."""

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from simclr_fast import ntxent_loss
from simclr_fast.ops.ntxent.ops import SPLIT_SCALE
from simclr_fast.ops.ntxent.reference import normalize_rows
from simclr_fast.ops.ntxent.similarity_ops import Options, operands
from simclr_fast.ops.ntxent.triton_backend import TritonNtxent
from tests.helpers import moved, non_contiguous, relative_error, within

EPS = 1e-8
SHAPES = [(1, 1), (1, 7), (3, 1), (5, 123), (64, 128), (33, 1030)]
DTYPES_OF_TRITON = [torch.float32, torch.bfloat16, torch.float16]
DTYPES = [torch.float64, *DTYPES_OF_TRITON]
# By the dtype of u, which is that of the operands of the matrix products.
TOLERANCE = {torch.float64: 1e-15, torch.float32: 3e-7, torch.float16: 5e-4}
OPS = torch.ops.simclr_fast
BACKENDS = {"cpp": OPS.ntxent_normalize, "triton": OPS.ntxent_normalize_triton, "interpreted": TritonNtxent().normalize}


def rows(n: int, d: int, dtype: torch.dtype) -> Tensor:
    """Random rows with a zero row, a row shorter than EPS, a huge row and a NaN row where there is room for them."""
    z = torch.randn(n, d, dtype=torch.float64)
    if n >= 5:
        z[1], z[2], z[3] = 0, z[2] * 1e-12, z[3] * 1e30
        z[4, d // 2] = float("nan")
    z = z.to(dtype)
    if dtype == torch.float16 and n >= 5:
        z[3] = 60000.0  # the largest that fits, where float32 has 1e30
    return z


def check(backend: str, n: int, d: int, dtype: torch.dtype, device: str = "cpu", strided: bool = False) -> None:
    views = [rows(n, d, dtype), torch.randn(n, d, dtype=torch.float64).to(dtype)]
    z = torch.cat(views)
    u_true = normalize_rows(z.double(), EPS)
    inv_norm_true = 1 / torch.linalg.vector_norm(z.double(), dim=1).clamp_min(EPS)
    views = [moved(non_contiguous(view) if strided else view, device) for view in views]
    if backend == "reference":
        u, inv_norm = normalize_rows(torch.cat(views), EPS), None
    else:
        u, inv_norm = BACKENDS[backend](*views, EPS)
        assert inv_norm.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    split = u.ndim == 3  # float32 rows on CUDA, in two parts
    if split:
        u = (u.double().sum(1) / SPLIT_SCALE).float()
    assert not u[:, d:].any(), "columns that pad a row are zero"
    tolerance = TOLERANCE[u.dtype]
    for row in range(2 * n):  # row by row: rows of length 0 and 1e30 lie 38 orders of magnitude apart
        allowed = tolerance
        if split:  # lo of a row much shorter than 1, whose norm is clamped, is a subnormal number: it has a least error
            length = u_true[row].norm().nan_to_num().clamp_min(1e-30).item()
            allowed += d**0.5 * 2.0**-25 / SPLIT_SCALE / length
        assert within("u", relative_error(u[row, :d], u_true[row]), allowed), f"row {row}"
        if inv_norm is not None:
            error = relative_error(inv_norm[row], inv_norm_true[row])
            assert within("inv_norm", error, min(tolerance, 1e-6)), f"row {row}"


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_matches_float64(backend: str, shape: tuple[int, int], dtype: torch.dtype, strided: bool) -> None:
    check(backend, *shape, dtype, strided=strided)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [(5, 2), (2, 5), (3, 0)], ids=str)
def test_views_may_differ_in_number(rows: tuple[int, int], dtype: torch.dtype) -> None:
    """The rows and columns of similarity_logsumexp; without columns the second view is empty."""
    views = [torch.randn(n, 7, dtype=torch.float64).to(dtype) for n in rows]
    u, inv_norm = OPS.ntxent_normalize(*views, EPS)
    of_each = [OPS.ntxent_normalize(view, view, EPS) for view in views if view.shape[0]]
    assert torch.equal(u, torch.cat([both.chunk(2)[0] for both, _ in of_each]))
    assert torch.equal(inv_norm, torch.cat([both.chunk(2)[0] for _, both in of_each]))
    torch.library.opcheck(OPS.ntxent_normalize.default, (*views, EPS))


def test_views_may_lie_differently_in_memory() -> None:
    """Each has a stride of its own between rows whose columns are adjacent, which are read where they lie."""
    views = torch.randn(2, 6, 5)
    expected = OPS.ntxent_normalize(*views, EPS)
    for k, margin in ((0, 4), (1, 7)):
        apart = list(views)
        apart[k] = torch.nn.functional.pad(views[k], (2, margin), value=9.0)[:, 2:7]
        assert all(torch.equal(a, b) for a, b in zip(OPS.ntxent_normalize(*apart, EPS), expected))
        assert torch.equal(ntxent_loss(*apart, 0.1), ntxent_loss(*views, 0.1))


@pytest.mark.parametrize(
    ("dtype", "width", "of_operands"),
    [
        (torch.float16, 8, torch.float16),
        (torch.bfloat16, 8, torch.float16),
        (torch.float32, 8, torch.float16),  # in two parts
        (torch.float64, 6, torch.float64),
    ],
    ids=str,
)
def test_operands_on_cuda_have_rows_of_whole_16_bytes(dtype: torch.dtype, width: int, of_operands: torch.dtype) -> None:
    """Of the compiled kernels; Triton's have the views' width. What graphs are made with says so without a device."""
    parts = (2,) if dtype == torch.float32 else ()
    statistics = torch.float64 if dtype == torch.float64 else torch.float32
    with FakeTensorMode():
        z0, z1 = torch.empty(3, 5, dtype=dtype, device="cuda"), torch.empty(4, 5, dtype=dtype, device="cuda")
        for backend, wide in (("cpp", width), ("triton", 5)):
            u, inv_norm = BACKENDS[backend](z0, z1, EPS)
            assert (u.shape, u.dtype) == ((7, *parts, wide), of_operands)
            assert (inv_norm.shape, inv_norm.dtype) == ((7,), statistics)
            options = Options(0.1, "none", False, False, False, None, "ieee", backend, None, "a test")
            as_they_are = operands(z0, z1, options)
            assert [x.shape for x in as_they_are] == [(3, *parts, wide), (4, *parts, wide), (7,)]
            assert [x.dtype for x in as_they_are] == [of_operands, of_operands, statistics]


@pytest.mark.interpret
@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("dtype", DTYPES_OF_TRITON, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_float64_in_tritons_interpreter(shape: tuple[int, int], dtype: torch.dtype, strided: bool) -> None:
    check("interpreted", *shape, dtype, strided=strided)


@pytest.mark.gpu
@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        *((backend, dtype) for backend in ("cpp", "reference") for dtype in DTYPES),
        *(("triton", dtype) for dtype in DTYPES_OF_TRITON),
    ],
    ids=str,
)
def test_matches_float64_on_a_gpu(backend: str, shape: tuple[int, int], dtype: torch.dtype, strided: bool) -> None:
    check(backend, *shape, dtype, device="cuda", strided=strided)
