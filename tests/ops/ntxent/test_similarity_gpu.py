"""The CUDA C++ kernels of the primitive on a device. They run on the CPU in proof/simt/test_similarity.py."""

import pytest
import torch
from torch import Tensor

from simclr_fast.losses import similarity_logsumexp
from simclr_fast.ops.ntxent.reference import log_sum_exp, normalize_rows, similarity_logits
from tests.helpers import non_contiguous, relative_error, within
from tests.streams import captured, keep_busy, side_stream

pytestmark = pytest.mark.gpu
HALF, BFLOAT, FLOAT, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
TOLERANCE = {HALF: 6e-3, BFLOAT: 8e-3, FLOAT: 1e-5, DOUBLE: 1e-11}
# Of dt, in units of what its terms add up to, beyond twice the error that rounding the operands makes of it; on the CPU
# the same kernels need 3e-8, in float32 9e-7.
TINY_DT = {HALF: 1e-5, BFLOAT: 1e-5, FLOAT: 1e-5, DOUBLE: 1e-12}


def results(rows: Tensor, columns: Tensor | None, temperature: float, upstream: tuple[Tensor, ...], **options) -> tuple:
    """Log-sum-exps of rows, and of columns where there are any, and the gradients of rows, columns and temperature."""
    leaves = [x.detach().clone().requires_grad_() for x in (rows, columns) if x is not None]
    dtype = DOUBLE if rows.dtype == DOUBLE else FLOAT
    t = torch.tensor(temperature, dtype=dtype, device=rows.device, requires_grad=True)
    both = columns is not None
    on_host = options.pop("on_host", False)
    lse = similarity_logsumexp(
        leaves[0], leaves[1] if both else None, temperature if on_host else t, both=both, **options
    )
    lse = lse if both else (lse,)
    wanted = leaves if on_host else [*leaves, t]
    gradients = torch.autograd.grad(lse, wanted, [g.to(x) for g, x in zip(upstream, lse)])
    return *(x.detach() for x in lse), *gradients


def dt_of_rounded_operands(
    rows: Tensor,
    columns: Tensor | None,
    temperature: float,
    upstream: tuple[Tensor, ...],
    exclude: str,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """dloss/dt of rows that are rounded as kernels take rows of dtype, in float64; the sum of its terms' sizes."""
    x, y = (
        None if z is None else normalize_rows(z).to(HALF if dtype in (HALF, BFLOAT) else dtype).double()
        for z in (rows, columns)
    )
    t = torch.tensor(temperature, dtype=DOUBLE, requires_grad=True)
    s = similarity_logits(x, x if y is None else y, t, 0, exclude)
    lse = [log_sum_exp(side) for side in (s, s.T)][: len(upstream)]
    (dt,) = torch.autograd.grad(lse, t, upstream)
    terms = [weights[:, None] * (side - of[:, None]).exp() * side for side, of, weights in zip((s, s.T), lse, upstream)]
    return dt, sum(of_side.detach().nan_to_num(0, 0, 0).abs().sum() for of_side in terms) / temperature


@pytest.mark.parametrize("on_host", [True, False])
@pytest.mark.parametrize("temperature", [0.1, 0.02])
@pytest.mark.parametrize("dtype", [HALF, BFLOAT, FLOAT, DOUBLE], ids=str)
@pytest.mark.parametrize(
    ("n", "m", "d", "exclude"),
    [
        (1, 1, 5, "none"),
        (33, 150, 123, "self"),
        (700, 300, 64, "none"),
        (300, 300, 257, "self"),
        (20, 35, 1100, "none"),
        (300, None, 128, "pair"),
        (131, None, 1024, "self"),
    ],
)
def test_matches_float64(
    n: int, m: int | None, d: int, exclude: str, dtype: torch.dtype, temperature: float, on_host: bool
) -> None:
    rows, columns = torch.randn(n, d).to(dtype), None if m is None else torch.randn(m, d).to(dtype)
    upstream = tuple(torch.randn(k, dtype=DOUBLE) for k in ((n,) if m is None else (n, m)))
    options = {"exclude": exclude, "on_host": on_host}
    device = (rows.cuda(), None if m is None else columns.cuda())
    got = results(*device, temperature, upstream, backend="cpp", precision="ieee", **options)
    exact = (rows.double(), None if m is None else columns.double())
    want = results(*exact, temperature, upstream, backend="reference", **options)
    operand = {DOUBLE: 1e-12, FLOAT: 2e-6}.get(dtype, 2e-3)
    sums = len(upstream)
    for actual, wanted in zip(got[:sums], want):
        assert within("lse", (actual.cpu().double() - wanted).abs().max(), operand / temperature)
    least = upstream[0].abs().max() * 1e-2  # a gradient near 0 is rounding noise
    gradients = slice(sums, sums + len(exact) - exact.count(None))
    for actual, wanted in zip(got[gradients], want[gradients]):
        error = (actual.cpu().double() - wanted).abs().max() / wanted.abs().max().clamp_min(least)
        assert within("gradient", error, TOLERANCE[dtype])
    if not on_host:
        of_rounded, size = dt_of_rounded_operands(*exact, temperature, upstream, exclude, dtype)
        error, allowed = ((dt.cpu().double() - want[-1]).abs() for dt in (got[-1], of_rounded))
        assert within("dt", error, 2 * allowed + TINY_DT[dtype] * size)


def test_a_row_maximum_and_its_log_sum_exp() -> None:
    u = torch.nn.functional.normalize(torch.randn(300, 128, device="cuda"))
    lse, largest, _ = torch.ops.simclr_fast.similarity_fwd(u, u, 0, "self", False, True, 0.1, None, "ieee")
    logits = (u.double() @ u.double().T / 0.1).fill_diagonal_(-torch.inf)
    assert within("max", (largest - logits.amax(1)).abs().max(), 1e-5)
    assert within("lse", (lse - logits.logsumexp(1)).abs().max(), 1e-5)


def test_is_deterministic() -> None:
    rows, columns = (torch.randn(n, 128, device="cuda").half() for n in (1000, 700))
    upstream = (torch.randn(1000), torch.randn(700))
    first, second = (results(rows, columns, 0.1, upstream, backend="cpp") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second))


def test_strided_rows() -> None:
    rows, columns = torch.randn(50, 40, device="cuda"), torch.randn(70, 40, device="cuda")
    strided = non_contiguous(rows).requires_grad_()
    lse = similarity_logsumexp(strided, columns, 0.2, backend="cpp", precision="ieee")
    (gradient,) = torch.autograd.grad(lse.sum(), strided)
    want = results(rows, columns, 0.2, (torch.ones(50), torch.zeros(70)), backend="cpp", precision="ieee")
    assert relative_error(lse, want[0]) <= 1e-6
    assert relative_error(gradient, want[2]) <= 1e-6


def test_runs_on_the_current_stream_without_synchronising() -> None:
    rows, columns = (torch.randn(n, 32, device="cuda").half() for n in (64, 90))
    upstream = (torch.randn(64).cuda(), torch.randn(90).cuda())
    expected = results(rows, columns, 0.1, upstream, backend="cpp", on_host=True)
    late = torch.full_like(rows, torch.nan)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with side_stream():
            keep_busy()
            late.copy_(rows)
            lse, column_lse = similarity_logsumexp(late.requires_grad_(), columns, 0.1, both=True, backend="cpp")
            (gradient,) = torch.autograd.grad((lse, column_lse), late, upstream)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    for actual, wanted in zip((lse, column_lse, gradient), expected):
        assert torch.equal(actual, wanted)


def test_can_be_captured_in_a_graph() -> None:
    rows, columns = (
        torch.randn(64, 32, device="cuda").half().requires_grad_(),
        torch.randn(90, 32, device="cuda").half(),
    )

    def step() -> Tensor:
        return torch.autograd.grad(similarity_logsumexp(rows, columns, 0.1, backend="cpp").sum(), rows)[0]

    graph, gradient = captured(step)
    with torch.no_grad():
        rows.copy_(torch.randn(64, 32))
    graph.replay()
    assert torch.equal(gradient, step())


def test_memory_is_linear_in_the_rows() -> None:
    peaks = []
    for n in (4096, 8192):
        rows, columns = (torch.randn(n, 64, device="cuda").half() for _ in range(2))
        upstream = (torch.ones(n).cuda(), torch.ones(n).cuda())
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        results(rows, columns, 0.1, upstream, backend="cpp")
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] <= 2.5 * peaks[0]
